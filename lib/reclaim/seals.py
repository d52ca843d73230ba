"""Seals on the entries of Snakemake's cache between workflows: a damaged entry is removed before a job is served it.

The cache ($SNAKEMAKE_OUTPUT_CACHE) hands out whatever its entries hold. An entry is one output of a job, named by the job's
hash, the output's name and its suffix. So the rules with `cache: True` have an output `seal`: checksums of the others, written
by the job itself, which goes into the cache with them.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from reclaim.errors import InputError
from reclaim.io import read_json, sha256, write_json

_MARKER = ".reclaim"
_STAMPS = ".reclaim-verified.json"
_ENTRY = re.compile(r"([0-9a-f]{64})(.*)")
# Snakemake moves the outputs of a job into the cache one by one; until then, an incomplete entry may become whole.
_STORING_SECONDS = 10.0


def seal(outputs: Mapping[str, str | Path], path: str | Path) -> None:
    """Write the checksums of a job's outputs (name to file or folder, without the seal itself) to `path`."""
    sums: dict[str, str | dict[str, str]] = {}
    for name, output in outputs.items():
        output = Path(output)
        if output.is_dir():
            sums[_suffix(name, output)] = {file: sha256(output / file) for file in _files(output)}
        else:
            sums[_suffix(name, output)] = sha256(output)
    write_json(sums, path)


def verify_cache(folder: str | Path, results: str | Path) -> list[str]:
    """Remove the damaged entries of a cache, and what is left of them below `results`; give the names of the removed.

    For the main process of Snakemake, before it builds its DAG: what is then missing is made again. Damaged is a job's
    group of entries without its seal, with a file missing, added or changed, or with a seal that cannot be read. A file
    is hashed when its size, time of modification or time of change differ from those at the last check, and always
    under RECLAIM_VERIFY_CACHE=full. Links below `results` to entries that are gone are removed with the output that
    they are part of, whoever removed the entry.

    Raises InputError if `folder` is not absolute (Snakemake's links would lead nowhere), holds entries that another
    workflow made (they have no seals), or holds a damaged entry that this user cannot remove.
    """
    folder = Path(folder)
    place = f"SNAKEMAKE_OUTPUT_CACHE={folder}"
    if not folder.is_absolute():
        raise InputError(place, "a relative path", "an absolute one")
    folder.mkdir(parents=True, exist_ok=True)
    groups = _groups(folder)
    if groups and not (folder / _MARKER).exists():
        raise InputError(
            place,
            "entries that this workflow did not make",
            "an empty folder or one that this workflow has used before",
            "Entries without a seal are removed, so this workflow needs a cache of its own: name another folder.",
        )
    stamps: dict[str, list] = {}
    with suppress(OSError, ValueError):
        stamps = {} if os.environ.get("RECLAIM_VERIFY_CACHE") == "full" else read_json(folder / _STAMPS)
    current: dict[str, list] = {}
    removed = []
    for key in groups:
        if _is_damaged(folder, key, stamps, current):
            for entry in _groups(folder).get(key, {}).values():
                _remove(entry, place)
                removed.append(entry.name)
    with suppress(OSError):  # a cache that may only be read is checked in full each time
        (folder / _MARKER).touch()
        write_json(current, folder / _STAMPS)
    _remove_dead_links(folder, Path(results))
    return removed


def _suffix(name: str, output: Path) -> str:
    """What Snakemake appends to a job's hash for one of several named outputs."""
    return f"_{name}{output.suffix}"


def _files(folder: Path) -> list[str]:
    """All files below a folder, but for the time stamp that Snakemake adds."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return sorted(path for path in paths if path != ".snakemake_timestamp")


def _groups(folder: Path) -> dict[str, dict[str, Path]]:
    """The entries of each job: hash to suffix to path."""
    groups: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        if match := _ENTRY.fullmatch(path.name):
            groups.setdefault(match[1], {})[match[2]] = path
    return groups


def _is_damaged(folder: Path, key: str, stamps: dict, current: dict) -> bool:
    """Compare a job's entries with their seal; what was hashed, or need not be, goes into `current`."""
    while True:
        entries = _groups(folder).get(key, {})
        age = time.time() - max((path.lstat().st_ctime for path in entries.values()), default=0.0)
        sums = None
        for suffix in [suffix for suffix in entries if suffix.startswith("_seal.")]:
            with suppress(OSError, ValueError):
                sums = read_json(entries.pop(suffix))
        if isinstance(sums, dict) and set(sums) == set(entries):
            break
        if not 0 <= age < _STORING_SECONDS:
            return bool(entries) or sums is not None
        time.sleep(0.5)
    for suffix, expected in sums.items():
        entry = entries[suffix]
        if entry.is_dir() != isinstance(expected, dict):
            return True
        if entry.is_dir() and _files(entry) != sorted(expected):
            return True
        for name, checksum in (expected if entry.is_dir() else {"": expected}).items():
            if _checked_sum(entry / name if name else entry, folder, stamps, current) != checksum:
                return True
    return False


def _checked_sum(path: Path, folder: Path, stamps: dict, current: dict) -> str:
    """A file's checksum, from the last check if the file is as it was then."""
    name = path.relative_to(folder).as_posix()
    status = path.stat()
    stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    known = stamps.get(name)
    checksum = known[3] if known and known[:3] == stamp else sha256(path)
    current[name] = [*stamp, checksum]
    return checksum


def _remove(path: Path, place: str) -> None:
    try:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise InputError(
            place,
            f"the damaged entry {path.name}, which cannot be removed ({error.strerror})",
            "a folder that this user can write to",
            "Have the entry removed, or name another folder.",
        ) from None


def _remove_dead_links(cache: Path, results: Path) -> None:
    """Remove outputs that lead, or hold files that lead, to entries which are gone.

    Snakemake leaves a link where it stored an output, and where it fetched a folder a folder of links.
    """
    for parent, _, files in os.walk(results):
        for name in files:
            link = Path(parent, name)
            if link.is_symlink() and not link.exists():
                target = Path(os.readlink(link))
                if target.parent == cache:
                    link.unlink()
                elif target.parent.parent == cache:
                    shutil.rmtree(parent)
                    break
