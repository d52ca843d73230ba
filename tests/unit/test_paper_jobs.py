"""Jobs of every system of the paper overlay, end to end through their own code: the overlay's specs, with few rows and steps.

Models and data sets are those of `hub_copies` and `paper_files`: real architectures with random weights, real schemas. Those of
`icl`, `autoseq` and `mezo` are in `test_paper_overlay`.
"""

from __future__ import annotations

import copy
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch

import hub_copies
from reclaim.config import input_names
from reclaim.data import iter_texts
from reclaim.models import load_tokenizer
from reclaim.plan import measurement_parts
from reclaim.pmi import build_vocabulary, count_ngrams, score_ngrams
from reclaim.pretrain import pretrain

CONFIG = hub_copies.overlay()


@pytest.fixture(scope="module", autouse=True)
def quiet():
    torch.set_num_threads(1)


@pytest.fixture
def inputs(folders, fetched):
    """Name -> folder of what a spec reads."""

    def named(spec):
        names = input_names(spec)
        return {name: folders(name) for name in names["data"]} | {name: fetched(name) for name in names["models"]}

    return named


def spec_of(chosen: str) -> dict:
    """What a job of an experiment without parts gets, to be changed."""
    paper, _, name = chosen.partition("/")
    return copy.deepcopy(measurement_parts(CONFIG["experiments"][paper][name])[""])


# ------------------------------------------------------------------------------------------------------------ mlm_masking


def test_every_masking_of_the_study_is_pre_trained(folders, fetched):
    tokenizer = load_tokenizer(fetched("roberta-large"))
    texts = list(iter_texts(folders("wikipedia"), ["train"]))
    counts = count_ngrams((text.split() for text in texts), count_above=1)
    pmi = build_vocabulary(score_ngrams(counts, power=CONFIG["pmi"]["wikipedia"]["power"]), size=60)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    recipe = {
        "num_train_steps": 1,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "warmup_steps": 1,
    }
    done = {}
    for experiment in CONFIG["experiments"]["mlm_masking"].values():
        for block in experiment["checkpoints"]:
            for masking in block["masking"] if block["data"] == "wikipedia" else ():
                model = CONFIG["models"]["large"]
                spec = {
                    "model": {**model, "config": {**model["config"], **small}},
                    "recipe": CONFIG["recipes"][block["recipe"]] | recipe, "masking": masking, "seed": 1,
                }  # fmt: skip
                key = str(masking)
                if key not in done:
                    _, done[key] = pretrain(spec, texts, tokenizer, pmi=pmi)
    assert len(done) > 20 and sum("pmi" in key for key in done) == 2
    for key, record in done.items():
        assert ("none" in key) == (record["loss"] == [])
        assert np.isfinite(record["loss"]).all()
    few, many = (done[str({"scheme": "uniform", "corruption": rate})]["predictions"] for rate in (0.15, 0.8))
    assert many > 4 * few


# ------------------------------------------------------------------------------------------------------------------- film


def small_attack(spec: dict) -> dict:
    spec["private"] |= {"rows": 16, "held_out_rows": 4}
    spec["client"] |= {"per_device_train_batch_size": 8}
    spec["stages"] = {"public": 0, "early": 1, "memorised": 2}
    spec["batches"] = [{"batch_size": 1, "number": 1}, {"batch_size": 4, "number": 1}]
    spec["search"] |= {"max_length": 8, "num_beams": 4, "num_groups": 2}
    spec["iteration"] |= {"batch_sizes": [4], "number": 1, "repetitions": [1, 2]}
    little = {"coarse_steps": 1, "fine_steps": 1, "proposals": 2, "swaps": 2}
    spec["reordering"] |= {"number": 1, "block": 1, **little}
    return spec


