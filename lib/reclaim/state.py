"""The state folder of an experiment's job: what is finished stays in it, so that a job that was stopped goes on."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reclaim.io import file_stamps, read_json, write_json
from reclaim.provenance import fingerprint


def begin_state(
    state_dir: Path,
    spec: Mapping[str, Any],
    seed: int,
    data: Mapping[str, Path],
    module: str,
    *,
    device: object = "",
    keep: str = "",
) -> None:
    """Make the state folder of a job, and empty one that belongs to another spec, seed, data, device or state of the code.

    `data`: folders by name; data sets are known by their checksums, others (models, indexes, what an iteration left) by the
    names, sizes and times of modification of their files. `module`: the full name of the module whose fingerprint counts.
    `keep`: files whose names end like this stay all the same.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    infos = {name: Path(folder) / "dataset.json" for name, folder in data.items()}
    sources = {
        name: read_json(info)["sha256"] if info.exists() else [list(stamp) for stamp in file_stamps(info.parent)]
        for name, info in infos.items()
    }
    identity = {"spec": dict(spec), "seed": seed, "data": sources, "code": fingerprint(module), "device": str(device)}
    path = state_dir / "identity.json"
    if path.exists() and read_json(path) == identity:
        return
    for old in state_dir.iterdir():
        if not keep or not old.name.endswith(keep):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    write_json(identity, path)
