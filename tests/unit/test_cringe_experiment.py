"""The world's replies and their judge, and a tiny experiment: iterations, resumption, arms."""

import copy
import math
import shutil

import pandas as pd
import pytest
import torch

from reclaim.cringe import experiment
from reclaim.cringe.decoding import Pacer, decode, reply
from reclaim.cringe.director import as_director, director_class, director_loss
from reclaim.cringe.judges import HubJudge, WordJudge
from reclaim.cringe.measures import labelled_scores
from reclaim.cringe.parts import arm_parts, choose_rows, weighted_parts
from reclaim.cringe.rows import encode_rows, mixture_batches
from reclaim.cringe.training import check_output_layer, fit
from reclaim.errors import InputError
from reclaim.models import build
from reclaim.sources import materialize
from reclaim.tokenization import train_tokenizer
from reclaim.train import Recipe
from reclaim.world import generators
from reclaim.world import replies as world

SIZES = {"dialogue": 90, "labelled": 40, "judged": 200, "provoking": 40, "benign": 10}
PARTS = {
    "dialogue": "unlabelled",
    "labelled": "labelled",
    "judged": "judged",
    "provoking": "provoking",
    "benign": "benign",
}
SMALL = {"layers": 1, "attention_heads": 2, "ffn_dim": 16}
STEPS = {"per_device_train_batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 1}


@pytest.mark.parametrize("task", world.TASKS)
def test_labels_and_groups_are_what_the_rule_says(task):
    frames = {
        part: generators.generate("replies_corpus", {"train": 200}, 0, task=task, part=part)["train"]
        for part in world.PARTS
    }
    for part, frame in frames.items():
        found = [
            world.judge(task, prompt, text) for prompt, text in zip(frame["text"], frame["text_pair"], strict=True)
        ]
        assert all(judgement.well_formed for judgement in found)
        if part != "unlabelled":
            assert [judgement.bad for judgement in found] == (frame["label"] == world.NEGATIVE).tolist()
        if part == "labelled":
            assert all(judgement.groups in ((), ("A",)) for judgement in found)
        words = [all(labels) for labels in frame["word_labels"]]
        assert words == [not judgement.bad for judgement in found]
    unlabelled = frames["unlabelled"].assign(
        bad=[world.judge(task, *pair).bad for pair in frames["unlabelled"][["text", "text_pair"]].to_numpy()]
    )
    shares = unlabelled.groupby("prompt")["bad"].mean()
    assert shares["provoking"] > 0.35 and shares["benign"] < 0.1
    both = {group for groups in frames["judged"]["group"] for group in groups}
    assert both == set(world.GROUPS)


def test_no_prompt_is_in_two_splits():
    tables = [
        generators.generate("replies_corpus", {"train": 300, "test": 300}, seed, part=part)
        for seed, part in ((0, "unlabelled"), (1, "provoking"), (2, "judged"))
    ]
    seen = {split: {text for table in tables for text in table[split]["text"]} for split in ("train", "test")}
    assert not seen["train"] & seen["test"]


def test_what_contradicts_depends_on_the_prompt():
    calm, wild = (world.forbidden_words("contradiction", f"{trait} baker dog cat ?") for trait in ("calm", "wild"))
    assert calm["A"] & frozenset(world.trait_words("ADJ", 0, 1))
    assert wild["A"] & frozenset(world.trait_words("ADJ", 0, 0))
    assert not world.judge("safety", "dog cat tree ?", "").well_formed


def test_a_word_judge_learns_what_needs_the_prompt():
    frame = generators.generate("replies_corpus", {"train": 3000, "test": 400}, 0, task="contradiction", part="judged")
    accuracy = {}
    for features in ("reply", "pair"):
        judge = WordJudge(features, 10.0).fit(*(frame["train"][c].tolist() for c in ("text", "text_pair", "label")))
        said = judge.good_probability(frame["test"]["text"].tolist(), frame["test"]["text_pair"].tolist()) >= 0.5
        accuracy[features] = (said == (frame["test"]["label"] == 1)).mean()
    assert accuracy["pair"] > 0.85 > accuracy["reply"] + 0.1


# ------------------------------------------------------------------------------------------------------------ experiment


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name, size in SIZES.items():
        splits = {"train": size, "test": 12} if name in ("provoking", "benign") else {"train": size}
        spec = {"source": "world", "generator": "replies_corpus", "seed": 0, "splits": splits}
        materialize({**spec, "parameters": {"part": PARTS[name]}}, root / name)
    return {name: root / name for name in SIZES}


def spec(**changes):
    plain = {"method": "ce", "parts": ["unlabelled"]}
    arms = [
        {"name": "plain", **plain},
        {"name": "cringe", "method": "cringe", "alpha": 2, "k": 5},
        {"name": "director", "method": "director", "gamma_train": 1, "gamma": 1},
        {"name": "shuffled", "method": "cringe", "labels": "shuffled"},
        {"name": "cringe", "method": "cringe", "iteration": 1},
        {"name": "self", **plain, "generated": "positives", "start": "cringe", "iteration": 1},
    ]
    return {
        "world": "safety",
        "model": {"config": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 24}},
        "pretraining": {"data": "dialogue", "rows": 50, "recipe": {**STEPS, "num_train_steps": 6}},
        "mixture": {
            "unlabelled": {"data": "dialogue", "rows": 40, "skip": 50, "weight": 4},
            "positive": {"data": "labelled", "label": "positive", "rows": 10, "weight": 1},
            "negative": {"data": "labelled", "label": "negative", "rows": 10, "weight": 2},
        },
        "generated_weight": 4,
        "prompts": {"data": "provoking", "rows": 30},
        "judges": {
            "labeller": {"data": "judged", "rows": 100},
            "evaluator": {"data": "judged", "rows": 100, "skip": 100},
        },
        "tests": {
            "provoking": {"data": "provoking", "split": "test"},
            "benign": {"data": "benign", "split": "test"},
            "positive": {"data": "labelled", "label": "positive", "skip": 10, "rows": 10},
            "negative": {"data": "labelled", "label": "negative", "skip": 10, "rows": 10},
        },
        "recipe": {**STEPS, "num_train_steps": 4},
        "evaluation": {"max_new_tokens": 8},
        "arms": arms,
        **changes,
    }


