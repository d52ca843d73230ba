"""claims.yaml against the experiments of ALCE and FILM, and the paper's of convqa: each claim finds its arms, and they pair."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from snakemake.common.configfile import load_configfile

import hub_copies
from reclaim import tables
from reclaim.alce.experiment import PER_ITEM, SCORINGS
from reclaim.alce.systems import arms_of
from reclaim.claims import decide, load_claims
from reclaim.film.attack import rule_label
from reclaim.film.attackers import ATTACKERS
from reclaim.film.defences_experiment import defences
from reclaim.plan import make_plan

ROOT = Path(__file__).parents[2]
METRICS = (*PER_ITEM, "mauve", "unsupported_statements", "agreement_recall_accuracy", "agreement_precision_accuracy")
RECALL = {"bm25": 0.4, "dpr": 0.4, "oracle": 0.9}
CLAIMS = load_claims(ROOT / "claims.yaml", ROOT / "schemas" / "claims.schema.json")


def verdicts(overlay, paper, rows_of):
    """What the paper's claims come to on made-up rows of all its experiments in an overlay."""
    config = hub_copies.overlay(overlay) if overlay else load_configfile(ROOT / "config.yaml")
    chosen = [name for name in [*config["run"], *config.get("on_request", [])] if name.startswith(f"{paper}/")]
    plan, rng = make_plan(config, chosen), np.random.default_rng(0)
    metrics, items = [], []
    for name, spec in plan.measurements.items():
        for seed in spec["seeds"]:
            base = {"paper": paper, "experiment": name.partition("/")[2], "seed": seed}
            for variant, metric, value in rows_of(spec, config):
                key = {**base, "variant": variant, "metric": metric}
                values = value * rng.normal(1, 0.001, 5)
                metrics.append({**key, "value": values.mean(), "n": 5, "unit": "fraction"})
                items += [{**key, "item": f"{seed} {i}", "value": value} for i, value in enumerate(values)]
    seeds = {tuple(name.split("/")): list(own) for name, own in plan.seeds.items()}
    claims = [claim for claim in CLAIMS if claim.paper == paper]
    found = decide(claims, tables.frame(metrics, "metrics"), tables.frame(items, "items"), None, seeds)
    return found.set_index("claim")


def rows_of_alce(spec, config):
    task = config["data"][spec["questions"]]["task"]
    for name in spec["retrievers"]:
        yield {"task": task, "retriever": name}, "answer_recall_at_5", RECALL.get(name, 0.6)
    named = {"generator": spec["generator"]["model"]} if "model" in spec["generator"] else {}
    judges = ("model", "exact") if "passages" in spec and "model" not in spec["generator"] else ("model",)
    for arm in arms_of(spec["systems"]):
        for judge in judges:
            for scoring in SCORINGS:
                variant = {"task": task, **named, **arm.variant, "judge": judge, "scoring": scoring}
                yield from ((variant, metric, 0.05 if arm.system == "shuffled" else 0.8) for metric in METRICS)


def rows_of_convqa(spec, config):
    for family in spec["families"]:
        own = {"reader": f"{family}-1", "family": family, "snapshot": 1, "history": "no" not in family}
        yield own, "changed_by_own_history", 0.0
        for protocol in spec["protocols"]:
            yield from (({**own, "protocol": protocol}, name, 0.5) for name in ("f1", "flagged_f1", "invalid_share"))