@pytest.mark.parametrize("experiment", ["wikitext", "enron"])
def test_gpt2_is_attacked_at_every_stage(inputs, tmp_path, experiment):
    from reclaim.film.experiment import run

    spec = small_attack(spec_of(f"film/{experiment}"))
    outcome = run(spec, 651, data=inputs(spec), state_dir=tmp_path)
    variants = pd.DataFrame(outcome["metrics"]["variant"].map(pd.io.json.ujson_loads).tolist())
    assert set(variants["stage"]) == set(spec["stages"]) and variants["tied"].all()
    attacked = variants[variants["pick"].notna()]
    assert {"iterated", "reordered", *(arm["search"] for arm in spec["arms"])} <= set(attacked["search"])
    assert len(set(variants["rule"].dropna())) == len(spec["models"]["gpt2"]["bags"])


def test_sentences_that_are_public_are_nobodys_secret(folders, tmp_path):
    """Real corpora repeat sentences: those of the public text are left out of the private ones and not an error."""
    from reclaim.film.texts import client_texts

    folder = folders("wikitext-103")
    texts = client_texts(folder, folder, 1, private_rows=4, held_out_rows=2, public_split="dev", max_words=40)
    assert not set(texts.private) & set(texts.public)
    shared = texts.public[0]
    frame = pd.read_parquet(folder / "train.parquet")
    frame.loc[:2, "text"] = shared
    for name in ("dev.parquet", "dataset.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    frame.to_parquet(tmp_path / "train.parquet")
    rows = len(frame) - 3
    every = client_texts(
        tmp_path, tmp_path, 1, private_rows=rows - rows % 2, held_out_rows=rows % 2, public_split="dev", max_words=40
    )
    assert shared not in every.private


def test_gpt2_is_attacked_under_every_defence(inputs, folders, fetched, tmp_path):
    from reclaim.film.defences_experiment import run

    spec = spec_of("film/wikitext_defences")
    for part in ("private", "domain"):
        spec[part] |= {"rows": 16, "held_out_rows": 8}
    spec["client"] |= {"num_train_epochs": 1, "per_device_train_batch_size": 8}
    spec["attack"] |= {"batch_size": 2, "batches": 1, "num_beams": 2, "max_length": 8}
    spec["training"]["recipe"] |= {"num_train_epochs": 1, "per_device_train_batch_size": 8}
    spec["training"]["differences"]["mezo"]["num_train_epochs"] = 1
    # A number of inputs that one sentence has, as texts here are all about as long.
    tokenizer = load_tokenizer(fetched("gpt2"))
    texts = pd.read_parquet(folders("wikitext-103") / "train.parquet")["text"].tolist()
    ((length, _),) = Counter(len(ids) for ids in tokenizer(texts)["input_ids"]).most_common(1)
    width = 16
    spec["span"] = {
        "defences": [{"defence": "freeze"}, {"defence": "lora", "strength": width}], "ratios": [(length - 1) / width],
        "batches": 1, "sentences": 2,
    }  # fmt: skip
    spec["average"] |= {"batch_sizes": [1], "batches": 1, "messages": [1], "law": [1, 16], "ratios": [0.1]}
    spec["candidates"] = {"candidates": 3, "trials": 1}
    few = {"num_steps": 2, "num_starts": 2, "moves_steps": 1, "num_moves": 2}
    spec["rivals"] = {"sentences": 1, "methods": {"dlg": {"num_steps": 2}, "tag": {"num_steps": 2}, "lamp": few}}
    spec["private"]["rows"] = 60
    outcome = run(spec, 71, data=inputs(spec), state_dir=tmp_path)
    metrics = outcome["metrics"]
    found = {(row["defence"], row["strength"]) for row in metrics["variant"]}
    strengths = sum(len(each["strength"]) if isinstance(each.get("strength"), list) else 1 for each in spec["defences"])
    assert len(found - {("untrained", 0), ("lora", width), ("mezo", 1)}) >= strengths - 1
    assert {"bag_f1", "heldout_loss", "epsilon", "picked", "scalars_needed"} <= set(metrics["metric"])


# ----------------------------------------------------------------------------------------------------------------- cringe


@pytest.mark.parametrize("experiment", ["wikitoxic", "wikitoxic_large", "decode", "fits"])
def test_dialogue_models_train_and_are_judged_in_both_iterations(inputs, tmp_path, experiment):
    from reclaim.cringe.experiment import iterations_of, run

    spec = spec_of(f"cringe/{experiment}")
    spec["recipe"] |= {"num_train_steps": 1, "per_device_train_batch_size": 4, "warmup_steps": 1}
    spec["evaluation"] |= {"max_new_tokens": 4}
    spec["evaluation"]["generate"] |= {"num_beams": 4, "min_new_tokens": 2}
    spec["prompts"]["rows"] = 4
    for test in spec["tests"].values():
        test["rows"] = 2
    data = inputs(spec)
    for iteration in range(spec["iterations"]):
        outcome = run(
            spec, 301, iteration=iteration, previous=tmp_path / "0" if iteration else None, into=tmp_path / str(iteration),
            data=data, state_dir=tmp_path / f"state {iteration}",
        )  # fmt: skip
        arms = {arm["name"] for arm in spec["arms"] if iteration in iterations_of(arm)}
        assert {row["arm"] for row in outcome["metrics"]["variant"]} == arms
        assert {"f1", "bad_share", "classifier_accuracy", "benign_ppl"} <= set(outcome["metrics"]["metric"])
        assert ("f1_provoking" in set(outcome["metrics"]["metric"])) == (experiment == "fits")
    if experiment == "wikitoxic":
        # The whole comment is what a model is provoked by, of one line or of several.
        prompts = set(outcome["predictions"]["prompt"])
        comments = set(pd.read_parquet(data["wikitoxic"] / "test.parquet")["text"])
        assert prompts and prompts <= comments


def test_a_comment_is_toxic_that_has_any_of_the_faults(folders):
    raw = pd.read_parquet(next((folders("wikitoxic").parents[1] / "hub" / "wikitoxic").glob("*/test-*.parquet")))
    ours = pd.read_parquet(folders("wikitoxic") / "test.parquet").set_index("id")["label"]
    worst = raw[list(hub_copies.FAULTS)].max(axis=1)
    assert (worst == -1).sum() == 1 and len(ours) == (worst >= 0).sum()
    assert [1 - ours[f"test-{i}"] for i in range(len(raw)) if worst[i] >= 0] == worst[worst >= 0].tolist()
    assert (raw["toxic"] < worst).any()


# ----------------------------------------------------------------------------------------------------------------- convqa


def test_bert_reads_quac_under_every_protocol(inputs, tmp_path):
    from reclaim.convqa.experiment import run

    spec = spec_of("convqa/quac")
    spec["recipe"] |= {"num_train_steps": 2, "per_device_train_batch_size": 2}
    spec["snapshots"] = [2]
    outcome = run(spec, 41, data=inputs(spec), state_dir=tmp_path / "state", iteration=0, into=tmp_path / "kept")
    rows = pd.DataFrame([row for row in outcome["metrics"] if row["metric"] == "f1"])
    protocols = {variant.get("protocol") for variant in rows["variant"]}
    assert set(spec["protocols"]) <= protocols
    assert {path.name.partition("-")[0] for path in (tmp_path / "kept").iterdir()} == {"bert"}


# ------------------------------------------------------------------------------------------------------------------- alce


@pytest.mark.parametrize(
    "experiment", ["asqa_llama_two_chat", "qampari_llama_two_chat", "eli_five_llama_two_chat", "asqa_llama"]
)
def test_questions_are_answered_with_citations(inputs, tmp_path, experiment):
    from reclaim.alce.experiment import run

    spec = spec_of(f"alce/{experiment}")
    spec["generator"]["sampling"] |= {"max_new_tokens": 4}
    spec["systems"] = [{**entry, **({"samples": 2} if "samples" in entry else {})} for entry in spec["systems"]]
    outcome = run(spec, 42, data=inputs(spec), state_dir=tmp_path)
    systems = {name for entry in spec["systems"] for name in np.atleast_1d(entry["system"])}
    assert set(outcome["predictions"]["system"]) == systems
    measured = set(outcome["metrics"]["metric"])
    assert {"citation_recall", "citation_precision"} <= measured
    wanted = {"asqa": {"str_em", "qa_em", "mauve"}, "qampari": {"qampari_recall_5"}, "eli": {"claim_recall", "mauve"}}
    assert wanted[experiment.partition("_")[0]] <= measured


# ----------------------------------------------------------------------------------------------------------------- vision


@pytest.mark.parametrize(
    ("experiment", "arms"),
    [
        ("isic", ["full", "unext", "unet", "transunet", "swin_unet"]),
        ("isic_older", ["no_swin"]),
        ("isic_ablations", ["concat", {"name": "window_4", "model": "full", "window_size": 4}]),
    ],
)
def test_lesions_are_segmented(inputs, tmp_path, experiment, arms):
    from reclaim.vision.segmentation import run

    spec = spec_of(f"stm_unet/{experiment}")
    assert all(arm in spec["arms"] for arm in arms)
    small = CONFIG["experiments"]["stm_unet"]["lesions"]
    spec |= {"arms": arms, "image_size": 64, "network": small["network"], "eval_epochs": 1}
    spec["complexity"]["models"] = []
    spec["recipe"] |= {"num_train_epochs": 1, "per_device_train_batch_size": 4}
    outcome = run(spec, 501, data=inputs({"data": spec["data"]}), device="cpu", state_dir=tmp_path)
    names = {arm if isinstance(arm, str) else arm["name"] for arm in arms}
    scored = {row["variant"].get("model") for row in outcome["metrics"] if row["metric"] == "iou"}
    assert names <= scored
    assert (len(outcome["pictures"]) > 0) == (spec["pictures"] > 0)


@pytest.mark.parametrize("experiment", ["codes", "ablations", "pools"])
def test_digits_are_reduced(inputs, tmp_path, experiment):
    from reclaim.vision.reduction import run

    spec = spec_of(f"transformer_dr/{experiment}")
    spec |= {"sizes": {"train": 60, "validation": 10, "test": 24}, "learning_rates": [1.0e-3]}
    spec["dimensions"] = spec["dimensions"][:1]
    spec["training"] |= {"epochs": 1, "batch_size": 32}
    spec["model"] |= {"embed_dim": 8, "depth": 1, "num_heads": 2}
    left_out = ("tsne", "umap")  # need more rows than there are here, or seconds to be compiled
    spec["methods"] = [method for method in spec["methods"] if method not in left_out]
    outcome = run(spec, 41, data=inputs(spec), device="cpu", state_dir=tmp_path)
    done = {row["variant"].get("ablation", row["variant"]["method"]) for row in outcome["metrics"]}
    assert done == {method if isinstance(method, str) else method["ablation"] for method in spec["methods"]}


@pytest.mark.parametrize("experiment", ["recognition", "recognition_coil"])
def test_faces_and_things_are_recognised(inputs, tmp_path, experiment):
    from reclaim.vision.reduction import run

    spec = spec_of(f"transformer_dr/{experiment}")
    spec |= {"training_images": [3], "dimensions": [2], "learning_rates": [1.0e-3]}
    spec |= {"methods": ["transformer_dr", "pca", "lda"]}
    spec["training"] |= {"epochs": 1}
    spec["model"] |= {"embed_dim": 8, "depth": 1, "num_heads": 2}
    outcome = run(spec, 0, data=inputs(spec), device="cpu", state_dir=tmp_path)
    assert {row["variant"]["method"] for row in outcome["metrics"]} == {*spec["methods"], "raw"}
