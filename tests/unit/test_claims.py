import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from reclaim import tables
from reclaim.claims import COLUMNS, decide, load_claims
from reclaim.claims_yaml import parse_claims
from reclaim.errors import InputError

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "schemas" / "claims.schema.json").read_text())
T, B = {"method": "new"}, {"method": "old"}
SEEDS = [101, 102, 103, 104]


def claim(kind="superior", **fields):
    text = {"claim": "A", "statement": "New beats old.", "source": "Table 1", "paper_value": "3 points"}
    sides = {} if kind == "bound" else {"baseline": B}
    return {**text, "kind": kind, "experiment": "main", "metric": "accuracy", "treatment": T, **sides, **fields}


def parse(*entries, paper="paper"):
    return parse_claims(yaml.safe_dump({paper: list(entries)}), SCHEMA)


def rows(values, variant, metric="accuracy", experiment="main", unit="fraction", seeds=None):
    """Metric rows of one arm: one value a seed."""
    return [
        {
            "paper": "paper",
            "experiment": experiment,
            "variant": variant,
            "seed": seed,
            "metric": metric,
            "value": value,
            "n": 10,
            "unit": unit,
        }
        for seed, value in zip(seeds or range(101, 101 + len(values)), values, strict=True)
    ]


def run(entry, *parts, **others):
    metrics = tables.frame([row for part in parts for row in part], "metrics")
    return decide(parse(entry), metrics, **others).iloc[0]


def arms(differences, base=0.6, **variant):
    """Two arms whose paired differences are given."""
    old = base + 0.01 * np.arange(len(differences))
    return rows(old + np.array(differences), {**T, **variant}) + rows(old, {**B, **variant})


# -------------------------------------------------------------------------------------------- where the interval lies

TIGHT = np.array([-0.002, 0.001, 0.003, -0.002])


@pytest.mark.parametrize(
    ("kind", "fields", "differences", "verdict"),
    [
        ("superior", {}, 0.05 + TIGHT, "supported"),
        ("superior", {}, TIGHT, "inconclusive"),
        ("superior", {}, -0.05 + TIGHT, "contradicted"),
        ("superior", {"margin": 0.04}, 0.05 + TIGHT, "supported"),
        ("superior", {"margin": 0.06}, 0.05 + TIGHT, "contradicted"),
        ("superior", {"margin": 0.05}, 0.05 + TIGHT, "inconclusive"),
        ("superior", {"contradicted_below": 0.03}, 0.02 + TIGHT, "contradicted"),
        ("superior", {"direction": "lower"}, -0.05 + TIGHT, "supported"),
        ("superior", {"direction": "lower"}, 0.05 + TIGHT, "contradicted"),
        ("not_inferior", {"margin": 0.02}, TIGHT, "supported"),
        ("not_inferior", {"margin": 0.02}, -0.02 + TIGHT, "inconclusive"),
        ("not_inferior", {"margin": 0.02}, -0.05 + TIGHT, "contradicted"),
        ("not_inferior", {"margin": 0.02, "direction": "lower"}, 0.05 + TIGHT, "contradicted"),
        ("equivalent", {"margin": 0.02}, TIGHT, "supported"),
        ("equivalent", {"margin": 0.02}, 0.02 + TIGHT, "inconclusive"),
        ("equivalent", {"margin": 0.02}, 0.05 + TIGHT, "contradicted"),
        ("equivalent", {"margin": 0.02}, -0.05 + TIGHT, "contradicted"),
        ("ratio", {"at_least": 0.95}, TIGHT, "supported"),
        ("ratio", {"at_least": 0.95}, -0.2 + TIGHT, "contradicted"),
        ("ratio", {"at_least": 1.0}, TIGHT, "inconclusive"),
        ("ratio", {"at_most": 1.05}, TIGHT, "supported"),
        ("ratio", {"at_least": 0.9, "at_most": 1.1}, 0.2 + TIGHT, "contradicted"),
        ("bound", {"at_least": 0.6}, 0.1 + TIGHT, "supported"),
        ("bound", {"at_most": 0.6}, 0.1 + TIGHT, "contradicted"),
        ("bound", {"at_least": 0.4, "at_most": 0.8}, TIGHT, "supported"),
        ("bound", {"at_least": 0.615}, TIGHT, "inconclusive"),
    ],
)
def test_the_verdict_is_where_the_interval_lies(kind, fields, differences, verdict):
    result = run(claim(kind, **fields), arms(differences))
    assert result.verdict == verdict
    assert result.low <= result.estimate <= result.high
    assert (result.n_seeds, result.seeds) == (4, "101, 102, 103, 104")
    assert (result.p_value < 0.05) == (verdict != "inconclusive")
    # An estimate exactly on the bound would need endless seeds, if nothing else is assumed.
    assert pd.isna(result.seeds_needed) if verdict != "inconclusive" else result.seeds_needed is not None


def test_the_numbers_are_those_of_the_paired_t_test():
    differences = [0.03, 0.05, 0.01, 0.04]
    result = run(claim(), arms(differences))
    half = 3.182446 * np.std(differences, ddof=1) / 2
    assert result.estimate == pytest.approx(0.0325)
    assert (result.low, result.high) == pytest.approx((0.0325 - half, 0.0325 + half), rel=1e-5)
    assert result.unit == "fraction" and result.treatment == '{"method":"new"}'


