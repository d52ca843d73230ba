"""What a result rests on: fingerprints of the code, and a description of the run."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from reclaim.errors import InputError

LIB = Path(__file__).resolve().parents[1]
PACKAGE = "reclaim"

# Modules that start, watch and account for a job and have no part in what it computes. An import of them does not
# count, so that work on them rebuilds nothing; named to `fingerprint`, they count like any other.
MACHINERY = frozenset(
    {f"{PACKAGE}.{name}" for name in ("preload", "preload_parent", "job", "device", "provenance", "seals")}
    | {"_standalone"}
)


def fingerprint(*names: str, lib: Path = LIB) -> str:
    """A hash over modules ("reclaim.film") and scripts ("scripts/pretrain.py"), and what they import of the package.

    Equal before and after an edit that changes only comments, docstrings or layout: each file counts as its syntax
    tree without bare strings. What counts, transitively: every import statement of the package, wherever it stands
    (also in a function); the `__init__` of the packages on the way, but not what those import for others; modules
    beside a script; a string that is the full name of a module of the package (for `importlib.import_module`); and
    data files, where a string in a module names a file, or a folder without Python files, beside that module or at the
    package's top. A name that is put together at run time is not seen: name such a module in the call.

    `lib` is the import root; scripts are relative to the folder above it. Raises InputError for a name that is not
    there, and for a file that is not Python.
    """
    lib = Path(lib).resolve()
    found: dict[str, str] = {}
    pending = [_resolve(name, lib) for name in names]
    followed = set()
    while pending:
        path = pending.pop()
        if path in followed:
            continue
        followed.add(path)
        source = _read(path)
        found[path] = source.digest
        folder = os.path.dirname(path)
        inside = os.path.commonpath([folder, lib / PACKAGE]) == str(lib / PACKAGE)
        package = os.path.relpath(folder, lib).split(os.sep) if inside else []
        imported = _imported(source, package) - MACHINERY
        for name in imported:
            beside = os.path.join(folder, f"{name}.py")
            if file := _module_file(name, lib):
                pending.append(file)
            elif not inside and os.path.isfile(beside):
                pending.append(beside)
        for parts in [name.split(".")[:-1] for name in imported] + [package]:
            on_the_way = {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
            for file in filter(None, (_module_file(name, lib) for name in on_the_way - MACHINERY)):
                found[file] = _read(file).digest
        if inside:
            for data in _data_files(source.strings, (folder, str(lib / PACKAGE))):
                found[data] = hashlib.sha256(Path(data).read_bytes()).hexdigest()
    total = hashlib.sha256()
    for name, digest in sorted((os.path.relpath(path, lib.parent), digest) for path, digest in found.items()):
        total.update(f"{name}\0{digest}\0".encode())
    return total.hexdigest()[:24]


def _resolve(name: str, lib: Path) -> str:
    """The file of a module or script that was asked for."""
    path = str(lib.parent / name) if name.endswith(".py") else _module_file(name, lib)
    if not path or not os.path.isfile(path):
        raise InputError(f"fingerprint of {name!r}", "no such module or script", f"one under {lib} or {lib.parent}")
    return path


def _module_file(name: str, lib: Path) -> str | None:
    """The file of a module of the package, None for any other name."""
    if name.partition(".")[0] == PACKAGE:
        base = os.path.join(lib, *name.split("."))
        for path in (f"{base}.py", os.path.join(base, "__init__.py")):
            if os.path.isfile(path):
                return path
    return None


@dataclass(frozen=True)
class _Source:
    """A Python file as far as a fingerprint is concerned: imports as (level, module, names)."""

    digest: str
    imports: tuple[tuple[int, str, tuple[str, ...]], ...]
    strings: frozenset[str]


_SOURCES: dict[str, tuple[tuple[int, int], _Source]] = {}


def _read(path: str) -> _Source:
    status = os.stat(path)
    stamp = (status.st_mtime_ns, status.st_size)
    if path not in _SOURCES or _SOURCES[path][0] != stamp:
        try:
            tree = ast.parse(Path(path).read_bytes(), filename=path)
        except SyntaxError as error:
            raise InputError(path, f"a syntax error ({error})", "Python") from None
        text: list[str] = []
        imports: list[tuple[int, str, tuple[str, ...]]] = []
        strings: set[str] = set()
        _write_out(tree, text, imports, strings)
        digest = hashlib.sha256("\n".join(text).encode("utf-8", "surrogatepass")).hexdigest()
        _SOURCES[path] = stamp, _Source(digest, tuple(imports), frozenset(strings))
    return _SOURCES[path][1]


# What follows from the rest of the tree, or has no meaning at run time.
_LEFT_OUT = {"ctx", "kind", "type_comment", "type_ignores"}


def _write_out(node: ast.AST, text: list[str], imports: list, strings: set[str]) -> None:
    """Append a syntax tree to `text`, without bare strings, and collect its imports and strings."""
    kind = type(node).__name__
    text.append(f"{kind}(")
    if isinstance(node, ast.Constant):
        text.append(repr(node.value))
        if isinstance(node.value, str) and 0 < len(node.value) < 100:
            strings.add(node.value)
    else:
        for field in node._fields:
            value = getattr(node, field, None)
            if field in _LEFT_OUT:
                continue
            if isinstance(value, ast.AST):
                _write_out(value, text, imports, strings)
            elif isinstance(value, list):
                text.append("[")
                for each in value:
                    if not isinstance(each, ast.AST):
                        text.append(repr(each))
                    elif not _is_bare_string(each):
                        _write_out(each, text, imports, strings)
                text.append("]")
            else:
                text.append(repr(value))
    text.append(")")
    if isinstance(node, ast.Import):
        imports += [(0, alias.name, ()) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        imports.append((node.level, node.module or "", tuple(alias.name for alias in node.names)))


def _is_bare_string(node: ast.AST) -> bool:
    """A docstring, or a string that documents an attribute."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _imported(source: _Source, package: list[str]) -> set[str]:
    """Full names of what a file of `package` (empty for a script) may import; some may be no modules."""
    names = {text for text in source.strings if re.fullmatch(rf"{PACKAGE}(\.\w+)+", text)}
    for level, module, attributes in source.imports:
        base = module
        if level and package:
            base = ".".join(package[: len(package) - level + 1] + ([module] if module else []))
        names.add(base)
        names.update(f"{base}.{attribute}" for attribute in attributes)
    return names