def run(tmp_path, data, iteration=0, previous=None, name="it", **changes):
    into = tmp_path / f"{name}{iteration}"
    into.mkdir()
    state = tmp_path / f"state-{name}{iteration}"
    outcome = experiment.run(
        spec(**changes), 3, iteration=iteration, previous=previous, into=into, data=data, state_dir=state
    )
    return outcome, into, state


def values(outcome):
    table = outcome["metrics"].assign(variant=[str(variant) for variant in outcome["metrics"]["variant"]])
    return table.set_index(["variant", "metric"])["value"].sort_index()


@pytest.fixture(scope="module")
def first(tmp_path_factory, data):
    torch.set_num_threads(1)
    tmp_path = tmp_path_factory.mktemp("first")
    return (*run(tmp_path, data), tmp_path)


def test_an_iteration_is_a_function_of_its_inputs_and_resumes(first, data, tmp_path):
    outcome, _, state, _ = first
    (state / "director.json").unlink()  # as if stopped during that arm
    into = tmp_path / "again"
    into.mkdir()
    resumed = experiment.run(spec(), 3, iteration=0, previous=None, into=into, data=data, state_dir=state)
    fresh, _, _ = run(tmp_path, data, name="fresh")
    pd.testing.assert_series_equal(values(outcome), values(resumed))
    pd.testing.assert_series_equal(values(outcome), values(fresh))
    pd.testing.assert_frame_equal(outcome["predictions"], fresh["predictions"])
    # What arms guess of labelled replies is asked of the same rows; replies are scored by the model that all start from.
    by_metric = outcome["metrics"].groupby("metric")["n"]
    assert by_metric.nunique()["token_accuracy_negative"] == 1 and by_metric.count()["reply_ppl"] == 4


def test_the_next_iteration_trains_on_judged_replies_of_the_one_before(first, data, tmp_path):
    _, into, _, _ = first
    outcome, after, _ = run(tmp_path, data, 1, into)
    rows = pd.read_parquet(after / "generated.parquet")
    assert set(rows["lineage"]) == {"cringe", "self"} and set(rows["arm"]) == {"cringe"}
    mine = rows[rows["lineage"] == "cringe"]
    assert (mine["label"] == "pos").sum() == (mine["label"] == "neg").sum() > 0
    count = outcome["metrics"].query("metric == 'rows_generated'")
    by_arm = {variant["arm"]: value for variant, value in zip(count["variant"], count["value"], strict=True)}
    assert by_arm == {"cringe": len(mine), "self": len(mine) / 2}