def rows_of_film(spec, config):
    if spec["kind"] == "film":
        yield from rows_of_attack(spec)
        return
    for defence in defences(spec["defences"]):
        own = {"defence": defence.name, "strength": defence.strength}
        yield from ((own, metric, 0.9) for metric in ("gain_kept", "heldout_loss", "private_loss"))
        for attacker in ATTACKERS:
            arm = {**own, "attacker": attacker, "batch_size": spec["attack"]["batch_size"]}
            yield from ((arm, metric, 0.9) for metric in ("bag_f1", "excess_rouge_L"))
    yield {"defence": "untrained", "strength": 0}, "heldout_loss", 2.5
    for defence in defences(spec["span"]["defences"]):
        own = {"defence": defence.name, "strength": defence.strength}
        for ratio in spec["span"]["ratios"]:
            yield from (
                ({**own, "input_ratio": ratio, "attacker": name}, "bag_f1", 0.9)
                for name in ("strongest", "whole_vocabulary")
            )
    yield {"defence": "freeze", "strength": 0, "attacker": "strongest", "batch_size": 1}, "exact_match", 0.95
    for ratio in spec["average"]["ratios"]:
        yield {"defence": "mezo", "strength": 1, "attacker": "average", "scalar_ratio": ratio}, "bag_f1", 0.5
    yield {"defence": "mezo", "strength": 1, "attacker": "average"}, "scalar_gap", 0.01
    yield {"defence": "mezo", "strength": 1, "attacker": "candidates"}, "picked", 0.95
    for name in ("film", *spec["rivals"]["methods"]):
        yield {"defence": "none", "strength": 0, "attacker": name, "comparison": "rivals"}, "rouge_L", 0.5


def rows_of_attack(spec):
    sizes = [each["batch_size"] for each in spec["batches"]]
    iteration, reordering = spec.get("iteration", {"stages": ()}), spec.get("reordering", {"stages": ()})
    for (model, entry), stage in itertools.product(spec["models"].items(), spec["stages"]):
        own = {"model": model, "data": spec["private"]["data"], "stage": stage}
        yield own, "private_loss", 0.9
        for size, rule in itertools.product(sizes, entry["bags"]):
            yield {**own, "batch_size": size, "rule": rule_label(rule), "targets": 1.0}, "bag_f1", 0.5
        for size, arm in itertools.product(sizes, spec["arms"]):
            variant = {**own, "batch_size": size, **arm, "pick": "top1"}
            yield from ((variant, metric, 0.05) for metric in ("rouge_L", "excess_rouge_L", "exact"))
        if stage in iteration["stages"]:
            for size, count in itertools.product(iteration["batch_sizes"], iteration["repetitions"]):
                variant = {**own, "batch_size": size, "search": "iterated", "repetitions": count, "pick": "all"}
                yield variant, "excess_coverage", 0.5
        if stage in reordering["stages"]:
            for start, how in itertools.product(("beam", "random_order"), ("off", "perplexity", "gradient")):
                variant = {**own, "search": "reordered", "start": start, "reorder": how, "pick": "top1"}
                yield variant, "rouge_L", 0.5


@pytest.mark.parametrize("overlay", [None, "overnight", "paper"])
def test_every_claim_on_film_finds_its_arms_in_the_overlay_that_it_names(overlay):
    """Claims on GPT-2 are the paper overlay's, and so are those of the others that no gate of the small world stands before."""
    found = verdicts(overlay, "film", rows_of_film)
    unpaired = [reason for reason in found["reason"] if "another side" in reason or "no row for seeds" in reason]
    assert not unpaired, unpaired
    absent = set(found.index[found["verdict"] == "not_testable"])
    named = set(found.index[found["overlay"] == "paper"])
    if overlay != "paper":
        assert absent == named
    else:
        assert not absent & (named | {"C5a", "T1", "T2", "T3", "X1", "X4", "X8", "X10", "X12"})


@pytest.mark.parametrize(("overlay", "known"), [(None, {""}), ("overnight", {"", "overnight"}), ("paper", {"paper"})])
def test_every_claim_on_alce_finds_its_arms_in_the_overlay_that_it_names(overlay, known):
    found = verdicts(overlay, "alce", rows_of_alce)
    invalid = found[found["verdict"] == "invalid"]
    assert invalid.empty, invalid["reason"].to_dict()
    absent = set(found.index[found["verdict"] == "not_testable"])
    assert absent == set(found.index[~found["overlay"].isin(known)])


def test_claims_on_bert_find_their_arms_in_the_paper_overlay():
    found = verdicts("paper", "convqa", rows_of_convqa)
    own = found[found["overlay"] == "paper"]
    assert set(own.index) == {"C1_bert", "C7_bert", "repair_bert"}
    assert not set(own["verdict"]) & {"not_testable", "invalid"}, own["reason"].to_dict()
