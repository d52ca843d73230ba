"""claims.yaml against config.yaml: every claim finds its arms under the names that the plan gives them, and they pair."""

from pathlib import Path

import numpy as np
import pytest
import yaml

import hub_copies
from reclaim import tables
from reclaim.claims import decide, load_claims
from reclaim.plan import checkpoint_variant, make_plan

ROOT = Path(__file__).parents[2]
NEVER = {"C4", "C10", "C11"}


def merged(base, overlay):
    return {**base, **{k: merged(base[k], v) if isinstance(v, dict) and k in base else v for k, v in overlay.items()}}


def planned(overlay=None):
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    if overlay:
        config = merged(config, yaml.safe_load((ROOT / "config" / f"{overlay}.yaml").read_text()))
    return config, make_plan(config)


def rows_of(config, plan):
    """The rows that a run of the plan would write, with made-up values: all gates pass."""
    rng = np.random.default_rng(0)
    metrics, items, costs = [], [], []
    for name, evaluation in plan.evaluations.items():
        base = dict(zip(("paper", "experiment"), name.split("/"), strict=True))
        for job in map(plan.jobs.get, evaluation["jobs"]):
            for arm in job["arms"]:
                variant = arm["variant"]
                metric = config["tasks"][arm["task"]].get("metric", "accuracy")
                trained = variant.get("scheme") != "none" and variant["method"] in ("mezo", "backprop")
                score = 1.0 if variant["method"] == "backprop" and base["paper"] == "mezo" else 0.9 if trained else 0.5
                key = {**base, "variant": variant, "seed": job["seed"]}
                right = (rng.random(50) < (0.0 if "labels" in variant else score)).astype(float)
                metrics.append({**key, "metric": metric, "value": right.mean(), "n": 50, "unit": "fraction"})
                items += [{**key, "metric": metric, "item": str(i), "value": value} for i, value in enumerate(right)]
                if variant["method"] == "zero_shot":
                    metrics.append({**key, "metric": "auc", "value": 0.8, "n": 50, "unit": "fraction"})
        for checkpoint in map(plan.checkpoints.get, evaluation["checkpoints"]):
            variant = {"model": checkpoint["model"], **checkpoint_variant(checkpoint)}
            losses = {name: 3.5 + rng.normal(0, 0.01) for name in ("pretrain_loss", "held_out_loss")}
            for metric, value in {**losses, "learned_share": 0.95}.items():
                key = {**base, "variant": variant, "seed": checkpoint["seed"]}
                metrics.append({**key, "metric": metric, "value": value, "n": 1, "unit": "nats"})
    for name, spec in plan.measurements.items():
        base = dict(zip(("paper", "experiment"), name.split("/"), strict=True))
        for seed in spec["seeds"]:
            for method in spec.get("methods", []):
                key = {**base, "variant": {"method": method}, "seed": seed, "stage": "memory", "job": "measured"}
                costs.append({**key, "measure": "peak_bytes", "value": 100 + rng.random(), "unit": "bytes"})
            if spec["kind"] == "trajectory":
                for metric, value in (("log_bytes", 0.0), ("max_abs_difference", 0.0), ("max_abs_change", 1.0)):
                    key = {**base, "variant": {"num_steps": spec["num_steps"]}, "seed": seed}
                    metrics.append({**key, "metric": metric, "value": value, "n": 1, "unit": "bytes"})
    return [tables.frame(rows, kind) for rows, kind in ((metrics, "metrics"), (items, "items"), (costs, "costs"))]


def claims_of(*papers):
    claims = load_claims(ROOT / "claims.yaml", ROOT / "schemas" / "claims.schema.json")
    return [claim for claim in claims if claim.paper in papers]


def verdicts(config, plan, *papers):
    seeds = {tuple(name.split("/")): list(chosen) for name, chosen in plan.seeds.items()}
    return decide(claims_of(*papers), *rows_of(config, plan), seeds).set_index("claim")


@pytest.mark.parametrize("overlay", [None, "overnight", "smoke"])
def test_every_claim_finds_its_arms_or_names_the_overlay_that_has_them(overlay):
    result = verdicts(*planned(overlay), "mlm_masking", "mezo")
    invalid = result[result["verdict"] == "invalid"]
    assert invalid.empty, invalid["reason"].to_dict()
    absent = set(result.index[result["verdict"] == "not_testable"])
    if overlay is None:
        assert absent == NEVER | set(result.index[result["overlay"] != ""])
    elif overlay == "overnight":
        assert absent == NEVER
    else:
        # The log of a full run is no log of a smoke run.
        assert absent == NEVER | {"C9a"}
        assert set(result["verdict"]) == {"not_testable", "inconclusive"}


def test_the_paper_overlay_has_the_arms_of_every_claim_on_masking_rates():
    config = hub_copies.overlay()
    plan = make_plan(config, [name for name in config["run"] if name.startswith("mlm_masking/")])
    result = verdicts(config, plan, "mlm_masking")
    lacking = result[result["verdict"].isin(["not_testable", "invalid"])]
    assert lacking.empty, lacking["reason"].to_dict()
    # An overlay adds to what it names: a model of the default's name would keep the default's other settings.
    default = yaml.safe_load((ROOT / "config.yaml").read_text())
    names = {checkpoint["model"] for checkpoint in plan.checkpoints.values()}
    assert not names & set(default["models"])


def test_no_side_of_mezo_takes_in_the_control_with_shuffled_labels():
    result = verdicts(*planned(), "mezo")
    # The control's rows are all 0 here, MeZO's 0.9 and backprop's 1 on average.
    assert result.loc["N1", "estimate"] > 0.2
    assert result.loc["C1", "estimate"] == pytest.approx(-0.1, abs=0.05)
    assert result.loc["C2a", "estimate"] > 0.2
