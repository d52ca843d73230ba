"""People's judgements of the utility of answers, in the JSON that the authors of ALCE (Gao et al. 2023) published.

    kind: answer_judgements, source: local, file: human_eval_utility_completed.json

The file: data set -> system's result file -> question's id -> `question`, `output`, `utility_score` (1 to 5) and
`automatic_correctness_scores` (for each short answer or claim whether it was found); beside the questions an entry
`overall_results` with the system's automatic scores. A canonical folder has `test.parquet`, one row an answer (data_set,
system, question_id, question, output, utility, correctness: the mean of the automatic scores), and `dataset.json`, where the
overall scores are under `overall`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from reclaim.data_local import expand_path, sha256
from reclaim.errors import InputError
from reclaim.io import atomic_path, write_json, write_parquet

KIND = "answer_judgements"
OVERALL = "overall_results"


def check_spec(spec: Mapping[str, Any], place: str) -> None:
    """Check an entry of `data:` whose kind is `answer_judgements` without touching a file; raises InputError."""
    if spec.get("source") != "local":
        raise InputError(f"{place}.source", repr(spec.get("source")), "local (the authors' file)")
    keys = set(spec) - {"kind", "source"}
    for key in sorted(keys ^ {"file"}):
        raise InputError(f"{place}.{key}", "an unknown key" if key in keys else "nothing", "the one key `file`")


def source_files(spec: Mapping[str, Any], place: str) -> list[str]:
    """The user's file; raises InputError where it is not there."""
    path = expand_path(spec["file"], f"{place}.file")
    if not path.is_file():
        raise InputError(f"{place}.file", f"no file {path}", "a file", "Correct the path.")
    return [str(path)]


def materialize(spec: Mapping[str, Any], out_dir: str | Path) -> None:
    """Write the judgements as a canonical folder; raises InputError for a file of another form, `out_dir` is as before then."""
    place = f"data.{Path(out_dir).name}"
    check_spec(spec, place)
    (path,) = source_files(spec, place)
    try:
        read = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(path, f"no JSON ({error})", "the authors' JSON file") from error
    rows: list[dict[str, Any]] = []
    overall: dict[str, dict[str, Any]] = {}
    for name, systems in _entries(read, path):
        for system, answers in _entries(systems, f"{path}: {name}"):
            for number, answer in _entries(answers, f"{path}: {name}: {system}"):
                if number == OVERALL:
                    overall.setdefault(name, {})[system] = answer
                else:
                    rows.append(_row(name, system, number, answer, f"{path}: {name}: {system}: {number}"))
    if not rows:
        raise InputError(path, "no answer", "answers with a utility_score")
    with atomic_path(out_dir, directory=True) as folder:
        write_parquet(pd.DataFrame(rows), folder / "test.parquet")
        info = {
            "kind": KIND,
            "rows": {"test": len(rows)},
            "overall": overall,
            "source": {"spec": dict(spec), "files": {path: sha256(Path(path))}},
            "sha256": {"test.parquet": sha256(folder / "test.parquet")},
        }
        write_json(info, folder / "dataset.json")


def _entries(value: Any, place: str):
    if not isinstance(value, dict):
        raise InputError(place, f"a {type(value).__name__}", "a mapping: data set -> system -> question -> answer")
    return value.items()


def _row(name: str, system: str, number: str, answer: Any, place: str) -> dict[str, Any]:
    """One answer as a row; raises InputError for missing fields and a utility that is no number from 1 to 5."""
    try:
        utility, found = answer["utility_score"], answer["automatic_correctness_scores"]
        texts = {"question": str(answer["question"]), "output": str(answer["output"])}
    except (TypeError, KeyError) as error:
        raise InputError(
            place, f"no {error}", "question, output, utility_score, automatic_correctness_scores"
        ) from None
    if isinstance(utility, bool) or not isinstance(utility, int | float) or not 1 <= utility <= 5:
        raise InputError(f"{place}: utility_score", repr(utility), "a number from 1 to 5")
    if not isinstance(found, list) or not found:
        raise InputError(f"{place}: automatic_correctness_scores", repr(found), "a list of at least one score")
    key = {"data_set": name, "system": system, "question_id": number}
    return key | texts | {"utility": float(utility), "correctness": sum(map(float, found)) / len(found)}
