"""One rule for sub-seeds, so that no two streams of a run coincide by accident."""

import hashlib


def derive(seed: int, *names: object) -> int:
    """Give a 63-bit seed that depends on `seed` and on every name, and on nothing else (process, platform, version)."""
    text = "\x1f".join([str(int(seed)), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
