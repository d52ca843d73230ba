"""Questions of ALCE with their official JSON fields: from the world, a local file, or the Hub, in one canonical form.

    kind: cited_qa, task: asqa | qampari | eli5
    source: world       seed, worlds: [0, ...], questions (a world), num_names, num_types; passages come with the generator
                        `passages`, of the same seed, worlds and sizes
    source: local       file: a JSON list (or a result file with `data`), as `asqa_eval_gtr_top100.json`
    source: hub         id, revision, file: the file of the repository, member: the JSON within it where it is a tar
                        (princeton-nlp/ALCE-data has one, ALCE-data.tar)
    limit: N            a sample of N questions, drawn with seed 0

Fields of an item (Gao et al. 2023, section 2): question, answer, and `qa_pairs` and `annotations` (ASQA), `answers`
(QAMPARI) or `claims` (ELI5); `docs` where it comes with retrieved passages, each with title, text, and possibly id, score,
summary, extraction, answers_found. All fields are kept as they are. A canonical folder has `test.parquet` (id, question,
world, item: the JSON) and `dataset.json`; `world` is -1 where there is only one.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reclaim.alce.prompts import Item
from reclaim.data_local import expand_path, sha256
from reclaim.data_spec import check_keys
from reclaim.errors import InputError
from reclaim.io import atomic_path, read_json, write_json, write_parquet
from reclaim.seeding import derive
from reclaim.world.passages import TASKS, draw_questions, world_of
from reclaim.world.tables import stream

KIND = "cited_qa"
GOLD = {"asqa": "qa_pairs", "qampari": "answers", "eli5": "claims"}
SOURCES = {
    "world": ({"task", "worlds", "questions", "num_names"}, {"num_types", "seed"}),
    "local": ({"task", "file"}, {"limit"}),
    "hub": ({"task", "id", "revision", "file"}, {"member", "limit"}),
}


def check_spec(spec: Mapping[str, Any], place: str) -> None:
    """Check an entry of `data:` whose kind is `cited_qa` without touching a file; raises InputError."""
    check_keys(spec, place, SOURCES)
    if spec["task"] not in TASKS:
        raise InputError(f"{place}.task", repr(spec["task"]), f"one of {', '.join(TASKS)}")
    for key in ("questions", "num_names", "num_types", "limit"):
        if key in spec and not (type(spec[key]) is int and spec[key] > 0):
            raise InputError(f"{place}.{key}", repr(spec[key]), "a whole number from 1")
    worlds = spec.get("worlds", [0])
    if not isinstance(worlds, list) or not worlds or any(type(world) is not int or world < 0 for world in worlds):
        raise InputError(f"{place}.worlds", repr(worlds), "a list of numbers from 0")


def source_files(spec: Mapping[str, Any], place: str) -> list[str]:
    """The user's own file behind a local data set; raises InputError for one that is not there."""
    if spec["source"] != "local":
        return []
    path = expand_path(spec["file"], f"{place}.file")
    if not path.is_file():
        raise InputError(f"{place}.file", f"no file {path}", "a file", "Correct the path.")
    return [str(path)]


def materialize(spec: Mapping[str, Any], out_dir: str | Path) -> None:
    """Write the questions that `spec` describes as a canonical folder; raises InputError for items without their fields."""
    out_dir = Path(out_dir)
    place = f"data.{out_dir.name}"
    check_spec(spec, place)
    items, files = _read(spec, place)
    rows = []
    for number, (world, item) in enumerate(items):
        check_item(item, spec["task"], f"{place}, item {number}")
        text = json.dumps(item, ensure_ascii=False, sort_keys=True)
        rows.append({"id": f"test-{number}", "question": item["question"], "world": world, "item": text})
    if not rows:
        raise InputError(place, "no questions", "at least one")
    with atomic_path(out_dir, directory=True) as folder:
        write_parquet(pd.DataFrame(rows), folder / "test.parquet")
        info = {
            "kind": KIND,
            "task": spec["task"],
            "source": {"spec": dict(spec), "files": files},
            "rows": {"test": len(rows)},
            "sha256": {"test.parquet": sha256(folder / "test.parquet")},
        }
        write_json(info, folder / "dataset.json")


