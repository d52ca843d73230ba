"""Atomic writing: a reader sees the old file, the new file or none, never half of one; and what tells files apart."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(path: str | Path, directory: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path` and rename it to `path` when the block ends without an error.

    With `directory`, the temporary path is an empty folder, and an old folder at `path` is replaced. On an error the
    temporary path is removed and `path` is as before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    temporary = holder / path.name
    try:
        if directory:
            temporary.mkdir()
        yield temporary
        if directory and path.is_dir() and not path.is_symlink():
            os.rename(path, holder / "replaced")
        os.replace(temporary, path)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def write_json(value: Any, path: str | Path) -> None:
    """Write `value` as indented JSON with sorted keys."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read one JSON document."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_parquet(frame, path: str | Path) -> None:
    """Write a pandas DataFrame without its index; equal frames give equal bytes under one pyarrow version."""
    with atomic_path(path) as temporary:
        frame.to_parquet(temporary, index=False)


def sha256(path: str | Path) -> str:
    """Give the SHA-256 of a file in hexadecimal, reading it in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_stamps(path: str | Path) -> list[tuple[str, int, int]]:
    """Give path, size (bytes) and time of modification (ns) of a file, or of each file below a folder, in order.

    The time stamp that Snakemake puts into folders is left out.
    """
    path = Path(path)
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    kept = [file for file in files if file.name != ".snakemake_timestamp"]
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in kept]
