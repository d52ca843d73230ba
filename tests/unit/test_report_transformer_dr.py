"""What the section of Transformer-DR shows of a run, and of a run that lacks parts of it."""

import re
from xml.etree import ElementTree

import pandas as pd
import pytest

from reclaim import tables
from reclaim.report.figures_transformer_dr import SYSTEM, picture_svg
from reclaim.report.system import SystemTables
from reclaim.vision.reduction_pictures import rebuilt_picture

EMPTY = {"metrics": tables.empty("metrics"), "costs": tables.empty("costs")}
CURVES = pd.DataFrame(columns=["paper", "experiment", "variant", "seed", "step", "measure", "value", "unit"])
METHODS = ("transformer_dr", "plain_ae", "pca", "tsne", "lda", "random_projection")


def metric_rows():
    rows = []

    def add(experiment, variant, metric, value, seed, unit="fraction"):
        rows.append(
            {"paper": "transformer_dr", "experiment": experiment, "variant": variant, "seed": seed}
            | {"metric": metric, "value": float(value), "n": 500, "unit": unit}
        )

    for seed in (41, 42, 43):
        for place, method in enumerate(METHODS):
            for dimension in (2, 10):
                if method in ("tsne", "lda") and dimension == 10:
                    continue
                variant = {"data": "digits", "method": method, "dimension": dimension}
                if method != "tsne":
                    add("codes", variant, "knn1", 0.5 + 0.01 * place + 0.001 * seed, seed)
                for metric in ("knn1_leave_one_out", "trustworthiness", "continuity", "silhouette"):
                    add("codes", variant, metric, 0.4 + 0.02 * place, seed)
                if method not in ("tsne", "lda"):
                    for metric in ("mse", "train_mse", "psnr", "ssim", "outside_unit_interval"):
                        add("codes", variant, metric, 0.04 + 0.01 * place, seed)
        for d in (10, 20, "chosen", "oracle"):
            variant = {"data": "orl", "method": "pca", "dimension": d, "training_images": 5}
            add("recognition", variant, "knn1", 0.9, seed)
            if isinstance(d, int):
                add("recognition", variant, "centroid", 0.8, seed)
                add("recognition", variant, "subjects", 39, seed, "count")
            else:
                add("recognition", variant, "dimension", 20, seed, "count")
        add(
            "recognition",
            {"data": "orl", "method": "raw", "dimension": "pixels", "training_images": 5},
            "knn1",
            0.94,
            seed,
        )
        for name in ("no_attention", "none"):
            variant = {"data": "digits", "method": "transformer_dr", "dimension": 10, "ablation": name}
            add("ablations", variant, "mse", 0.013, seed)
            add("ablations", variant, "parameters", 46_382, seed, "count")
    return tables.frame(rows, "metrics")


def curves():
    variant = tables.variant_json({"data": "digits", "method": "plain_ae", "dimension": 2})
    row = {"paper": "transformer_dr", "experiment": "codes", "variant": variant, "measure": "train_loss", "unit": "x"}
    return pd.DataFrame([{**row, "seed": s, "step": e, "value": 1 / e} for s in (41, 42) for e in (1, 2, 3)])


@pytest.fixture
def shown():
    return {
        exhibit.key: exhibit
        for exhibit in SYSTEM.exhibits(SystemTables(pd.DataFrame(), metric_rows(), EMPTY["costs"], curves()))
    }


def test_every_use_is_shown_with_a_plot_that_parses(shown):
    expected = {"accuracy-digits", "neighbours-digits", "reconstruction-digits-2", "reconstruction-digits-10"}
    expected |= {"ranking-digits", "learning-digits", "recognition-orl-5", "ablations-digits-10"}
    assert set(shown) == expected
    for exhibit in shown.values():
        assert not exhibit.missing and exhibit.rows and all(len(row) == len(exhibit.columns) for row in exhibit.rows)
        if exhibit.svg:
            ElementTree.fromstring(exhibit.svg)
            assert exhibit.alt


def test_what_a_method_cannot_do_is_blank(shown):
    assert not any(row[0] == "t-SNE" for row in shown["accuracy-digits"].rows)
    leave_one_out = {row[0]: row for row in shown["neighbours-digits"].rows}["t-SNE"]
    assert leave_one_out[1] == leave_one_out[2] == "–" and leave_one_out[3].startswith("0.46")
    assert not any(row[0] in ("t-SNE", "LDA (reads labels)") for row in shown["reconstruction-digits-2"].rows)
    assert "PCA is the best linear map" in shown["reconstruction-digits-2"].caption