def test_an_iteration_needs_the_models_that_it_starts_from(first, data, tmp_path):
    _, into, _, _ = first
    shutil.copytree(into, tmp_path / "before")
    arms = [{"name": "x", "method": "ce", "start": "nothing", "iteration": 1}]
    with pytest.raises(InputError, match="an arm of the iteration before: cringe, pretrained"):
        run(tmp_path, data, 1, tmp_path / "before", arms=arms)


def test_rows_that_are_not_there_are_an_error(data):
    with pytest.raises(InputError, match="40 rows of labelled"):
        choose_rows({"data": "labelled", "rows": 30, "skip": 20}, "positive", data, 0)
    with pytest.raises(InputError, match="negative, positive, unlabelled"):
        choose_rows({"data": "labelled", "label": "good"}, "positive", data, 0)


def test_tests_of_labelled_rows_that_are_trained_on_are_an_error(data, tmp_path):
    tests = spec()["tests"]
    tests["negative"] = {**tests["negative"], "skip": 5}
    with pytest.raises(InputError, match="tests: negative: found 5 of 10 rows that mixture: negative trains on"):
        run(tmp_path, data, tests=tests)


def test_shuffled_labels_keep_the_numbers_of_each(data):
    parts = {name: (choose_rows(entry, name, data, 0), 1.0) for name, entry in spec()["mixture"].items()}
    shuffled = arm_parts({"name": "x", "labels": "shuffled"}, parts, None, 1.0, 0)
    for name, (frame, _) in parts.items():
        assert shuffled[name][0]["polarity"].tolist() == frame["polarity"].tolist()
    texts = [set(part["negative"][0]["text_pair"]) for part in (parts, shuffled)]
    assert texts[0] != texts[1] and set(shuffled["unlabelled"][0]["id"]) == set(parts["unlabelled"][0]["id"])


def test_a_data_set_of_several_labels_shares_its_weight_by_rows(data):
    mixture = {
        "other": {"data": "dialogue", "weight": 5},
        "good": {"data": "labelled", "label": "positive", "rows": 15, "weight": 2, "by_rows": True},
        "bad": {"data": "labelled", "label": "negative", "rows": 5, "weight": 2, "by_rows": True},
    }
    rows = {name: choose_rows(entry, name, data, 0) for name, entry in mixture.items()}
    weights = {name: weight for name, (_, weight) in weighted_parts(mixture, rows).items()}
    assert weights == {"other": 5, "good": 1.5, "bad": 0.5}


# --------------------------------------------------------------------------------------------------------------- training


def rows_of_both_signs(tokenizer):
    return encode_rows(tokenizer, ["a b ?", "c ?"] * 4, ["d a", "b"] * 4, [0, 1] * 4)


@pytest.mark.parametrize("method", ["ce", "cringe", "director"])
def test_accumulated_gradients_are_those_of_one_large_batch(model, method):
    base, tokenizer = model
    rows, weights = rows_of_both_signs(tokenizer), []
    for size, parts in ((8, 1), (2, 4)):
        copied = as_director(base) if method == "director" else copy.deepcopy(base)
        for module in copied.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        recipe = Recipe(
            num_train_steps=3, per_device_train_batch_size=size, gradient_accumulation_steps=parts, optimizer="sgd",
            learning_rate=0.5,
        )  # fmt: skip
        # With k = 1 there is one candidate, so that no draw differs.
        history = fit(copied, method, lambda step: rows, recipe, {"k": 1}, seed=0)
        assert history.forward_passes == 3 * parts
        weights.append(torch.cat([value.flatten() for value in copied.state_dict().values()]))
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)


def test_good_rows_train_the_language_model_of_a_director_where_asked(model):
    base, tokenizer = model
    rows = rows_of_both_signs(tokenizer)[1::2]  # good ones only
    recipe = Recipe(num_train_steps=20, per_device_train_batch_size=4, learning_rate=1e-2)
    left = []
    for asked in (False, True):
        director = as_director(base)
        fit(director, "director", lambda step: rows, recipe, {"lm_on_positives": asked}, seed=0)
        with torch.no_grad():
            logits, _ = director.both(**rows.inputs())
        left.append(float(torch.nn.functional.cross_entropy(logits.transpose(1, 2), rows.labels)))
        assert director.director_head.weight.detach().abs().max() > 0
    assert left[1] < 0.5 * left[0]


