"""Run the vectors of the original implementations through checks chosen by file name.

`RECLAIM_GOLDEN` is the parent folder of the vectors (default: `tests/golden/data`). Each system's test hands its checks, a
list of (pattern, function), to `run_checks`: every file must match one, and each function returns how many cases it checked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path

import pytest

Check = tuple[str, Callable[[Path], int]]


def golden_root() -> Path:
    """The parent folder of all systems' vectors."""
    return Path(os.environ.get("RECLAIM_GOLDEN") or Path(__file__).parent / "data")


def golden_files(system: str) -> list[str]:
    """Relative names of the files of one system; skips when its folder is absent, fails when it has nothing to read."""
    folder = golden_root() / system
    if not folder.exists():
        pytest.skip(f"no golden vectors of {system}: {folder} does not exist")
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    files = [name for name in files if not name.endswith("README.md")]
    if not files:
        pytest.fail(f"{folder} holds no golden vectors")
    return files


def companion(_path: Path) -> int:
    """Check of a file that another file's check reads."""
    return 0


def run_checks(system: str, checks: Sequence[Check]) -> dict[str, int]:
    """Check every file of a system and print how many cases each held.

    A file that no pattern matches fails the run, and so does a run without a single case.
    """
    counts: dict[str, int] = {}
    failures: list[str] = []
    for name in golden_files(system):
        check = next((function for pattern, function in checks if fnmatch(name, pattern)), None)
        if check is None:
            failures.append(f"{name}: no check reads this file")
            continue
        try:
            counts[name] = check(golden_root() / system / name)
        except AssertionError as error:
            failures.append(f"{name}: {error}")
    for name, count in counts.items():
        if count:
            print(f"golden {system}/{name}: {count} cases")
    print(f"golden {system}: {sum(counts.values())} cases in {len(counts)} files")
    if failures:
        pytest.fail("\n".join(failures))
    if not sum(counts.values()):
        pytest.fail(f"no case of {system} was checked")
    return counts