def test_the_order_is_best_first_and_leaves_out_what_reads_labels(shown):
    exhibit = shown["ranking-digits"]
    rows = {row[0]: row for row in exhibit.rows}
    # First of four in the two errors, last in all else: of five where t-SNE has a figure, of four elsewhere.
    assert (2 * 1 + 4 * 5 + 10 * 4) / 16 == pytest.approx(3.9, abs=0.05)
    assert "Transformer-DR: 3.9 in 16 metrics" in exhibit.alt and "LDA" not in exhibit.svg
    assert rows["MSE, d = 2"][1:] == ("1 of 4", "Transformer-DR, plain autoencoder, PCA, random projection")
    assert rows["trustworthiness, d = 2"][1] == "5 of 5" and "LDA" not in rows["trustworthiness, d = 2"][2]


def test_recognition_counts_subjects_and_names_the_oracle(shown):
    exhibit = shown["recognition-orl-5"]
    assert "39 subjects" in exhibit.title
    assert {row[1] for row in exhibit.rows} == {"10", "20", "chosen: 20 to 20", "oracle: 20 to 20", "pixels"}
    assert "too good to be expected" in exhibit.caption


def test_other_experiments_of_the_same_kinds_are_shown_with_their_names(shown):
    others = {"codes": "codes_long", "recognition": "recognition_yale", "ablations": "pools"}
    metrics = metric_rows()
    metrics = pd.concat([metrics, metrics.replace({"experiment": others})])
    exhibits = SYSTEM.exhibits(SystemTables(pd.DataFrame(), metrics, EMPTY["costs"], curves()))
    titles = {exhibit.key: exhibit.title for exhibit in exhibits}
    assert len(titles) == len(exhibits) == 2 * len(shown)
    assert "(orl, recognition_yale, 39 subjects)" in titles["recognition-orl-recognition_yale-5"]
    assert {"accuracy-digits-codes_long", "ablations-digits-pools-10"} < set(titles)


def test_codes_of_other_than_two_dimensions_have_no_plots_of_two():
    metrics = metric_rows()
    metrics = metrics[~metrics["variant"].str.contains('"dimension":2,')]
    exhibits = SYSTEM.exhibits(SystemTables(pd.DataFrame(), metrics, EMPTY["costs"], CURVES))
    keys = {exhibit.key for exhibit in exhibits}
    assert "reconstruction-digits-10" in keys and not {"accuracy-digits", "neighbours-digits"} & keys


def test_one_dimension_is_drawn_by_method_without_chosen_or_oracle():
    metrics = metric_rows()
    metrics = metrics[~metrics["variant"].str.contains('"dimension":20,')]
    exhibits = SYSTEM.exhibits(SystemTables(pd.DataFrame(), metrics, EMPTY["costs"], CURVES))
    (exhibit,) = [e for e in exhibits if e.key == "recognition-orl-5"]
    assert [row[1] for row in exhibit.rows] == ["10", "pixels"] and "raw pixels" in exhibit.svg


def test_the_whole_network_comes_first_among_ablations(shown):
    assert [row[0] for row in shown["ablations-digits-10"].rows] == ["Transformer-DR", "without attention"]


def test_a_run_without_it_says_what_is_missing():
    found = SYSTEM.exhibits(SystemTables(pd.DataFrame(), EMPTY["metrics"], EMPTY["costs"], CURVES))
    assert {exhibit.key for exhibit in found} == {"codes", "recognition", "ablations"}
    assert all(exhibit.missing for exhibit in found)


def test_pictures_of_the_first_seed_are_embedded_once():
    import numpy as np

    png = rebuilt_picture({"original": np.zeros((3, 64)), "PCA": np.ones((3, 64))}, (8, 8, 1))
    names = (
        "codes-digits.png",
        "rebuilt-digits-d10.png",
        "rebuilt-digits-d2.png",
        "rebuilt-orl-d40-5-images.png",
        "x.png",
    )
    given = {f"codes/reduction.s{seed}/{name}": png for seed in (41, 42) for name in names}
    given = SystemTables(pd.DataFrame(), EMPTY["metrics"], EMPTY["costs"], CURVES, given)
    pictures = [exhibit for exhibit in SYSTEM.exhibits(given) if exhibit.svg]
    assert [exhibit.title for exhibit in pictures] == [
        "2-D codes of test images (digits)",
        "Test images and reconstructions (digits, d = 2)",
        "Test images and reconstructions (digits, d = 10)",
        "Test images and reconstructions (orl, d = 40, 5 training images a subject)",
    ]
    assert re.search(r'viewBox="0 0 \d+ \d+"', picture_svg(png)) and "data:image/png;base64," in pictures[0].svg