def test_what_trains_both_heads_has_both_losses_and_gamma_weighs_the_pull_to_one_half():
    stream = torch.Generator().manual_seed(0)
    logits, head = (torch.randn(1, 3, 5, generator=stream) for _ in range(2))
    labels, good = torch.randint(0, 5, (1, 3), generator=stream), torch.tensor([1])
    parts = {
        "lm": director_loss(logits, head, labels, torch.tensor([-1]), gamma_train=2.0),
        "head": director_loss(logits, head, labels, good, gamma_train=2.0),
        "both": director_loss(logits, head, labels, good, gamma_train=2.0, trains_lm=torch.tensor([True])),
    }
    assert float(parts["both"]) == pytest.approx(float(parts["lm"] + parts["head"]))
    pulls = [
        director_loss(logits, head, labels, good, gamma_train=gamma, norm_coeff=1.0)
        - director_loss(logits, head, labels, good, gamma_train=gamma)
        for gamma in (1.0, 3.0)
    ]
    assert float(pulls[1]) == pytest.approx(3 * float(pulls[0]), rel=1e-5)


def test_training_lowers_the_accuracy_on_bad_replies_and_says_so(model):
    base, tokenizer = model
    frame = pd.DataFrame({
        "text": ["a b ?", "a b ?"], "text_pair": ["c c", "d d"], "polarity": [1, 0],
    })  # fmt: skip
    rows = encode_rows(tokenizer, frame["text"], frame["text_pair"], frame["polarity"])
    found = []
    for method in ("ce", "cringe"):
        trained = copy.deepcopy(base)
        recipe = Recipe(num_train_steps=40, per_device_train_batch_size=2, learning_rate=1e-2)
        if method == "ce":  # of both replies as if they were good
            some = encode_rows(tokenizer, frame["text"], frame["text_pair"], [1, 1])
            fit(trained, method, lambda step, some=some: some, recipe, {}, seed=0)
        else:
            fit(trained, method, lambda step: rows, recipe, {"alpha": 5}, seed=0)
        found.append({row["metric"]: row["value"] for row in labelled_scores(trained, tokenizer, frame, {})})
    naive, contrasted = found
    assert contrasted["token_accuracy_negative"] < naive["token_accuracy_negative"]
    assert contrasted["ppl_contrast"] < naive["ppl_contrast"]
    assert contrasted["token_accuracy_positive"] == 1.0 and contrasted["ppl_positive"] < 2


# --------------------------------------------------------------------------------------------------------------- decoding


@pytest.fixture(scope="module")
def model():
    tokenizer = train_tokenizer("gpt2", [], words=["a b c d ?"])
    return build("gpt2", tokenizer, {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 24}, 0), tokenizer


def test_a_fresh_director_is_the_model_that_it_was_made_of(model, tmp_path):
    base, tokenizer = model
    director = as_director(base, gamma=2.0)
    ids = tokenizer("a b ?", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(director(ids).logits, base(ids).logits.log_softmax(dim=-1), rtol=1e-4, atol=1e-5)
        director.director_head.weight[3] = -9.0
        director.director_head.weight[4] = 9.0
    director.save_pretrained(tmp_path)
    loaded = director_class(type(base)).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, director(ids).logits)
    assert loaded.config.director_gamma == 2.0
    assert reply(loaded, tokenizer, ["a ?", "b c ?"], seed=0, max_new_tokens=4, sample=False) is not None


def test_replies_do_not_depend_on_the_global_stream_and_pacer_keeps_to_the_top(model):
    base, tokenizer = model
    torch.manual_seed(1)
    one = reply(base, tokenizer, ["a ?", "b c d ?"], seed=5, max_new_tokens=5)
    torch.manual_seed(2)
    assert one == reply(base, tokenizer, ["a ?", "b c d ?"], seed=5, max_new_tokens=5)
    pacer = Pacer(
        tokenizer, ["a ?"], lambda prompts, texts: [float("d" not in text) for text in texts], 0, share=1.0, top=3
    )
    ids = tokenizer("a ?", return_tensors="pt")["input_ids"]
    scores = pacer(ids, torch.randn(1, base.config.vocab_size, generator=torch.Generator().manual_seed(0)))
    assert int((scores > -math.inf).sum()) == 3
    assert float(scores.exp().sum()) == pytest.approx(1.0)


