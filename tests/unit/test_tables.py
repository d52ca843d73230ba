import json

import numpy as np
import pandas as pd
import pytest

from reclaim import tables
from reclaim.errors import InputError

ROW = {
    "paper": "mezo",
    "experiment": "methods",
    "variant": {"task": "last", "method": "mezo"},
    "seed": 11,
    "metric": "accuracy",
    "value": 0.5,
    "n": 1000,
    "unit": "fraction",
}


def metric_rows(*changes):
    return tables.frame([{**ROW, **change} for change in changes], "metrics")


def test_equal_variants_are_equal_texts():
    assert tables.variant_json({"b": np.float64(0.4), "a": "x"}) == '{"a":"x","b":0.4}'
    assert tables.variant_json({"a": "x", "b": 0.4}) == tables.variant_json({"b": 0.4, "a": "x"})
    assert (
        tables.variant_json({"a": np.int64(3), "b": True, "c": None, "d": "é"}) == '{"a":3,"b":true,"c":null,"d":"é"}'
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}])
def test_a_variant_that_json_cannot_hold_is_refused(value):
    with pytest.raises(InputError, match="variant"):
        tables.variant_json({"a": value})


@pytest.mark.parametrize("kind", ["metrics", "items", "costs"])
def test_columns_and_types_are_the_documented_ones(kind):
    empty = tables.empty(kind)
    assert list(empty.columns) == list(tables.COLUMNS[kind])
    assert len(tables.validate(empty, kind, "here")) == 0


def test_rows_are_put_in_order_whatever_their_order():
    rows = [{**ROW, "seed": seed, "variant": {"task": task}} for seed in (12, 11) for task in ("b", "a")]
    one = tables.frame(rows, "metrics")
    other = tables.frame(rows[::-1], "metrics")
    pd.testing.assert_frame_equal(one, other)
    assert one["seed"].dtype == "int64" and one["value"].dtype == "float64"


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"value": float("nan")}, "value"),
        ({"value": float("inf")}, "value"),
        ({"value": "much"}, "value"),
        ({"seed": 1.5}, "seed"),
        ({"unit": None}, "unit"),
        ({"metric": 3}, "metric"),
        ({"variant": '{"b": 1, "a": 2}'}, "variant"),
        ({"variant": "[1]"}, "variant"),
    ],
)
def test_a_bad_value_is_refused_with_its_column(change, place):
    with pytest.raises(InputError, match=f"metrics rows: column {place}"):
        metric_rows(change)


def test_wrong_columns_are_named():
    with pytest.raises(InputError, match=r"missing \['unit'\], unknown \['units'\]"):
        tables.validate(metric_rows({}).rename(columns={"unit": "units"}), "metrics", "here")


def test_two_rows_of_one_key_are_refused_even_across_tables():
    with pytest.raises(InputError, match="two rows"):
        metric_rows({}, {"value": 0.6})
    with pytest.raises(InputError, match="two rows"):
        tables.concat([metric_rows({}), metric_rows({"value": 0.6})], "metrics")


def test_tables_are_read_as_written_and_joined_in_any_order(tmp_path):
    one, other = metric_rows({}), metric_rows({"seed": 12})
    one.to_parquet(tmp_path / "one.parquet")
    pd.testing.assert_frame_equal(tables.read(tmp_path / "one.parquet", "metrics"), one)
    joined = tables.concat([one, other, tables.empty("metrics")], "metrics")
    pd.testing.assert_frame_equal(joined, tables.concat([other, one], "metrics"))
    assert len(tables.concat([], "items")) == 0


def test_an_unreadable_file_is_named(tmp_path):
    with pytest.raises(InputError, match="absent.parquet"):
        tables.read(tmp_path / "absent.parquet", "metrics")
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(InputError, match="text.parquet"):
        tables.read(tmp_path / "text.parquet", "metrics")


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ({}, "abc"),
        ({"rate": 0.4}, "a"),
        ({"rate": [0.4, 0.15]}, "ab"),
        ({"rate": {"not": 0.4}}, "bc"),
        ({"rate": {"not": [0.4, 0.15]}}, "c"),
        ({"prompt": True}, "a"),
        ({"prompt": 1}, "b"),
        ({"prompt": 1.0}, "b"),
        ({"rate": 0.4, "prompt": 1}, ""),
        ({"absent": None}, ""),
    ],
)
def test_a_variant_matches_where_it_contains_the_subset(where, found):
    variants = [
        {"name": "a", "rate": 0.40, "prompt": True},
        {"name": "b", "rate": 0.15, "prompt": 1},
        {"name": "c", "scheme": "none"},
    ]
    table = metric_rows(*({"variant": variant} for variant in variants))
    selected = tables.select(table, where=where)
    assert "".join(sorted(json.loads(text)["name"] for text in selected["variant"])) == found


def test_select_by_paper_experiment_and_metric():
    table = metric_rows({}, {"paper": "icl"}, {"experiment": "memory"}, {"metric": "auc"})
    assert len(tables.select(table, paper="mezo", experiment="methods", metric="accuracy")) == 1
    assert len(tables.select(table, experiment=["methods", "memory"])) == 4
    cost = {key: ROW[key] for key in ("paper", "experiment", "variant", "seed", "value", "unit")}
    costs = tables.frame(
        [{**cost, "stage": "finetune", "job": "j", "measure": m} for m in ("wall_s", "steps")], "costs"
    )
    assert tables.select(costs, metric="wall_s")["measure"].tolist() == ["wall_s"]
