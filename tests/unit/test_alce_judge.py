"""Judges: one question a distinct pair, answers that survive a stop, the T5 of the paper, the small trained one."""

import json

import numpy as np
import pytest
import reclaim.torchvision_shim  # noqa: F401
import torch
from transformers import T5Config, T5ForConditionalGeneration

from reclaim.alce.judge import CachedJudge, FunctionJudge, T5Judge, agreement, load_judge, pair_key
from reclaim.alce.judge_training import prepare_judge
from reclaim.alce.nli import PairEncoder, build_entailment, premise_sentences
from reclaim.errors import InputError
from reclaim.tokenization import train_tokenizer
from reclaim.world.passages import draw_world, entails
from reclaim.world.support import draw_pairs
from reclaim.world.tables import stream

torch.set_num_threads(1)
PAIRS = [(f"premise {number % 7}", f"claim {number % 3}") for number in range(60)]


class Recorder(FunctionJudge):
    """Counts what it was asked, and can stop after some batches."""

    def __init__(self, stop_after=None):
        super().__init__(lambda premise, hypothesis: (len(premise) + int(hypothesis[-1])) % 2, "recorder")
        self.asked, self.stop_after = [], stop_after

    def probabilities(self, pairs):
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked.append(list(pairs))
        return super().probabilities(pairs)


def test_each_distinct_pair_is_judged_once():
    judge = Recorder()
    cached = CachedJudge(judge, batch_size=8)
    first = cached(PAIRS)
    assert cached(PAIRS[::-1]) == first[::-1]
    asked = [pair for batch in judge.asked for pair in batch]
    assert sorted(asked) == sorted(set(PAIRS))
    assert max(map(len, judge.asked)) <= 8
    assert (cached.requests, cached.judged, cached.batches) == (2 * len(PAIRS), len(set(PAIRS)), len(judge.asked))
    assert first == [bool(judge.function(*pair)) for pair in PAIRS]


def test_answers_survive_a_stop_and_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "answers"
    with pytest.raises(KeyboardInterrupt):
        CachedJudge(Recorder(stop_after=2), path, batch_size=4).probabilities(PAIRS)
    path.write_text(path.read_text() + "0123456789abcdef 0.9", encoding="utf-8")
    second = Recorder()
    found = CachedJudge(second, path, batch_size=4).probabilities(PAIRS)
    assert sum(map(len, second.asked)) == len(set(PAIRS)) - 8
    assert found == CachedJudge(Recorder()).probabilities(PAIRS)
    third = Recorder()
    assert CachedJudge(third, path).probabilities(PAIRS) == found
    assert not third.asked


def test_answers_of_another_judge_are_not_used(tmp_path):
    path = tmp_path / "answers"
    CachedJudge(FunctionJudge(lambda p, h: 1.0, "always"), path)(PAIRS)
    assert not any(CachedJudge(FunctionJudge(lambda p, h: 0.0, "never"), path)(PAIRS))
    assert json.loads(path.read_text().splitlines()[0]) == {"judge": "never"}


def test_keys_do_not_run_into_each_other():
    texts = [("ab", "c"), ("a", "bc"), ("", "abc"), ("abc", ""), ("1\na", "b"), ("a\udc80", "b")]
    assert len({pair_key(*pair) for pair in texts}) == len(texts)


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    tokenizer = train_tokenizer("t5", [" ".join([*(f"w{n}" for n in range(20)), "premise:", "hypothesis:", "1", "0"])])
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2}
    config = T5Config(vocab_size=len(tokenizer), decoder_start_token_id=tokenizer.pad_token_id, **sizes)
    model = T5ForConditionalGeneration(config)
    model.shared.weight.data *= 1.5
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


T5_PAIRS = [
    (" ".join(f"w{(number * step) % 20}" for step in range(1, 3 + number)), f"w{number}") for number in range(9)
]


@pytest.mark.parametrize("over", ["pair", "vocabulary"])
def test_t5_judge_is_one_step_of_generation(t5_folder, over):
    judge = load_judge(t5_folder, over=over)
    assert isinstance(judge, T5Judge)
    batched = judge.probabilities(T5_PAIRS)
    one, zero = judge.tokens
    for (premise, hypothesis), found in zip(T5_PAIRS, batched, strict=True):
        inputs = judge.tokenizer(f"premise: {premise} hypothesis: {hypothesis}", return_tensors="pt")
        options = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        logits = judge.model.generate(**inputs, **options).logits[0][0]
        expected = logits.softmax(-1)[one] if over == "vocabulary" else logits[[one, zero]].softmax(-1)[0]
        assert found == pytest.approx(float(expected), abs=1e-5)
    assert max(batched) > 2 * min(batched) > 1e-5