def _data_files(strings: frozenset[str], places: tuple[str, str]) -> Iterator[str]:
    """Files, other than Python, that the strings name in one of the places: themselves or by their folder."""
    for place in set(places):
        entries = {name for name in os.listdir(place) if not name.endswith(".py")}
        for text in strings:
            if text.partition("/")[0] not in entries or ".." in text or "\0" in text:
                continue
            path = Path(place, text)
            if path.is_file() and path.suffix != ".py":
                yield str(path)
            elif path.is_dir() and not any(path.glob("*.py")):
                yield from (str(each) for each in path.rglob("*") if each.is_file() and each.suffix != ".pyc")


def pins_digest(pyproject: str | Path) -> str:
    """A hash of the pinned versions in a pyproject.toml: results may change with them, and its other lines do not count."""
    with open(pyproject, "rb") as file:
        pins = tomllib.load(file)["project"]["dependencies"]
    return hashlib.sha256("\n".join(sorted(pins)).encode()).hexdigest()[:8]


def run_manifest(config: dict[str, Any]) -> dict[str, Any]:
    """Describe this run for the report: what ran, on what, from which code, under which configuration.

    `versions`: Python and the installed version of every distribution that this project pins; `git_commit` (None
    outside a repository) and `git_dirty`; `machine`: `cpu`, `cores` (that this process may use), `ram_bytes`, `gpus`
    (names), `os`; `ended`: now, ISO 8601 in UTC; `config`: the configuration as YAML.
    """
    commit = _git("rev-parse", "HEAD")
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "git_commit": commit,
        "git_dirty": bool(commit) and bool(_git("status", "--porcelain", "--untracked-files=no")),
        "machine": {
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "ram_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "gpus": _gpus(),
            "os": platform.platform(),
        },
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": yaml.safe_dump(config, sort_keys=True, allow_unicode=True),
    }


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for requirement in importlib.metadata.requires(PACKAGE) or []:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        if "extra ==" not in requirement:
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                versions[name] = None
    return versions


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(LIB), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    """Names of the machine's NVIDIA GPUs: from torch where the process has it, else from the driver."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    names = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        names += re.findall(r"^Model:\s*(.+)$", path.read_text(), flags=re.MULTILINE)
    return names
