"""The official prompt files of ALCE, instructions with demonstrations: from the authors' repository, or from a local copy.

    kind: prompt_files
    source: git     url, revision: the commit's 40 digits, folder: within the repository
    source: local   path: a folder with the files

A file is named TASK_MODE.json, as in `prompts/` of princeton-nlp/ALCE. Of a repository one commit is fetched. The hash of a
commit stands for every byte of its files, and Git computes it anew from what it was sent, so that the revision is the checksum:
files that differ cannot come under it. A canonical folder has the files as they are and `dataset.json`.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from os import environ
from pathlib import Path
from typing import Any

from reclaim.alce.prompts import MODES, Prompts
from reclaim.data_local import expand_path
from reclaim.data_spec import Sources, check_keys
from reclaim.errors import InputError
from reclaim.io import atomic_path, read_json, sha256, write_json
from reclaim.world.passages import TASKS

KIND = "prompt_files"
SOURCES: Sources = {"git": ({"url", "revision", "folder"}, set()), "local": ({"path"}, set())}
NAMES = tuple(f"{task}_{mode}.json" for task in TASKS for mode in MODES)


def check_spec(spec: Mapping[str, Any], place: str) -> None:
    """Check an entry of `data:` whose kind is `prompt_files` without touching a file; raises InputError."""
    check_keys(spec, place, SOURCES)
    for key in sorted(set(spec) - {"kind", "source"}):
        if not isinstance(spec[key], str) or not spec[key]:
            raise InputError(f"{place}.{key}", repr(spec[key]), "a text")


def source_files(spec: Mapping[str, Any], place: str) -> list[str]:
    """The prompt files of a local copy; raises InputError for a folder that is not there or holds none."""
    if spec["source"] != "local":
        return []
    folder = expand_path(spec["path"], f"{place}.path")
    found = [str(folder / name) for name in NAMES if (folder / name).is_file()]
    if not found:
        what = f"no prompt file in {folder}" if folder.is_dir() else f"no folder {folder}"
        raise InputError(f"{place}.path", what, f"a folder with files such as {NAMES[0]}")
    return found


def materialize(spec: Mapping[str, Any], out_dir: str | Path) -> None:
    """Write the prompt files as a canonical folder; raises InputError for what cannot be fetched and files of another form.

    `out_dir` is then as before.
    """
    place = f"data.{Path(out_dir).name}"
    check_spec(spec, place)
    with atomic_path(out_dir, directory=True) as folder:
        if spec["source"] == "git":
            _fetch(spec, folder, place)
        for own in source_files(spec, place):
            shutil.copy(own, folder)
        files = sorted(folder.iterdir())
        for path in files:
            _check(path, f"{place}: {path.name}")
        digests = {path.name: sha256(path) for path in files}
        source = {"spec": dict(spec), "files": digests}
        write_json({"kind": KIND, "source": source, "sha256": digests}, folder / "dataset.json")


def prompt_folder(name: str, data: Mapping[str, Path]) -> Path:
    """The canonical folder of an experiment's prompt files; raises InputError for a name that its `data` lacks."""
    if name not in data:
        raise InputError("prompts", repr(name), "a data set of kind prompt_files, which `data` names, too")
    return data[name]


def _check(path: Path, place: str) -> None:
    try:
        content = read_json(path)
    except ValueError as error:
        raise InputError(place, f"no JSON ({error})", "an official prompt file") from None
    Prompts.from_official(content if isinstance(content, dict) else {}, place)


def _fetch(spec: Mapping[str, Any], folder: Path, place: str) -> None:
    """Put the prompt files of a commit into `folder`."""
    with tempfile.TemporaryDirectory(prefix="reclaim-git-") as repository:
        _git(repository, place, "init", "--quiet", "--bare")
        _git(repository, place, "fetch", "--quiet", "--depth", "1", spec["url"], spec["revision"])
        inside = f"{spec['revision']}:{spec['folder']}"
        listed = _git(repository, f"{place}.folder", "ls-tree", "--name-only", inside).decode().splitlines()
        names = [name for name in NAMES if name in listed]
        if not names:
            raise InputError(f"{place}.folder", f"no prompt file in {spec['folder']!r}", f"files such as {NAMES[0]}")
        for name in names:
            (folder / name).write_bytes(_git(repository, place, "cat-file", "blob", f"{inside}/{name}"))


def _git(repository: str, place: str, *arguments: str) -> bytes:
    """What a Git command writes; it asks for no password, and gives up a connection that stands still for a minute."""
    settings = ("-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=60")
    command = ["git", *settings, f"--git-dir={repository}", *arguments]
    try:
        done = subprocess.run(command, env={**environ, "GIT_TERMINAL_PROMPT": "0"}, capture_output=True)
    except FileNotFoundError:
        raise InputError(place, "no program `git`", "Git, or `source: local` with a copy of the files") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise InputError(
            place, f"git {arguments[0]}: {lines[-1] if lines else done.returncode}", "the commit that the spec names",
            "Check the network and the revision, or copy the files and use `source: local` with their folder as `path`.",
        )  # fmt: skip
    return done.stdout