def test_t5_judge_needs_two_digits_and_a_known_normalisation(t5_folder):
    judge = load_judge(t5_folder)
    with pytest.raises(InputError, match="over"):
        T5Judge(judge.model, judge.tokenizer, "t5", over="odds")
    tokenizer = train_tokenizer("t5", ["w1 w2"])  # has neither digit
    with pytest.raises(InputError, match="first token"):
        T5Judge(judge.model, tokenizer, "t5")
    with pytest.raises(InputError, match="config"):
        load_judge(t5_folder / "nothing")


SPEC = {
    "source": "scratch",
    "worlds": 4,
    "pairs": 800,
    "tasks": ["asqa", "qampari"],
    "num_names": 12,
    "num_types": 2,
    "config": {"hidden_size": 32},
    "training": {"num_train_steps": 100, "per_device_train_batch_size": 64, "learning_rate": 0.02},
    "validation_pairs": 200,
}


def test_small_judge_learns_the_world_and_is_kept(tmp_path):
    cached, rows = prepare_judge(SPEC, 5, data={}, state_dir=tmp_path)
    values = {(row["variant"]["task"], row["metric"]): row["value"] for row in rows}
    assert values["asqa", "judge_accuracy"] > 0.7
    assert values["asqa", "judge_kappa"] > 0.25
    weights = (tmp_path / "judge" / "model.safetensors").read_bytes()
    again, repeated = prepare_judge(SPEC, 5, data={}, state_dir=tmp_path)
    assert repeated == rows
    assert again.judged == 0  # all answers were kept
    fresh, anew = prepare_judge(SPEC, 5, data={}, state_dir=tmp_path / "other")
    assert anew == rows
    assert (tmp_path / "other" / "judge" / "model.safetensors").read_bytes() == weights
    assert (
        cached.judge.name == fresh.judge.name != prepare_judge(SPEC, 6, data={}, state_dir=tmp_path / "6")[0].judge.name
    )


def test_padding_changes_nothing():
    model, tokenizer = build_entailment(["a b c d ( ) ."], 0, hidden_size=8)
    encoder = PairEncoder(tokenizer)
    pairs = [("Title: a\nb c.", "b"), ("", "a b c d"), ("a b c d. d. b a.", "a"), ("Title: zzz\nd.", "zzz d")]
    with torch.inference_mode():
        batched = model(**encoder(pairs)).logits
        alone = torch.cat([model(**encoder([pair])).logits for pair in pairs])
    assert torch.allclose(batched, alone, atol=1e-5)
    assert batched[1] < -1000  # nothing supports anything
    assert encoder([("", "zzz")])["hypothesis_ids"].tolist() == [[tokenizer.unk_token_id]]


def test_sentences_are_read_behind_their_title():
    text = "Title: A (b)\nIts c is d. Its e is f.\nTitle: G\nH."
    assert premise_sentences(text) == ["A (b) Its c is d.", "A (b) Its e is f.", "G H."]
    assert premise_sentences("One. Two") == ["One.", "Two"]


@pytest.mark.parametrize("task", ["asqa", "qampari", "eli5"])
def test_pairs_of_the_world_are_labelled_by_the_exact_judge(task):
    world = draw_world(np.random.default_rng(0), 10, 3)
    pairs, labels = draw_pairs(world, 400, stream(1, "test"), task)
    assert labels == [entails(*pair) for pair in pairs]
    assert 0.15 < np.mean(labels) < 0.6
    assert (pairs, labels) == draw_pairs(world, 400, stream(1, "test"), task)
    assert any(premise.count("Title: ") > 1 for premise, _ in pairs) == (task != "eli5")


def test_agreement_as_the_paper_reports_it():
    found = agreement([True, True, False, False, False], [True, False, False, False, True])
    assert found["accuracy"] == pytest.approx(0.6)
    assert found["kappa"] == pytest.approx((0.6 - 0.52) / 0.48)
    assert found["insufficient_recall"] == pytest.approx(2 / 3)
    assert found["insufficient_precision"] == pytest.approx(2 / 3)
    assert agreement([True], [True]) == {"accuracy": 1.0}
    with pytest.raises(InputError, match="verdicts"):
        agreement([True], [])
