"""What the kinds of data with a module of their own (`reclaim.sources`) check alike in an entry of `data:`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from reclaim.errors import InputError

Sources = Mapping[str, tuple[set[str], set[str]]]
"""Source -> the keys that it needs, and those that it may have, beside `kind` and `source`."""

COMMIT = re.compile("[0-9a-f]{40}")


def check_keys(spec: Mapping[str, Any], place: str, sources: Sources) -> None:
    """Raise InputError, which names the key, for a source that is not among `sources`, and unknown and missing keys.

    A repository of the Hub is named by `id` and `revision`, or, where the source may have `path`, by the folder of a copy;
    a revision is a commit, since a branch or a tag moves.
    """
    source = spec.get("source")
    if not isinstance(source, str) or source not in sources:
        raise InputError(f"{place}.source", repr(source), f"one of {', '.join(sources)}")
    needed, possible = sources[source]
    keys = set(spec) - {"kind", "source"}
    for key in sorted(map(str, keys - needed - possible)):
        raise InputError(f"{place}.{key}", "an unknown key", f"one of {', '.join(sorted(needed | possible))}")
    for key in sorted(needed - keys):
        raise InputError(place, f"no key {key!r}", f"it, for the source {source}")
    if source == "hub" and "path" in possible and ({"id", "revision"} <= keys) == ("path" in keys):
        raise InputError(place, f"keys {sorted(keys)}", "either id with revision, or path (a downloaded copy)")
    if "revision" in keys and not COMMIT.fullmatch(str(spec["revision"])):
        raise InputError(f"{place}.revision", repr(spec["revision"]), "a commit hash of 40 digits")
