"""People's judgements of answers: reading the published file, and correlations with automatic scores."""

import json
import os
from pathlib import Path

import pytest

from reclaim.alce.human import run
from reclaim.errors import InputError
from reclaim.io import read_json
from reclaim.sources import materialize


def answer(utility, found, words=3):
    return {
        "id": "q",
        "question": "Why?",
        "output": "word " * words,
        "utility_score": utility,
        "automatic_correctness_scores": found,
    }


def published(systems=3, questions=8):
    """Utility rises with correctness, over systems too; length has nothing to do with it."""
    return {
        "asqa": {
            f"system{system}.json": {
                **{
                    f"q{question}": answer(
                        1 + (question + system) % 5,
                        [(question + system) % 5 > place for place in range(4)],
                        2 + question,
                    )
                    for question in range(questions)
                },
                "overall_results": {"str_em": 10.0 * system},
            }
            for system in range(systems)
        }
    }


def made(tmp_path, content, name="judged"):
    path = tmp_path / "file.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    folder = tmp_path / name
    materialize({"kind": "answer_judgements", "source": "local", "file": str(path)}, folder)
    return folder


def metrics(folder, seed=1):
    found = run({}, seed, data={"judged": folder}, state_dir=folder)
    return {(row.variant["score"], row.variant["over"], row.metric): row.value for row in found["metrics"].itertuples()
            if "score" in row.variant}  # fmt: skip


def test_a_score_that_people_follow_correlates(tmp_path):
    found = metrics(made(tmp_path, published()))
    assert found["correctness", "answers", "spearman"] == pytest.approx(1)
    assert found["correctness", "answers of one question", "pearson"] == pytest.approx(1)
    assert found["correctness", "answers", "pearson_low"] <= found["correctness", "answers", "pearson"]
    assert abs(found["length", "answers", "spearman"]) < 0.6
    assert ("length", "answers of one question", "spearman") not in found  # all answers to a question are equally long
    assert ("reported str_em", "systems", "spearman") in found


def test_intervals_are_a_function_of_the_seed(tmp_path):
    folder = made(tmp_path, published())
    assert metrics(folder) == metrics(folder) != metrics(folder, 2)


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("[1", "no JSON"),
        ([1], "mapping"),
        ({"asqa": {"s": {"q": {"output": ""}}}}, "s: q"),
        ({"asqa": {"s": {"q": answer(6, [True])}}}, "utility_score"),
        ({"asqa": {"s": {"q": answer(3, [])}}}, "automatic_correctness_scores"),
        ({}, "no answer"),
    ],
)
def test_a_file_of_another_form_is_refused_and_leaves_nothing(tmp_path, content, place):
    with pytest.raises(InputError, match=place):
        made(tmp_path, content)
    assert not (tmp_path / "judged").exists()


def test_only_the_authors_file_can_be_read(tmp_path):
    with pytest.raises(InputError, match="source"):
        materialize({"kind": "answer_judgements", "source": "world", "file": "x"}, tmp_path / "judged")
    with pytest.raises(InputError, match="no file"):
        materialize({"kind": "answer_judgements", "source": "local", "file": str(tmp_path / "x")}, tmp_path / "judged")


def test_the_published_file_agrees_with_its_own_means(tmp_path):
    """Lengths and correctness by answer, as read here, average to the scores that the authors report for each system."""
    folder = os.environ.get("RECLAIM_DATA")
    path = Path(folder or "") / "alce_human_eval" / "human_eval_utility_completed.json"
    if not folder or not path.is_file():
        pytest.skip("the published judgements are not under RECLAIM_DATA")
    judged = made(tmp_path, path.read_text(encoding="utf-8"))
    overall = read_json(judged / "dataset.json")["overall"]
    table = run({}, 1, data={"judged": judged}, state_dir=tmp_path)["metrics"]
    checked = 0
    for row in table.itertuples():
        if "system" in row.variant and row.metric in ("length", "correctness"):
            scores = overall[row.variant["data_set"]][row.variant["system"]]
            correctness = scores.get("claims_nli", scores["str_em"]) / 100
            assert row.value == pytest.approx(scores["length"] if row.metric == "length" else correctness)
            checked += 1
    assert checked == 2 * sum(map(len, overall.values()))
