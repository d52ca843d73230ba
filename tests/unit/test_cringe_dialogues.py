"""Released formats of dialogue data as prompts with labelled replies."""

import json

import pandas as pd
import pytest

from reclaim.data import load_info, load_split
from reclaim.errors import InputError
from reclaim.sources import check_spec, materialize

NEGATIVE, POSITIVE, UNLABELLED = range(3)


def rows(tmp_path, **spec):
    materialize({"kind": "dialogues", **spec}, tmp_path / "out")
    frame = load_split(tmp_path / "out", "train")
    assert load_info(tmp_path / "out")["rows"]["train"] == len(frame)
    return [tuple(row) for row in frame[["text", "text_pair", "label"]].to_numpy().tolist()]


def local(tmp_path, content, **spec):
    (tmp_path / "file").write_text(content)
    return rows(tmp_path, source="local", files={"train": str(tmp_path / "file")}, **spec)


def test_parlai_lines(tmp_path):
    content = "text:hi\\nyou fool\tlabels:__notok__\tepisode_done:True\n\ntext:a: b\tlabels:__ok__\n"
    content += "text:x\\nDo you want to talk about tea?\tlabels:__ok__\n"
    assert local(tmp_path, content, format="parlai") == [("hi", "you fool", NEGATIVE), ("", "a: b", POSITIVE)]


def test_build_it_break_it(tmp_path):
    texts = {"good": [{"text": "nice", "labels": ["__ok__"]}], "bad": [{"text": "vile", "labels": ["__notok__"]}]}
    content = json.dumps({"adversarial": {"train": {"1": texts}}})
    found = local(tmp_path, content, format="build_it_break_it", task="adversarial")
    assert found == [("", "nice", POSITIVE), ("", "vile", NEGATIVE)]


def test_only_line_feeds_end_a_line(tmp_path):
    content = "text:hi\u2028you\x85fool\tlabels:__notok__\n"
    assert local(tmp_path, content, format="parlai") == [("", "hi\u2028you\x85fool", NEGATIVE)]


def test_a_branch_of_the_hub_is_no_revision():
    spec = {"kind": "dialogues", "source": "hub", "splits": {"train": "train"}, "speakers": ["a"], "id": "b/c"}
    check_spec({**spec, "revision": "0" * 40}, "data.x")
    with pytest.raises(InputError, match="commit"):
        check_spec({**spec, "revision": "main"}, "data.x")


def test_decode_turns(tmp_path):
    lines = [
        {"turns": [{"text": "i have a dog"}, {"text": "nice"}, {"text": "i have no dog"}], "is_contradiction": True},
        {"turns": ["a", "b"], "is_contradiction": False},
    ]
    found = local(tmp_path, "\n".join(map(json.dumps, lines)), format="decode")
    assert found == [("i have a dog\nnice", "i have no dog", NEGATIVE), ("a", "b", POSITIVE)]


def test_dialogue_nli_is_one_list_and_neutral_is_no_contradiction(tmp_path):
    pairs = [("i am tall .", "i am short .", "negative"), ("a", "b", "neutral"), ("c", "c !", "positive")]
    content = [{"id": "x", "sentence1": one, "sentence2": two, "label": label} for one, two, label in pairs]
    expected = [(one, two, NEGATIVE if label == "negative" else POSITIVE) for one, two, label in pairs]
    assert local(tmp_path, json.dumps(content), format="dnli") == expected
    assert local(tmp_path, "\n".join(map(json.dumps, content)), format="dnli") == expected


def test_convai2_lines_begin_anew_at_one(tmp_path):
    content = (
        "1 your persona: i ski .\n2 hi !\thello .\t\tx|y\n3 do you ski ?\ti do .\n1 your persona: i cook .\n2 hey\tyo\n"
    )
    assert local(tmp_path, content, format="convai2") == [
        ("your persona: i ski .\nhi !", "hello .", UNLABELLED),
        ("your persona: i ski .\nhi !\nhello .\ndo you ski ?", "i do .", UNLABELLED),
        ("your persona: i cook .\nhey", "yo", UNLABELLED),
    ]


def test_feedback_says_which_attempts_were_unwanted(tmp_path):
    """Attempts answer the message that began them; each text counts once; feedback and failures leave the history."""

    def bot(text, bucket):
        return {"id": "BB2", "text": text, "improve_bucket": bucket}

    you = [{"id": "YOU", "text": text} for text in ("Who won?", "No.", "Search again.", "Thanks! And who lost?", "Hm.")]
    dialog = [
        you[0], bot("Me.", "better_search_query"), you[1], bot("Me.", "better_others"), you[2],
        bot("Spain\ndid. _POTENTIALLY_UNSAFE__", "perfect"), you[3], bot("You.", "better_search_doc"), you[4],
        bot("Not sure.", "better_others"),
    ]  # fmt: skip
    found = local(tmp_path, json.dumps({"dialog": dialog, "topic": "x"}), format="fits")
    later = "Who won?\nSpain did.\nThanks! And who lost?"
    assert found == [
        ("Who won?", "Me.", NEGATIVE),
        ("Who won?", "Spain did.", POSITIVE),
        (later, "You.", NEGATIVE),
        (later, "Not sure.", POSITIVE),  # the last turn of a dialogue counts as perfect
    ]


def test_turns_of_the_hub_alternate(tmp_path):
    (tmp_path / "copy").mkdir()
    table = pd.DataFrame({"opening": [["o1", "o2"]], "one": [["a", "c"]], "two": [["b"]]})
    table.to_parquet(tmp_path / "copy" / "train.parquet")
    spec = {"source": "hub", "path": str(tmp_path / "copy"), "splits": {"train": "train"}}
    found = rows(tmp_path, **spec, first="opening", speakers=["one", "two"], history_turns=2)
    assert found == [("o1\no2", "a", UNLABELLED), ("o2\na", "b", UNLABELLED), ("a\nb", "c", UNLABELLED)]


def test_bad_input_is_named(tmp_path):
    with pytest.raises(InputError, match="a file of the format decode"):
        local(tmp_path, "{}", format="decode")
    with pytest.raises(InputError, match="format"):
        check_spec({"kind": "dialogues", "source": "local", "files": {"train": "x"}, "format": "x"}, "data.x")