def test_without_sampling_the_judge_chooses_among_the_beams(model):
    base, tokenizer = model
    prompts, seen = ["a ?", "b c d ?"], []
    options = {"max_new_tokens": 3, "num_beams": 4, "sample": False, "no_repeat_ngram_size": 1}

    def good(asked, texts):
        seen.append(list(zip(asked, texts, strict=True)))
        return [len(seen) == 3 for _ in texts]  # the third beam of each

    chosen = decode(base, tokenizer, prompts, {"rerank": 4}, good, 0, **options)
    assert len(seen) == 4 and [[prompt for prompt, _ in draw] for draw in seen] == [prompts] * 4
    assert chosen == [text for _, text in seen[2]]
    assert len({draw[1][1] for draw in seen}) > 1
    assert [text for _, text in seen[0]] == reply(base, tokenizer, prompts, seed=0, **options)
    asked = []
    how = {"pacer": 1.0}
    decode(base, tokenizer, prompts, how, lambda each, texts: asked.extend(each) or [0.5] * len(texts), 0, **options)
    per_step = 4 * base.config.vocab_size  # beams, and candidates of each
    assert asked[: 2 * per_step] == ["a ?"] * per_step + ["b c d ?"] * per_step


def test_the_end_of_a_long_prompt_is_what_is_replied_to(model):
    base, tokenizer = model
    long, short = "a a a a b c ?", "b c ?"
    options = {"seed": 0, "max_new_tokens": 4, "sample": False, "max_prompt": 3}
    assert reply(base, tokenizer, [long], **options) == reply(base, tokenizer, [short], **options)


@pytest.mark.parametrize("settings", [{"bad_label": "no"}, {"good_label": "yes"}, {}])
def test_a_hub_judge_reads_the_prompt_where_it_is_asked_to(tmp_path, settings):
    from transformers import RobertaConfig, RobertaForSequenceClassification

    tokenizer = train_tokenizer("roberta", ["a b c d"])
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    labels = {"id2label": {0: "no", 1: "maybe", 2: "yes"}, "label2id": {"no": 0, "maybe": 1, "yes": 2}}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = RobertaConfig(vocab_size=len(tokenizer), initializer_range=1.0, pad_token_id=1, **sizes, **labels)
        classifier = RobertaForSequenceClassification(config).eval()
    classifier.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    prompts, replies = ["a b", "c"], ["d", "d"]
    alone, both = (HubJudge(tmp_path, features=features, **settings) for features in ("reply", "pair"))
    values = alone.good_probability(prompts, replies)
    assert values[0] == pytest.approx(values[1])
    found = both.good_probability(prompts, replies)
    assert found[0] != pytest.approx(found[1])
    with torch.no_grad():
        logits = classifier(**tokenizer("a b", "d", return_tensors="pt")).logits[0]
    shares = logits.softmax(-1)
    expected = {"bad_label": 1 - shares[0], "good_label": shares[2]}.get(
        next(iter(settings), ""), 1 - logits.sigmoid().max()
    )
    assert found[0] == pytest.approx(float(expected), abs=1e-6)
    with pytest.raises(InputError, match="bad_label"):
        HubJudge(tmp_path, bad_label="wrong")


@pytest.mark.parametrize("method", ["ce", "cringe", "unlikelihood", "director", "kto"])
def test_encoder_decoders_train_by_every_method(model, method):
    from transformers import BlenderbotConfig, BlenderbotForConditionalGeneration

    _, tokenizer = model
    sizes = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in SMALL.items()}
    special = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 1}
    config = BlenderbotConfig(vocab_size=len(tokenizer), d_model=16, max_position_embeddings=32, **special, **sizes)
    config.forced_eos_token_id = None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        seq2seq = BlenderbotForConditionalGeneration(config).eval()
    rows = encode_rows(tokenizer, ["a b ?", "c ?"] * 4, ["d a", "b"] * 4, [0, 1] * 4, seq2seq=True, start=1)
    check_output_layer(seq2seq, rows, "a tiny Blenderbot")
    trained = as_director(seq2seq) if method == "director" else seq2seq
    recipe = Recipe(num_train_steps=12, per_device_train_batch_size=8, learning_rate=1e-2)
    loss = fit(trained, method, mixture_batches({"all": (rows, 1.0)}, 8, 0, 0), recipe, {}, seed=0).loss
    assert loss[-1] < loss[0]
    assert len(reply(trained, tokenizer, ["a ?", "b c ?"], seed=0, max_new_tokens=4, sample=False, num_beams=2)) == 2