def test_columns_are_the_documented_ones_and_survive_parquet(tmp_path):
    entries = [
        claim(),
        claim(claim="N", experiment="absent"),
        {k: claim()[k] for k in ("statement", "source", "paper_value")},
    ]
    entries[2] |= {"claim": "O", "not_testable": "no GPU"}
    result = decide(parse(*entries), tables.frame(arms(TIGHT), "metrics"))
    assert list(result.columns) == list(COLUMNS)
    result.to_parquet(tmp_path / "claims.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "claims.parquet"), result)


# ---------------------------------------------------------------------------------------------- seeds, arms and cells


@pytest.mark.parametrize(("n", "verdict"), [(1, "inconclusive"), (2, "inconclusive"), (3, "supported")])
def test_one_or_two_seeds_never_decide(n, verdict):
    result = run(claim(), arms((0.1 + TIGHT)[:n]))
    assert result.verdict == verdict and result.n_seeds == n
    assert math.isnan(result.p_value) == (n < 3)
    assert math.isnan(result.low) == (n < 2)


def test_two_seeds_decide_only_where_the_claim_says_so():
    equal = rows([0.7, 0.7], T) + rows([0.6, 0.6], B)
    assert run(claim(min_seeds=2), equal).verdict == "supported"
    assert run(claim(), equal).verdict == "inconclusive"
    with pytest.raises(InputError, match="min_seeds"):
        parse(claim(min_seeds=1))


def test_a_seed_on_one_side_only_makes_the_run_invalid():
    result = run(claim(), arms(0.1 + TIGHT)[:-1])
    assert result.verdict == "invalid" and "baseline has no row for seeds 104" in result.reason
    assert math.isnan(result.estimate)


def test_the_seeds_must_be_the_planned_ones():
    planned = {("paper", "main"): SEEDS}
    assert run(claim(), arms(0.1 + TIGHT), seeds=planned).verdict == "supported"
    fewer = run(claim(), arms((0.1 + TIGHT)[:3]), seeds=planned)
    assert fewer.verdict == "invalid" and "104" in fewer.reason
    more = run(claim(), arms(np.append(0.1 + TIGHT, 0.1)), seeds=planned)
    assert more.verdict == "invalid" and "not in the fixed list: 105" in more.reason


@pytest.mark.parametrize("part", [rows([0.5] * 4, T), rows([0.5] * 4, B), []])
def test_an_arm_without_rows_is_not_in_this_run(part):
    result = run(claim(overlay="overnight"), part)
    assert result.verdict == result.holm_decision == "not_testable"
    assert "not in this run" in result.reason and "the overlay overnight has it" in result.reason


def test_a_claim_out_of_reach_says_why():
    entry = {key: claim()[key] for key in ("claim", "statement", "source", "paper_value")}
    result = run({**entry, "not_testable": "needs eight GPUs"}, arms(TIGHT))
    assert (result.verdict, result.reason) == ("not_testable", "needs eight GPUs")
    assert math.isnan(result.margin) and result.n_seeds == 0


def test_open_keys_are_averaged_over_the_same_combinations():
    one, other = arms(0.1 + TIGHT, task="a"), arms(0.3 + TIGHT, base=0.2, task="b")
    result = run(claim(), one, other)
    assert result.estimate == pytest.approx(0.2) and "task" in result.rows
    only_a = run(claim(treatment={**T, "task": "a"}, baseline={**B, "task": "a"}), one, other)
    assert only_a.estimate == pytest.approx(0.1)
    gap = run(claim(), one, [row for row in other if row["variant"]["method"] == "new"])
    assert gap.verdict == "invalid" and '{"task":"b"}' in gap.reason and "baseline" in gap.reason


def test_a_task_counts_once_however_many_rows_it_has():
    several = [r for size in range(3) for r in arms(np.full(4, 0.1), task="a", size=size)]
    result = run(claim(differ_in=["size"]), several, arms(np.full(4, 0.3), base=0.2, task="b", size=0))
    assert result.estimate == pytest.approx(0.2)


def test_keys_that_the_sides_differ_in_by_design_are_named():
    parts = rows(0.7 + TIGHT, {**T, "steps": 500}), rows(0.6 - TIGHT, {**B, "steps": 200})
    assert "differ_in" in run(claim(), *parts).reason
    assert run(claim(differ_in=["steps"]), *parts).verdict == "supported"


def test_arms_of_two_experiments_are_compared():
    here, there = rows(0.7 + TIGHT, T), rows([0.6] * 4, B, experiment="more")
    assert run(claim(), here, there).verdict == "not_testable"
    assert run(claim(experiment=["main", "more"]), here, there).verdict == "supported"


def test_the_best_baseline_is_taken_per_seed():
    old = [{"method": "old", "kind": kind} for kind in "ab"]
    parts = rows([0.9, 0.5, 0.9, 0.5], old[0]) + rows([0.5, 0.9, 0.5, 0.9], old[1]) + rows(0.93 + TIGHT, T)
    best = run(claim(baseline={"best_of": old}), parts)
    assert best.estimate == pytest.approx(0.03) and best.verdict == "supported" and "best per seed" in best.baseline
    lowest = run(claim(baseline={"best_of": old}, direction="lower"), parts)
    assert lowest.estimate == pytest.approx(-0.43)
    missing = run(claim(baseline={"best_of": [*old, {"method": "third"}]}), parts)
    assert missing.verdict == "not_testable" and "third" in missing.reason


def test_what_lies_below_the_best_of_several_but_below_none_of_them_is_not_contradicted():
    old = [{"method": "old", "kind": kind} for kind in "ab"]
    entry = claim(baseline={"best_of": old})
    # Each baseline is 4 points above in two seeds and level in the others: the better one is always 4 points above.
    noise = rows([0.64, 0.6, 0.64, 0.6], old[0]) + rows([0.6, 0.64, 0.6, 0.64], old[1]) + rows(0.6 + TIGHT, T)
    result = run(entry, noise)
    assert result.high < 0 and result.verdict == "inconclusive" and "any one of the baselines" in result.reason
    assert result.p_value > 0.05 and result.seeds_needed > 4
    better = rows(0.64 - TIGHT, old[0]) + rows(0.6 - TIGHT, old[1]) + rows(0.6 + TIGHT, T)
    result = run(entry, better)
    alone = run(claim(baseline=old[0]), better)
    assert result.verdict == alone.verdict == "contradicted"
    assert result.p_value == pytest.approx(2 * alone.p_value)


def test_costs_are_claims_too():
    def cost(method, value, seed):
        base = {"paper": "paper", "experiment": "main", "variant": {"method": method}, "seed": seed, "value": value}
        return {**base, "stage": "memory", "job": "memory", "measure": "peak_bytes", "unit": "bytes"}

    costs = [cost("new", 100.0 + seed, seed) for seed in SEEDS] + [
        cost("old", 1000.0 + 2 * seed, seed) for seed in SEEDS
    ]
    entry = claim("ratio", table="costs", metric="peak_bytes", at_most=0.5)
    result = run(entry, costs=tables.frame(costs, "costs"))
    assert result.verdict == "supported" and result.unit == "ratio" and "measure peak_bytes" in result.rows


def test_a_ratio_needs_a_baseline_above_zero():
    result = run(claim("ratio", at_least=0.5), rows([0.5] * 4, T), rows([0.5, 0.0, 0.5, 0.5], B))
    assert result.verdict == "invalid" and "102" in result.reason


# -------------------------------------------------------------------------------------------- slopes and interactions


def sizes(slope, gap_slope=0.0, noise=TIGHT):
    parts = []
    for step, size in enumerate(["small", "medium", "big"]):
        base = 0.4 + slope * step + noise * (step - 1)
        parts += rows(base, {**B, "size": size})
        parts += rows(base + 0.02 + gap_slope * step + noise * step, {**T, "size": size})
    return parts


OVER = {"key": "size", "values": {"small": 1, "medium": 2, "big": 4}, "scale": "log2"}


def test_the_slope_of_an_arm_and_of_a_difference():
    entry = claim("slope", over=OVER)
    alone = {key: value for key, value in entry.items() if key != "baseline"}
    rising = run({**alone, "treatment": B}, sizes(0.1))
    assert rising.estimate == pytest.approx(0.1) and rising.verdict == "supported"
    assert rising.unit == "fraction per doubling of size"
    assert run({**alone, "treatment": B}, sizes(-0.1)).verdict == "contradicted"
    assert run({**alone, "treatment": B, "direction": "lower"}, sizes(-0.1)).verdict == "supported"
    gap = run(entry, sizes(0.1, gap_slope=0.03))
    assert gap.estimate == pytest.approx(0.03) and gap.verdict == "supported"
    assert run({**entry, "test": "equivalent", "margin": 0.01}, sizes(0.1)).verdict == "supported"


def test_a_slope_needs_two_levels():
    part = [row for row in sizes(0.1) if row["variant"]["size"] == "big"]
    assert run(claim("slope", over=OVER), part).verdict == "not_testable"


def test_a_slope_over_numbers_is_that_of_the_numbers():
    parts = [row for rate in (0.2, 0.4, 0.8) for row in rows(0.5 + 0.3 * rate + TIGHT, {**T, "rate": rate})]
    entry = claim("slope", over={"key": "rate", "values": [0.2, 0.4, 0.8]})
    del entry["baseline"]
    assert run(entry, parts).estimate == pytest.approx(0.3)


def test_an_interaction_is_a_difference_of_differences():
    parts = arms(0.1 + TIGHT, scheme="uniform") + arms(0.04 - TIGHT, scheme="pmi")
    entry = claim("interaction", at={"scheme": "uniform"}, against={"scheme": "pmi"})
    result = run(entry, parts)
    assert result.estimate == pytest.approx(0.06) and result.verdict == "supported"
    turned = run({**entry, "at": entry["against"], "against": entry["at"]}, parts)
    assert turned.estimate == pytest.approx(-0.06) and turned.verdict == "contradicted"
    assert run({**entry, "test": "not_inferior", "margin": 0.02}, parts).verdict == "supported"


# ----------------------------------------------------------------------------------------------- gates, guards, signs

GATE = {"name": "learned", "metric": "share", "where": [T, B], "at_least": 0.85}


def shares(new, old=(0.9,) * 4):
    return rows(list(new), T, "share") + rows(list(old), B, "share")


@pytest.mark.parametrize(
    ("gate", "new", "passes"),
    [
        (GATE, [0.9, 0.9, 0.9, 0.9], True),
        (GATE, [0.9, 0.9, 0.6, 0.9], False),
        ({**GATE, "every": "arm"}, [0.9, 0.9, 0.75, 0.9], True),
        ({**GATE, "every": "seed"}, [0.9, 0.9, 0.6, 0.9], False),
        ({**GATE, "every": "arm"}, [0.6, 0.9, 0.6, 0.9], False),
        ({**GATE, "where": B}, [0.1, 0.9, 0.6, 0.9], True),
        ({"name": "learned", "metric": "share", "where": T, "between": [0.65, 0.95]}, [0.7, 0.94, 0.65, 0.9], True),
        ({"name": "learned", "metric": "share", "where": T, "between": [0.65, 0.95]}, [0.7, 0.97, 0.65, 0.9], False),
        ({"name": "learned", "metric": "share", "where": T, "at_most": 0.8}, [0.7, 0.7, 0.7, 0.9], False),
    ],
)
def test_a_level_gate(gate, new, passes):
    result = run(claim(gates=[gate]), arms(0.1 + TIGHT), shares(new))
    assert result.verdict == ("supported" if passes else "invalid")
    if not passes:
        assert "gate learned" in result.reason and "share is" in result.reason
        assert result.estimate == pytest.approx(0.1) and math.isnan(result.p_value)


def test_a_failed_gate_names_the_run():
    result = run(claim(gates=[GATE]), arms(0.1 + TIGHT), shares([0.9, 0.9, 0.61, 0.9]))
    assert 'share is 0.61 for seed 103 of {"method":"new"}' in result.reason and "from 0.85 up" in result.reason


def test_a_gate_without_rows_fails_unless_it_is_optional():
    assert run(claim(gates=[GATE]), arms(0.1 + TIGHT)).verdict == "invalid"
    skipped = run(claim(gates=[{**GATE, "optional": True}]), arms(0.1 + TIGHT))
    assert skipped.verdict == "supported" and "learned was not checked" in skipped.reason
    partly = run(claim(gates=[{**GATE, "optional": True}]), arms(0.1 + TIGHT), shares([0.9] * 4)[:-1])
    assert partly.verdict == "invalid" and "no row of share for seeds 104" in partly.reason


COMPARE = {"name": "training helps", "treatment": [T, B], "baseline": {"method": "none"}, "mean_at_least": 0.1}


@pytest.mark.parametrize(
    ("gate", "none", "verdict"),
    [
        (COMPARE, [0.3] * 4, "supported"),
        (COMPARE, [0.6] * 4, "invalid"),
        ({**COMPARE, "low_above": 0.0}, [0.3] * 4, "supported"),
        ({**COMPARE, "low_above": 0.0}, [0.7, 0.0, 0.7, 0.0], "invalid"),
        ({**COMPARE, "low_above": 0.0}, [0.3] * 3, "invalid"),
        (COMPARE, [0.3] * 3, "supported"),
        ({**COMPARE, "low_above": 0.0, "optional": True}, [0.3] * 3, "invalid"),
        ({**COMPARE, "low_above": 0.0}, [], "invalid"),
        ({**COMPARE, "low_above": 0.0, "optional": True}, [], "supported"),
        ({**COMPARE, "of": "ratio", "mean_at_least": 1.5}, [0.3] * 4, "supported"),
        ({**COMPARE, "of": "ratio", "mean_at_least": 2.5}, [0.3] * 4, "invalid"),
    ],
)
def test_a_comparison_gate(gate, none, verdict):
    result = run(claim(gates=[gate]), arms(0.1 + TIGHT), rows(none, {"method": "none"}))
    assert result.verdict == verdict
    assert ("training helps" in result.reason) == (verdict == "invalid" or not none)


def test_a_null_control_that_shows_an_effect_voids_the_run():
    gate = {"name": "null", "treatment": {"method": "null"}, "baseline": B, "high_below": 0.03}
    null = [row | {"value": row["value"] + 0.01} for row in rows(0.6 + 0.01 * np.arange(4), {"method": "null"})]
    assert run(claim(gates=[gate]), arms(0.1 + TIGHT), null).verdict == "supported"
    effect = [row | {"value": row["value"] + 0.05} for row in null]
    assert run(claim(gates=[gate]), arms(0.1 + TIGHT), effect).verdict == "invalid"


def test_a_failed_level_gate_shows_even_with_one_seed_and_an_interval_is_not_asked_of_it():
    one = rows([0.7], T) + rows([0.6], B)
    assert run(claim(gates=[GATE]), one, rows([0.2], T, "share"), rows([0.9], B, "share")).verdict == "invalid"
    result = run(claim(gates=[{**COMPARE, "low_above": 0.0}]), one, rows([0.3], {"method": "none"}))
    assert result.verdict == "inconclusive" and "1 seed" in result.reason


def test_a_guard_makes_a_supported_claim_inconclusive_and_leaves_a_contradicted_one():
    guard = {"name": "fluent", "metric": "share", "where": T, "every": "arm", "at_least": 0.85}
    held = run(claim(guards=[guard]), arms(0.1 + TIGHT), shares([0.9] * 4))
    broken = run(claim(guards=[guard]), arms(0.1 + TIGHT), shares([0.5] * 4))
    assert (held.verdict, broken.verdict) == ("supported", "inconclusive")
    assert "guard fluent" in broken.reason and pd.isna(broken.seeds_needed)
    assert run(claim(guards=[guard]), arms(-0.1 + TIGHT), shares([0.5] * 4)).verdict == "contradicted"


def test_a_warning_is_a_note():
    result = run(claim(warnings=[GATE]), arms(0.1 + TIGHT), shares([0.5] * 4))
    assert result.verdict == "supported" and "warning: learned" in result.reason


def test_the_least_and_the_largest_effect():
    assert run(claim(min_effect=0.1), arms(0.11 + TIGHT)).verdict == "supported"
    small = run(claim(min_effect=0.1), arms(0.09 + TIGHT))
    assert small.verdict == "inconclusive" and "least effect" in small.reason
    assert run(claim(min_effect=0.1), arms(-0.09 + TIGHT)).verdict == "contradicted"
    near = claim("equivalent", margin=0.05, max_effect=0.03)
    assert run(near, arms(0.02 + TIGHT)).verdict == "supported"
    assert run(near, arms(-0.04 + TIGHT)).verdict == "inconclusive"


def test_every_seed_must_have_the_sign_where_asked():
    uneven = [0.05, 0.06, 0.055, 0.05, 0.06, 0.05, 0.055, -0.001]
    assert run(claim(), arms(uneven)).verdict == "supported"
    signed = run(claim(signs="every_seed"), arms(uneven))
    assert signed.verdict == "inconclusive" and "seeds 108 do not support it" in signed.reason
    assert run(claim(signs={"share": 0.8, "by": "estimate"}), arms(uneven)).verdict == "supported"


# ---------------------------------------------------------------------------------------------- items, exact and Holm


def items(values, variant, seeds=SEEDS, names=None):
    """Item rows of one arm from an array (seeds, items)."""
    base = {"paper": "paper", "experiment": "main", "variant": variant, "metric": "accuracy"}
    return [
        {**base, "seed": seed, "item": names[i] if names else str(i), "value": float(value)}
        for seed, line in zip(seeds, values, strict=True)
        for i, value in enumerate(line)
    ]


def item_run(entry, *parts):
    return run(
        {**entry, "resample": "seeds_and_items"}, items=tables.frame([r for part in parts for r in part], "items")
    )


def test_items_are_resampled_and_paired():
    rng = np.random.default_rng(0)
    old = rng.random((4, 200)) < 0.6
    new = old | (rng.random((4, 200)) < 0.4)
    result = item_run(claim(signs={"share": 0.75, "by": "interval"}), items(new, T), items(old, B))
    assert result.verdict == "supported" and "items.parquet" in result.rows
    assert result.estimate == pytest.approx(new.mean() - old.mean())
    gap = item_run(claim(), items(new, T), items(old[:, 1:], B, names=[str(i) for i in range(1, 200)]))
    assert gap.verdict == "invalid" and "item 0" in gap.reason


def test_a_task_counts_once_however_many_items_it_has():
    large, small = np.ones((4, 30)), np.zeros((4, 3))
    new = items(large, {**T, "task": "a"}) + items(small, {**T, "task": "b"})
    old = items(0 * large, {**B, "task": "a"}) + items(small, {**B, "task": "b"})
    assert item_run(claim(), new, old).estimate == pytest.approx(0.5)


def test_the_best_baseline_is_the_best_over_tasks_not_over_items():
    def arm(name, large, small):
        variant = {"method": "old", "kind": name}
        wide, narrow = np.full((4, 30), large), np.full((4, 3), small)
        return items(wide, {**variant, "task": "a"}) + items(narrow, {**variant, "task": "b"})

    new = items(np.ones((4, 30)), {**T, "task": "a"}) + items(np.ones((4, 3)), {**T, "task": "b"})
    best = claim(baseline={"best_of": [{"method": "old", "kind": kind} for kind in "xy"]})
    result = item_run(best, new, arm("x", 0.5, 0.0), arm("y", 0.0, 0.8))
    assert result.estimate == pytest.approx(0.6)


def test_more_seeds_are_not_asked_for_where_the_test_rows_are_too_few():
    """All seeds agree and are scored on the same rows, of which some say yes and some no: more seeds would find the same."""
    rng = np.random.default_rng(3)
    rows_differ = rng.normal(0.1, 0.5, 30) + rng.normal(0, 0.01, (4, 30))
    result = item_run(claim(), items(rows_differ, T), items(0 * rows_differ, B))
    assert result.verdict == "inconclusive" and result.p_value > 0.05
    assert "more test rows, not more seeds" in result.reason and pd.isna(result.seeds_needed)
    over_seeds = run(claim(), rows(rows_differ.mean(1), T), rows([0.0] * 4, B))
    assert over_seeds.verdict == "supported"
    apart = rng.normal(0.1, 0.01, 30) + rng.normal(0, 0.3, (4, 1))
    result = item_run(claim(), items(apart, T), items(0 * apart, B))
    assert result.verdict == "inconclusive" and result.seeds_needed > 4 and "test rows" not in result.reason


def test_few_items_widen_the_interval():
    # Equal differences in every seed: seeds alone would give an interval of no width.
    new, old = np.tile([1, 1, 1, 0, 1], (4, 1)), np.tile([0, 1, 1, 1, 1], (4, 1))
    few = item_run(claim("equivalent", margin=0.05), items(new, T), items(old, B))
    assert few.verdict == "inconclusive" and few.low < -0.2 and few.high > 0.2 and "more test rows" in few.reason


def test_seeds_may_have_items_of_their_own():
    rng = np.random.default_rng(1)
    parts = []
    for seed in SEEDS:
        names = [f"{seed}-{i}" for i in range(50 + seed - 100)]
        old = rng.random((1, len(names))) < 0.5
        parts += items(old, B, [seed], names) + items(old | (rng.random(old.shape) < 0.5), T, [seed], names)
    assert item_run(claim(), parts).verdict == "supported"


def test_exact_quantities_are_decided_by_their_range():
    size = claim("bound", at_most=100, resample="exact", metric="log_bytes")
    assert run(size, rows([90, 90, 90], T, "log_bytes")).verdict == "supported"
    assert run(size, rows([90, 90, 101], T, "log_bytes")).verdict == "inconclusive"
    assert run(size, rows([101, 102, 103], T, "log_bytes")).verdict == "contradicted"
    zero = claim("bound", at_most=0, resample="exact", metric="log_bytes")
    result = run(zero, rows([0, 0, 0], T, "log_bytes"))
    assert result.verdict == result.holm_decision == "supported" and math.isnan(result.p_value)


def test_holm_is_within_a_paper_and_over_decided_claims():
    weak = [0.01, 0.03, 0.05, 0.03]  # p = 0.028 alone
    entries = [claim(claim=name, experiment=name) for name in "ABC"] + [claim(claim="D", experiment="absent")]
    metrics = [{**row, "experiment": name} for name in "ABC" for row in arms(weak if name == "A" else TIGHT)]
    result = decide(parse(*entries), tables.frame(metrics, "metrics")).set_index("claim")
    assert result.loc["A", "verdict"] == "supported" and result.loc["A", "holm_decision"] == "inconclusive"
    assert result.loc["A", "holm_p"] == pytest.approx(3 * result.loc["A", "p_value"])
    assert math.isnan(result.loc["D", "holm_p"]) and result.loc["D", "holm_decision"] == "not_testable"
    other = parse(claim(experiment="A"), paper="other")
    both = [*metrics, *({**row, "paper": "other"} for row in metrics)]
    pair = decide([*parse(entries[0]), *other], tables.frame(both, "metrics"))
    assert pair["holm_p"].tolist() == pair["p_value"].tolist() and pair["holm_decision"].tolist() == ["supported"] * 2
    alone = decide(parse(entries[0]), tables.frame(metrics, "metrics")).iloc[0]
    assert alone.holm_decision == "supported" and alone.holm_p == alone.p_value


def test_seeds_needed_is_for_the_effect_of_interest():
    wide = [0.06, -0.05, 0.03, 0.0]
    assert run(claim(effect=0.02), arms(wide)).seeds_needed > run(claim(effect=0.05), arms(wide)).seeds_needed > 4
    result = run(claim("not_inferior", margin=0.02), arms(wide))
    sd = np.std(wide, ddof=1)
    assert result.seeds_needed == pytest.approx((2.8 * sd / 0.02) ** 2, rel=0.1)
    assert f"about {result.seeds_needed} seeds would decide" in result.reason
    assert "if there is no true difference" in result.reason
    # The distance is from the effect to the bound, which a margin moves.
    moved = run(claim(margin=0.03, effect=0.05), arms(wide))
    assert moved.seeds_needed == run(claim(effect=0.02), arms(wide)).seeds_needed
    assert "if the true value is 0.05" in moved.reason
    assert "if the true value is the one seen" in run(claim("bound", at_least=0.61), arms(wide)).reason


def test_equal_seeds_decide_with_a_word_of_caution():
    result = run(claim(margin=0.02), arms([0.05] * 4))
    assert (result.verdict, result.low, result.high) == ("supported", result.estimate, result.estimate)
    assert "no certainty" in result.reason and "no certainty" not in run(claim(), arms(0.05 + TIGHT)).reason


# -------------------------------------------------------------------------------------------------------- invariances

DIFFERENCES = st.lists(st.integers(-60, 60).map(lambda x: x / 1000), min_size=3, max_size=6)


@settings(max_examples=12, deadline=None)
@given(DIFFERENCES, st.randoms())
def test_the_order_of_rows_and_claims_does_not_matter(differences, random):
    entries = [claim(), claim("equivalent", claim="B", margin=0.02), claim("ratio", claim="C", at_least=0.95)]
    table = tables.frame(arms(differences), "metrics")
    expected = decide(parse(*entries), table)
    order = random.sample(range(len(table)), len(table))
    turned = decide(parse(*entries[::-1]), table.iloc[order]).iloc[::-1].reset_index(drop=True)
    pd.testing.assert_frame_equal(turned, expected)


@settings(max_examples=12, deadline=None)
@given(DIFFERENCES, st.integers(0, 1000))
def test_exchanging_the_sides_turns_the_sign(differences, seed):
    opposite = {"supported": "contradicted", "contradicted": "supported", "inconclusive": "inconclusive"}
    parts = arms(differences)
    one, other = run(claim(), parts), run(claim(treatment=B, baseline=T), parts)
    assert (other.estimate, other.low, other.high) == pytest.approx((-one.estimate, -one.high, -one.low))
    assert other.verdict == opposite[one.verdict] and other.p_value == pytest.approx(one.p_value)
    lower = run(claim(direction="lower"), parts)
    assert lower.estimate == pytest.approx(-one.estimate) and lower.verdict == other.verdict
    values = np.random.default_rng(seed).random((2, 4, 12)) < 0.6
    sides = items(values[0], T), items(values[1], B)
    one, other = item_run(claim(), *sides), item_run(claim(treatment=B, baseline=T), *sides)
    assert (other.low, other.high) == pytest.approx((-one.high, -one.low)) and other.verdict == opposite[one.verdict]


@settings(max_examples=12, deadline=None)
@given(DIFFERENCES)
def test_better_implies_not_worse_and_rows_of_other_arms_do_not_count(differences):
    parts = arms(differences)
    better, not_worse = run(claim(), parts), run(claim("not_inferior", margin=0.02), parts)
    assert better.verdict != "supported" or not_worse.verdict == "supported"
    assert not_worse.verdict != "contradicted" or better.verdict == "contradicted"
    others = (
        rows([0.1, 0.9, 0.2], {"method": "other"}) + rows([5.0] * 4, T, "loss") + rows([0.0] * 4, T, experiment="x")
    )
    pd.testing.assert_series_equal(run(claim(), parts, others), better)


# --------------------------------------------------------------------------------------------- errors in the long run


def simulated(entry, draw, runs=120, seed=0):
    """Verdicts of one claim over simulated runs with 4 seeds: shares of supported and contradicted."""
    rng = np.random.default_rng(seed)
    frames, entries = [], []
    for index in range(runs):
        for variant, values in draw(rng):
            frames.append((variant, f"e{index}", values))
        entries.append({**entry, "claim": f"C{index}", "experiment": f"e{index}"})
    table = pd.concat(
        pd.DataFrame(
            {"paper": "paper", "experiment": name, "variant": tables.variant_json(v), "seed": SEEDS, "value": x}
        )
        for v, name, x in frames
    ).assign(metric="accuracy", n=10, unit="fraction")
    verdicts = decide(parse(*entries), tables.validate(table, "metrics", "simulated"))["verdict"]
    return (verdicts == "supported").mean(), (verdicts == "contradicted").mean()


def pair(shift, sd=0.02, **keys):
    def draw(rng):
        base = rng.normal(0.6, 0.05, 4)
        old = base + rng.normal(0, sd, 4)
        return [({**T, **keys}, base + shift + rng.normal(0, sd, 4)), ({**B, **keys}, old)]

    return draw


def pairs(*draws):
    return lambda rng: [arm for draw in draws for arm in draw(rng)]


def levels(slope):
    return lambda rng: [({**T, "x": x}, rng.normal(0.5 + slope * x, 0.02, 4)) for x in (1, 2, 3)]


def scaled(ratio):
    def draw(rng):
        base = rng.normal(0.6, 0.05, 4)
        return [(T, base * ratio * (1 + rng.normal(0, 0.03, 4))), (B, base)]

    return draw


def slope_claim():
    return {k: v for k, v in claim("slope", over={"key": "x", "values": [1, 2, 3]}).items() if k != "baseline"}


def level(value):
    return lambda rng: [(T, rng.normal(value, 0.02, 4))]


SEVERAL = [{**B, "kind": kind} for kind in "abcd"]


def several(shift):
    """One treatment against four baselines that are equal but for noise."""

    def draw(rng):
        return [({**T}, rng.normal(0.6 + shift, 0.02, 4)), *((each, rng.normal(0.6, 0.02, 4)) for each in SEVERAL)]

    return draw


INTERACTION = claim("interaction", at={"k": "a"}, against={"k": "b"})
# At the bound, each wrong side may come out in 2.5 % of the runs; 3 Monte Carlo standard errors at 120 runs are 4.3
# points. test_stats.py has more runs of each interval.
SIDE = 0.025 + 0.043


@pytest.mark.parametrize(
    ("entry", "at_the_bound", "beyond", "short_of"),
    [
        (claim(), pair(0.0), pair(0.12), pair(-0.12)),
        (claim("not_inferior", margin=0.03), pair(-0.03), pair(0.08), pair(-0.15)),
        (claim("equivalent", margin=0.1), pair(0.1), pair(0.0), pair(0.25)),
        (claim("ratio", at_least=0.95), scaled(0.95), scaled(1.1), scaled(0.8)),
        (claim("bound", at_least=0.5), level(0.5), level(0.6), level(0.4)),
        (slope_claim(), levels(0.0), levels(0.06), levels(-0.06)),
        (claim(baseline={"best_of": SEVERAL}), several(0.0), several(0.15), several(-0.15)),
        (INTERACTION, pairs(pair(0.05, k="a"), pair(0.05, k="b")), pairs(pair(0.2, k="a"), pair(0.0, k="b")), None),
    ],
    ids=["superior", "not_inferior", "equivalent", "ratio", "bound", "slope", "best_of", "interaction"],
)
def test_false_positives_are_rare_and_effects_are_found(entry, at_the_bound, beyond, short_of):
    supported, contradicted = simulated(entry, at_the_bound)
    assert supported < SIDE and contradicted < SIDE
    supported, contradicted = simulated(entry, beyond, runs=15)
    assert supported > 0.8 and contradicted == 0
    if short_of:
        supported, contradicted = simulated(entry, short_of, runs=15)
        assert contradicted > 0.8 and supported == 0


# -------------------------------------------------------------------------------------------------------- claims.yaml


@pytest.mark.parametrize(
    ("change", "place", "expected"),
    [
        ({"margn": 1}, "margn", "an unknown key"),
        ({"margin": -1}, "margin", "0 or more"),
        ({"margin": "wide"}, "margin", "found 'wide'"),
        ({"kind": "better"}, "kind", "superior, not_inferior"),
        ({"kind": "not_inferior"}, "margin", "no such key"),
        ({"kind": "ratio"}, "", "at_least or at_most"),
        ({"kind": "ratio", "at_least": 1, "resample": "seeds_and_items"}, "resample", "per seed"),
        ({"kind": "slope"}, "over", "no such key"),
        ({"kind": "bound", "at_least": 1}, "baseline", "no such key in this kind"),
        ({"at": {"a": 1}}, "at", "no such key in this kind"),
        ({"baseline": {"best_of": [B]}}, "baseline.best_of", "two or more"),
        ({"baseline": {"best_of": [T, B], "method": "x"}}, "baseline.method", "unknown key"),
        ({"treatment": {"best_of": [T, B]}}, "treatment", "best_of is for the baseline"),
        ({"treatment": {"method": {"no": 1}}}, "treatment.method", "not: ..."),
        ({"signs": "most"}, "signs", "every_seed"),
        ({"signs": {"share": 0.5, "by": "interval"}}, "resample", "no such key"),
        ({"gates": [{"name": "g", "where": T}]}, "gates.0", "at_least, at_most or between"),
        ({"gates": [{"name": "g", "at_least": 1}]}, "gates.0", "no such key"),
        ({"gates": [{"name": "g", "where": T, "at_least": 1, "low_above": 0}]}, "gates.0.low_above", "no such key"),
        ({"gates": [{"name": "g", "where": T, "at_lest": 1}]}, "gates.0.at_lest", "unknown key"),
        ({"not_testable": "no GPU"}, "", "no such key in this kind"),
        ({"overlay": "tomorrow"}, "overlay", "people"),
        ({"resample": "seeds_and_items", "table": "costs"}, "table", "costs have no items"),
    ],
)
def test_a_wrong_claim_is_refused_with_the_path_of_the_key(change, place, expected):
    with pytest.raises(InputError) as error:
        parse({**claim(), **change})
    message = str(error.value)
    assert message.startswith("claims.yaml: paper/A" + (f": {place}" if place else "")), message
    assert expected in message, message


def test_a_missing_key_broken_yaml_and_repeated_names_are_refused():
    entry = claim()
    del entry["metric"]
    with pytest.raises(InputError, match="claims.yaml: paper/A: metric: found no such key"):
        parse(entry)
    with pytest.raises(InputError, match="paper/A: found 2 claims of this name"):
        parse(claim(), claim())
    with pytest.raises(InputError, match="the key 'margin' appears twice"):
        parse_claims("paper:\n  - claim: A\n    margin: 1\n    margin: 2\n", SCHEMA)
    for text in ("paper: [", "- claim", "paper: 3", "Paper: []", "paper:\n  - 3"):
        with pytest.raises(InputError, match="mine.yaml"):
            parse_claims(text, SCHEMA, "mine.yaml")
    with pytest.raises(InputError, match="absent.yaml"):
        load_claims("absent.yaml", ROOT / "schemas" / "claims.schema.json")


# ----------------------------------------------------------------------------------------------- the project's claims


@pytest.fixture(scope="module")
def claims():
    return load_claims(ROOT / "claims.yaml", ROOT / "schemas" / "claims.schema.json")


def test_every_claim_of_the_two_papers_is_there(claims):
    names = {paper: {c.claim for c in claims if c.paper == paper} for paper in ("mlm_masking", "mezo")}
    for number in range(1, 8):
        assert any(name.rstrip("abcde") == f"T{number}" for name in names["mlm_masking"]), number
    for number in range(1, 13):
        assert any(name.rstrip("abcde") == f"C{number}" for name in names["mezo"]), number
    assert all(c.statement.endswith(".") and c.source for c in claims)
    assert [c.claim for c in claims if c.not_testable and c.paper == "mezo"] == ["C4", "C10", "C11"]


def test_an_empty_run_tests_nothing(claims):
    result = decide(claims, tables.empty("metrics"), tables.empty("items"), tables.empty("costs"))
    assert set(result["verdict"]) == {"not_testable"} and (result["n_seeds"] == 0).all()


MLM = {"model": "medium", "recipe": "long", "task": "topics", "method": "backprop", "prompt": False, "steps": 80}


def masked_run(rng, short=None):
    """A run of the default experiment on masking rates, as its rows are written, with scores as measured beforehand."""
    made = []
    for name, rate, mean, loss in (
        ("none", None, 0.42, None),
        ("15", 0.15, 0.70, 3.576),
        ("40", 0.4, 0.70, 3.562),
        ("80", 0.8, 0.715, 3.595),
    ):
        masking = (
            {"scheme": "uniform", "corruption": rate, "prediction": rate, "replacement": "mask"}
            if rate
            else {"scheme": "none"}
        )
        arm = {**MLM, "pretraining": name, **masking, "parameters": "full", "objective": "loss"}
        base = {"paper": "mlm_masking", "experiment": "rates", "n": 1, "unit": "fraction"}
        for seed in SEEDS:
            made.append(
                {**base, "variant": arm, "seed": seed, "metric": "accuracy", "value": mean + rng.normal(0, 0.004)}
            )
            if rate:
                checkpoint = {"model": "medium", "recipe": "long", **masking}
                share = 0.5 if short == (rate, seed) else 0.97
                made.append({**base, "variant": checkpoint, "seed": seed, "metric": "learned_share", "value": share})
                made.append(
                    {
                        **base,
                        "variant": checkpoint,
                        "seed": seed,
                        "metric": "pretrain_loss",
                        "value": loss + rng.normal(0, 0.003),
                    }
                )
    for seed in SEEDS:
        control = {"control": "naive_bayes", "task": "topics"}
        made.append({**base, "variant": control, "seed": seed, "metric": "accuracy", "value": 0.657})
    return tables.frame(made, "metrics")


def test_the_default_run_on_masking_rates(claims):
    result = decide(claims, masked_run(np.random.default_rng(0))).set_index(["paper", "claim"]).loc["mlm_masking"]
    assert result.loc["T1a", "verdict"] == result.loc["T2", "verdict"] == result.loc["T3b", "verdict"] == "supported"
    assert result.loc["T1b", "verdict"] != "supported"
    later = ["T4", "T5a", "T5b", "T5c", "T5d", "T5e", "T6a", "T6b", "T7a", "T7b"]
    assert (
        set(result.loc[later, "verdict"]) == {"not_testable"}
        and result.loc[later, "reason"].str.contains("overnight").all()
    )
    failed = decide(claims, masked_run(np.random.default_rng(0), short=(0.8, 103)))
    failed = failed.set_index(["paper", "claim"]).loc["mlm_masking"]
    assert failed.loc["T2", "verdict"] == "invalid" and "converged" in failed.loc["T2", "reason"]
    assert "seed 103" in failed.loc["T2", "reason"] and failed.loc["T1a", "verdict"] == "supported"


def mezo_run(rng):
    """A run of the default experiments on MeZO: metric, item and cost rows with scores as measured beforehand."""
    metrics, item_rows, costs = [], [], []
    tuned = {"parameters": "full", "objective": "loss"}
    zeroth = {**tuned, "steps": 500, "optimizer": "sgd", "directions": 1, "estimator": "spsa"}
    learned, blank = (
        {"scheme": "uniform", "corruption": 0.3, "prediction": 0.3, "replacement": "mask"},
        {"scheme": "none"},
    )
    arms_made = [
        ("polarity", learned, {"method": "zero_shot"}, 0.55),
        ("polarity", learned, {"method": "calibrated"}, 0.72),
        ("polarity", learned, {"method": "mezo", **zeroth}, 0.985),
        ("random", blank, {"method": "mezo", **zeroth}, 0.58),
        ("polarity", learned, {"method": "mezo", **zeroth, "labels": "shuffled"}, 0.5),
        ("polarity", learned, {"method": "mezo", **zeroth, "prompt": False}, 0.93),
        ("polarity", learned, {"method": "mezo", **zeroth, "objective": "accuracy"}, 0.95),
        ("polarity", learned, {"method": "backprop", **tuned, "steps": 200}, 1.0),
        ("random", blank, {"method": "backprop", **tuned, "steps": 200}, 0.999),
    ]
    rates = [
        (f"uniform-{rate}", {**learned, "corruption": rate, "prediction": rate}, method, mean)
        for rate in (0.15, 0.4)
        for method, mean in (
            ({"method": "mezo", **zeroth}, 0.97),
            ({"method": "backprop", **tuned, "steps": 200}, 1.0),
            ({"method": "zero_shot"}, 0.6),
        )
    ]
    for experiment, made in (("methods", arms_made), ("masking_rates", rates)):
        for pretraining, masking, method, mean in made:
            variant = tables.variant_json(
                {
                    "model": "polarity",
                    "recipe": "polarity",
                    "pretraining": pretraining,
                    "task": "last",
                    "prompt": True,
                    **masking,
                    **method,
                }
            )
            for seed in (11, 12, 13, 14):
                base = {"paper": "mezo", "experiment": experiment, "variant": variant, "seed": seed}
                right = rng.random(200) < min(1.0, mean + rng.normal(0, 0.01))
                item_rows += [
                    {**base, "metric": "accuracy", "item": str(i), "value": float(x)} for i, x in enumerate(right)
                ]
                metrics.append({**base, "metric": "accuracy", "value": right.mean(), "n": 200, "unit": "fraction"})
                if method["method"] == "zero_shot":
                    metrics.append({**base, "metric": "auc", "value": 0.8, "n": 200, "unit": "fraction"})
    for seed in (11, 12, 13, 14):
        log_rows = (("log_bytes", 80123.0, "bytes"), ("max_abs_difference", 0.0, "1"), ("max_abs_change", 3.0, "1"))
        for metric, value, unit in log_rows:
            base = {"paper": "mezo", "experiment": "trajectory", "variant": {"num_steps": 20000}, "seed": seed}
            metrics.append({**base, "metric": metric, "value": value, "n": 1, "unit": unit})
        for method, size in (("inference", 100.0), ("mezo", 101.0), ("backprop", 900.0)):
            base = {
                "paper": "mezo",
                "experiment": "memory",
                "variant": {"model": "wide", "method": method},
                "seed": seed,
            }
            costs.append(
                {
                    **base,
                    "stage": "memory",
                    "job": "m",
                    "measure": "peak_bytes",
                    "value": size + rng.normal(0, 0.3),
                    "unit": "bytes",
                }
            )
    return {
        "metrics": tables.frame(metrics, "metrics"),
        "items": tables.frame(item_rows, "items"),
        "costs": tables.frame(costs, "costs"),
    }


def test_the_default_run_on_mezo(claims):
    made = mezo_run(np.random.default_rng(1))
    result = decide(claims, **made, seeds={("mezo", "methods"): [11, 12, 13, 14]})
    result = result.set_index(["paper", "claim"]).loc["mezo"]
    supported = ["C1", "C2a", "C3a", "C3b", "C6a", "C6b", "C8", "C9a", "C9b", "N1", "X1a"]
    assert result.loc[supported, "verdict"].eq("supported").all(), result.loc[
        supported, ["verdict", "reason"]
    ].to_string()
    assert set(result.loc[["C2b", "C5a", "C5b", "C6c", "C12a", "C12b", "C12c"], "verdict"]) == {"not_testable"}
    assert result.loc["C7", "verdict"] == "inconclusive" and "least effect" in result.loc["C7", "reason"]
    # The shuffled control and the model without pre-training are no part of MeZO's own arm.
    assert result.loc["C1", "treatment"].count("not") == 2 and result.loc["C1", "estimate"] == pytest.approx(
        -0.015, abs=0.02
    )

    metrics = made["metrics"]
    auc = (metrics["metric"] == "auc") & (metrics["seed"] == 12) & (metrics["experiment"] == "methods")
    weak = decide(claims, **{**made, "metrics": metrics.assign(value=metrics["value"].mask(auc, 0.31))})
    weak = weak.set_index(["paper", "claim"]).loc["mezo"]
    assert weak.loc["C1", "verdict"] == "invalid" and "auc is 0.31 for seed 12" in weak.loc["C1", "reason"]
    assert weak.loc["X1a", "verdict"] == "supported"