def _read(spec: Mapping[str, Any], place: str) -> tuple[Sequence[tuple[int, Item]], dict[str, str]]:
    """Pairs of world and item, and checksums of the files they come from."""
    if spec["source"] == "world":
        return list(_of_worlds(spec)), {}
    if spec["source"] == "local":
        (path,) = source_files(spec, place)
        content, files = _parse(Path(path).read_bytes(), path), {spec["file"]: sha256(Path(path))}
    else:
        content, files = _from_hub(spec, place)
    items = content["data"] if isinstance(content, dict) and "data" in content else content
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise InputError(place, type(items).__name__, "a JSON list of items, or a result file with `data`")
    if spec.get("limit", len(items)) < len(items):
        chosen = np.random.default_rng(derive(0, "limit")).choice(len(items), spec["limit"], replace=False)
        items = [items[place] for place in np.sort(chosen)]
    return [(-1, item) for item in items], files


def _of_worlds(spec: Mapping[str, Any]) -> Iterator[tuple[int, Item]]:
    for number in spec["worlds"]:
        seed = spec.get("seed", 0)
        world = world_of(seed, number, spec["num_names"], spec.get("num_types", 3))
        rng = stream(seed, "questions", spec["task"], number)
        yield from ((number, item) for item in draw_questions(world, spec["task"], spec["questions"], rng))


def _parse(content: bytes, place: str) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise InputError(place, f"no JSON ({error})", "a JSON list of items") from None


def _from_hub(spec: Mapping[str, Any], place: str) -> tuple[Any, dict[str, str]]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        path = Path(hf_hub_download(spec["id"], spec["file"], repo_type="dataset", revision=spec["revision"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        remedy = "Without network, download the file elsewhere and use `source: local`."
        raise InputError(
            f"{place}.id", str(error).splitlines()[0], "a reachable data set of the Hub", remedy
        ) from error
    content = path.read_bytes() if "member" not in spec else _member(path, spec["member"], f"{place}.member")
    return _parse(content, place), {spec["file"]: sha256(path)}


def _member(path: Path, name: str, place: str) -> bytes:
    """One file of a tar, read without unpacking anything."""
    with tarfile.open(path) as archive:
        try:
            stream = archive.extractfile(name)
        except KeyError:
            stream = None
        if stream is None:
            files = [each for each in archive.getnames() if each.endswith(".json")]
            raise InputError(place, repr(name), f"a file of {path.name}: {', '.join(files[:10])}")
        return stream.read()


def check_item(item: Mapping[str, Any], task: str, place: str) -> None:
    """Raise InputError unless an item has the fields of its task, in the official form."""
    for key in ("question", "answer"):
        if not isinstance(item.get(key), str):
            raise InputError(f"{place}: {key}", repr(item.get(key)), "a text")
    gold = item.get(GOLD[task])
    if not isinstance(gold, list):
        raise InputError(f"{place}: {GOLD[task]}", repr(gold), f"the list that items of {task} have")
    for entry in gold:
        aliases = entry.get("short_answers") if task == "asqa" and isinstance(entry, dict) else entry
        texts = [aliases] if task == "eli5" else aliases
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise InputError(f"{place}: {GOLD[task]}", repr(entry)[:80], "texts as in the official files")
    for document in item.get("docs", []):
        if not isinstance(document, dict) or not all(isinstance(document.get(key), str) for key in ("title", "text")):
            raise InputError(f"{place}: docs", repr(document)[:80], "documents with title and text")


def load_items(folder: str | Path, world: int | None = None) -> list[Item]:
    """The items of a canonical folder, each with its `id`; of one world where the folder has several.

    Raises InputError for a folder of another kind and for a world that it lacks.
    """
    info = read_json(Path(folder) / "dataset.json")
    if info["kind"] != KIND:
        raise InputError(str(folder), f"kind {info['kind']}", KIND)
    frame = pd.read_parquet(Path(folder) / "test.parquet")
    worlds = frame["world"].unique().tolist()
    if worlds != [-1] and world is not None:
        if world not in worlds:
            raise InputError(f"{folder}: worlds", str(worlds), f"one numbered {world}, the seed of the job")
        frame = frame[frame["world"] == world]
    return [{"id": name, **json.loads(text)} for name, text in zip(frame["id"], frame["item"], strict=True)]


def task_of(folder: str | Path) -> str:
    """The task of a canonical folder."""
    return read_json(Path(folder) / "dataset.json")["task"]
