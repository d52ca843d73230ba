"""The report page: what it says, what it escapes, that it fetches nothing, and that it copes with what is not there."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import synthetic_run
from reclaim import tables
from reclaim.claims import COLUMNS, decide
from reclaim.claims_yaml import Claim
from reclaim.report import figures_mezo, figures_mlm_masking
from reclaim.report.build import SYSTEMS, build_report
from reclaim.report.claim_view import claim_view
from reclaim.report.deciding import deciding_rows, plain
from reclaim.report.figures import (
    Curve,
    Panel,
    Row,
    Series,
    curve_plot,
    fixed,
    interval_text,
    line_plot,
    number,
    row_plot,
)
from reclaim.report.run_view import cost_table
from reclaim.report.system import SystemTables

TEMPLATE = Path(__file__).parents[2] / "report" / "report.html.j2"
NASTY = "<script>alert(1)</script> & \"quotes' $x^2$ {{ 7 * 7 }} </svg> \u202e"
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Collects elements, their text, and whether tags are balanced."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.faults, self.text = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def build(**changes):
    return build_report(**(synthetic_run.arguments() | changes), template_path=TEMPLATE)


@pytest.fixture(scope="module")
def html():
    return build()


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def system_tables(paper, **changes):
    arguments = synthetic_run.arguments() | changes
    frames = (arguments[name] for name in ("claims", "metrics", "costs", "curves"))
    return SystemTables(*(frame[frame["paper"] == paper] for frame in frames))


def empty_curves():
    return pd.DataFrame(columns=["paper", "experiment", "variant", "seed", "step", "measure", "value", "unit"])


# ------------------------------------------------------------------------------------------------- the page as a whole


def test_every_claim_appears_with_its_verdict_interval_paper_value_and_command(html, page):
    text = " ".join(" ".join(page.text).split())
    claims = synthetic_run.arguments()["claims"]
    assert len(claims) == len(synthetic_run.CLAIMS)
    for claim in claims.itertuples():
        assert html.count(f'id="claim-{claim.paper.replace("_", "-")}-{claim.claim.lower()}"') == 1
        assert text.count(claim.statement) >= 2, "in the summary and in the section"
        assert claim.paper_value in text
        assert plain(claim.reason)[1:] in text
    supported = claims[claims["claim"] == "C2"].iloc[0]
    interval = interval_text(*(100 * supported[column] for column in ("estimate", "low", "high")))
    assert f"{interval} points" in text
    assert text.count("snakemake claims --cores all") >= 8
    assert "snakemake claims --cores all --configfile config/overnight.yaml" in text  # T4 is in that overlay only


def test_counts_per_verdict_and_headline_claims_first(html):
    claims = synthetic_run.arguments()["claims"]
    for verdict, count in claims["verdict"].value_counts().items():
        assert re.search(rf"<b>{count}</b><span class=\"badge {verdict}\">", html)
    summary = html[html.index('id="summary"') : html.index('id="system-mlm-masking"')]
    places = [
        summary.index(f'href="#claim-{row.paper.replace("_", "-")}-{row.claim.lower()}"')
        for row in claims.sort_values("headline", ascending=False, kind="stable").itertuples()
    ]
    assert max(places[: claims["headline"].sum()]) < min(places[claims["headline"].sum() :])


def test_holm_decision_stands_beside_a_verdict_that_it_does_not_confirm():
    claims = synthetic_run.arguments()["claims"]
    claims.loc[claims["claim"] == "C2", ["holm_p", "holm_decision"]] = [0.0821, "inconclusive"]
    assert "Holm: inconclusive, p\xa0=\xa00.082" in build(claims=claims)


def test_same_input_gives_the_same_bytes(html):
    assert build() == html


def test_nothing_is_fetched_and_nothing_runs(html, page):
    for tag, attributes in page.elements:
        assert tag not in ("script", "iframe", "object", "embed", "img", "image", "base", "form")
        assert "src" not in attributes and not any(name.startswith("on") for name in attributes)
        for name in ("href", "xlink:href"):
            target = attributes.get(name, "#")
            assert target.startswith("#") or (tag == "a" and target.startswith("https://")) or target == "data:,"
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    assert page.all("meta")[1]["content"].startswith("default-src 'none'")


def test_markup_is_balanced_and_ids_are_unique(page):
    assert page.faults == [] and page.open == []
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert sorted(ids) == sorted(set(ids))
    targets = {attributes["href"][1:] for attributes in page.all("a") if attributes["href"].startswith("#")}
    assert targets <= set(ids)


def test_page_is_accessible(page):
    assert page.all("html")[0]["lang"] == "en"
    assert [len(page.all(tag)) for tag in ("header", "main", "footer", "h1")] == [1, 1, 1, 1]
    assert all(attributes.get("scope") in ("col", "row", "rowgroup") for attributes in page.all("th"))
    plots = [attributes for attributes in page.all("svg") if attributes.get("class") == "plot"]
    assert len(plots) >= 8
    assert all(attributes["role"] == "img" and len(attributes["aria-label"]) > 60 for attributes in plots)
    regions = [attributes for attributes in page.all("div") if attributes.get("role") == "region"]
    assert len(regions) == len(page.all("table"))
    assert all(attributes["tabindex"] == "0" and attributes["aria-label"] for attributes in regions)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))


def test_text_colours_have_contrast(html):
    def luminance(colour):
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        channels = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(front, back):
        high, low = sorted((luminance(front), luminance(back)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    root = dict(re.findall(r"--(\w+): (#\w+)", html))
    badges = re.findall(r"\.badge\.\w+ { color: (#\w+); background: (#\w+); }", html)
    assert len(badges) == 5
    for front in ("ink", "muted", "link"):
        badges += [(root[front], "#fff"), (root[front], root["soft"])]
    assert min(contrast(*pair) for pair in badges) >= 4.5


# --------------------------------------------------------------------------------------------------------- hostile text


def test_text_from_tables_and_manifest_is_escaped_everywhere():
    arguments = synthetic_run.arguments()
    claims = arguments["claims"]
    for name in ("claim", "statement", "source", "paper_value", "reason", "scale_note", "rows", "unit"):
        claims[name] = claims[name] + NASTY

    def poison(variant):
        keys = {
            key: value + NASTY if key in ("task", "model", "recipe") else value
            for key, value in json.loads(variant).items()
        }
        return tables.variant_json(keys)

    for name in ("metrics", "costs", "curves"):
        arguments[name]["variant"] = arguments[name]["variant"].map(poison)
    manifest = synthetic_run.MANIFEST | {
        "config": NASTY,
        "git_commit": NASTY,
        "versions": {NASTY: NASTY},
        "overlay": NASTY,
        "machine": {"cpu": NASTY, "cores": 2},
    }
    arguments["costs"]["stage"] = arguments["costs"]["stage"] + NASTY
    hostile = build_report(**arguments | {"manifest": manifest}, template_path=TEMPLATE)
    page = Page(hostile)
    assert page.all("script") == [] and page.faults == [] and page.open == []
    assert "alert(1)" in " ".join(page.text)  # shown as text
    assert "{{ 7 * 7 }}" in hostile and "<script" not in hostile and "alert(1)</" not in hostile


def test_claim_of_an_unknown_paper_gets_a_section():
    claims = synthetic_run.arguments()["claims"]
    claims.loc[claims["claim"] == "C11", "paper"] = "another <b>paper</b>"
    page = build(claims=claims)
    assert 'id="system-another-b-paper-b"' in page and "another &lt;b&gt;paper&lt;/b&gt;" in page


@pytest.mark.parametrize(
    "kind, unit, value, text",
    [
        ("superior", "fraction", 0.0213, "2.1 points"),
        ("slope", "fraction per doubling of size", 0.0213, "2.1 points per doubling of size"),
        ("bound", "fraction", 0.0213, "2.1 %"),
        ("ratio", "ratio", 1.0213, "1.02"),
        ("superior", "nats", -0.0321, "−0.0321 nats"),
        ("bound", "bytes", 80_412, "80,412 bytes"),
        ("bound", "bytes", 3 * 2**20, "3.00 MiB"),
        ("bound", "1", 0.0, "0"),
    ],
)
def test_estimates_are_written_in_readers_units(kind, unit, value, text):
    row = synthetic_run.arguments()["claims"].iloc[0].to_dict()
    row |= {"kind": kind, "unit": unit, "estimate": value, "paper_estimate": np.nan, "low": np.nan, "high": np.nan}
    assert claim_view(row, tables.empty("metrics"), tables.empty("costs"), {})["ours"] == text


def test_shell_command_quotes_the_overlay():
    claims = synthetic_run.arguments()["claims"]
    claims.loc[claims["claim"] == "C11", "overlay"] = "a b; rm x"
    text = " ".join(Page(build(claims=claims)).text)
    assert "--configfile 'config/a b; rm x.yaml'" in text


# ---------------------------------------------------------------------------------------------------- what is not there


def test_empty_tables_give_a_page_that_says_so():
    claims = pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in COLUMNS.items()})
    html = build_report(
        claims, tables.empty("metrics"), tables.empty("costs"), empty_curves(), manifest={}, template_path=TEMPLATE
    )
    page = Page(html)
    text = " ".join(page.text)
    assert page.faults == [] and page.open == []
    assert "No claim is in this run" in text and "No cost was recorded" in text and "unknown" in text
    assert text.count("Not in this run: none of its experiments was chosen") == len(SYSTEMS)
    assert page.all("svg") == []


@pytest.mark.parametrize("paper, other", [("mlm_masking", "mezo"), ("mezo", "mlm_masking")])
def test_a_system_without_rows_is_said_to_be_missing_and_the_other_stands(paper, other):
    arguments = synthetic_run.arguments()
    for name in ("metrics", "costs", "curves"):
        arguments[name] = arguments[name][arguments[name]["paper"] == paper]
    arguments["claims"] = decide(synthetic_run.CLAIMS, arguments["metrics"], costs=arguments["costs"])
    html = build_report(**arguments, template_path=TEMPLATE)
    section = html[html.index(f'id="system-{other.replace("_", "-")}"') :]
    section = section[: section.index("</section>")]
    assert "Not in this run" in section and "<svg" not in section and "not testable" in section


@pytest.mark.parametrize(
    "paper, module", [("mlm_masking", figures_mlm_masking), ("mezo", figures_mezo)], ids=["mlm_masking", "mezo"]
)
def test_each_experiment_can_be_missing(paper, module):
    full = system_tables(paper)
    names = {exhibit.key for exhibit in module.exhibits(full) if not exhibit.missing}
    experiments = {*full.metrics["experiment"], *full.costs["experiment"]}
    for experiment in experiments:
        frames = (full.claims, *(f[f["experiment"] != experiment] for f in (full.metrics, full.costs, full.curves)))
        exhibits = module.exhibits(SystemTables(*frames))
        assert {exhibit.key for exhibit in exhibits if not exhibit.missing} < names
        assert all(exhibit.missing or exhibit.svg or exhibit.rows for exhibit in exhibits)


def test_one_seed_gives_values_without_an_interval():
    arguments = synthetic_run.arguments()
    for name, seeds in (("metrics", [101, 11]), ("curves", [101, 11])):
        arguments[name] = arguments[name][arguments[name]["seed"].isin(seeds)]
    arguments["claims"] = decide(synthetic_run.CLAIMS, arguments["metrics"], costs=arguments["costs"])
    page = Page(build_report(**arguments, template_path=TEMPLATE))
    text = " ".join(page.text)
    assert page.faults == [] and not re.search(r"\b(nan|inf)\b", text, re.IGNORECASE)


# -------------------------------------------------------------------------------------------------------------- figures


def test_figures_state_units_uncertainty_the_papers_number_and_how_to_read_them():
    for module, paper in ((figures_mlm_masking, "mlm_masking"), (figures_mezo, "mezo")):
        plots = [exhibit for exhibit in module.exhibits(system_tables(paper)) if exhibit.svg]
        assert len(plots) >= 2
        for exhibit in plots:
            drawn = " ".join(re.findall(r">([^<>]+)</text>", exhibit.svg))
            assert re.search(r"\((%|nats|×)\)|step", drawn), exhibit.key
            assert "paper" in exhibit.caption, exhibit.key
            assert "seed" in exhibit.caption or "one step" in exhibit.caption, exhibit.key
            assert exhibit.rows and all(len(row) == len(exhibit.columns) for row in exhibit.rows), exhibit.key


def test_accuracy_by_masking_rate_shows_our_means_and_the_controls():
    tables_ = system_tables("mlm_masking")
    rates = next(exhibit for exhibit in figures_mlm_masking.exhibits(tables_) if exhibit.key.startswith("rates"))
    rows = {row[0]: row for row in rates.rows}
    accuracy = tables.select(tables_.metrics, metric="accuracy", where={"corruption": 0.4})["value"]
    assert rows["uniform 40 %"][1].startswith(f"{100 * accuracy.mean():.1f} [")
    assert rows["uniform 40 %"][2] == "4"
    assert {"no pre-training", "naive Bayes"} <= set(rows)
    drawn = re.findall(r">([^<>]+)</text>", rates.svg)
    assert {"MNLI", "QNLI", "SST-2"} <= set(drawn)


def test_mezo_arms_are_named_by_what_differs_and_stand_beside_the_paper():
    exhibit = next(e for e in figures_mezo.exhibits(system_tables("mezo")) if e.key.startswith("methods-accuracy"))
    arms = {row[0]: row for row in exhibit.rows}
    assert set(arms) == {
        "zero-shot",
        "zero-shot, calibrated",
        "MeZO",
        "MeZO, shuffled labels",
        "MeZO, no prompt",
        "MeZO, accuracy objective",
        "MeZO, random initialisation",
        "backprop",
        "backprop, random initialisation",
    }
    assert (
        arms["MeZO"][4] == "93.3"
        and arms["MeZO, accuracy objective"][4] == "92.7"
        and arms["MeZO, no prompt"][4] == "–"
    )


def test_memory_is_shown_relative_to_inference():
    exhibits = {exhibit.key: exhibit for exhibit in figures_mezo.exhibits(system_tables("mezo"))}
    rows = {row[0]: row for row in exhibits["memory"].rows}
    assert rows["MeZO (opt)"][1:] == ("51.8", "1.03 [1.01, 1.06]", "1", "0.500", "4")  # 1.02, 1.03, 1.04, 1.05
    assert rows["inference (opt)"][2] == "1.00" and rows["backprop (opt)"][3] == "12"
    assert [row[2] for row in exhibits["trajectory"].rows] == ["80,412 bytes", "0"]


def test_experiments_of_the_overnight_run_have_figures():
    arguments = synthetic_run.arguments()
    metrics = arguments["metrics"]
    rates = metrics[metrics["experiment"] == "rates"]
    methods = metrics[metrics["experiment"] == "methods"]
    keys = ("schemes", "sizes", "pairs", "replacement")
    mlm = [
        rates.assign(experiment=name) for name in ("rates", "schemes", "sizes", "corruption_prediction", "replacement")
    ]
    shown = figures_mlm_masking.exhibits(system_tables("mlm_masking", metrics=pd.concat(mlm)))
    assert {exhibit.key for exhibit in shown if exhibit.svg} >= set(keys)
    mezo = pd.concat([methods.assign(experiment=name) for name in ("methods", "parameters", "estimators")])
    f1 = methods.assign(experiment="causal", metric="qa_f1")
    shown = figures_mezo.exhibits(system_tables("mezo", metrics=pd.concat([mezo, f1])))
    drawn = {exhibit.key: exhibit.svg for exhibit in shown if exhibit.svg}
    assert {key.split("-")[0] for key in drawn} >= {"methods", "parameters", "estimators", "causal"}
    assert "test F1 (%)" in drawn["causal-qa_f1-last-polarity"]


def test_a_plot_keeps_text_as_text_and_its_ids_apart():
    rows = [Row(f"$a$ <b> {NASTY}", 1.0, 0.5, 1.5, points=[0.9, 1.1])]
    first, second = (row_plot(key, rows, "x (%)") for key in ("first", "second"))
    assert re.search(r">\$a\$ &lt;b&gt;[^<]*</text>", first) and "<b>" not in first
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (first, second)]
    assert ids[0] and not ids[0] & ids[1]
    for svg, own in zip((first, second), ids, strict=True):
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg)) <= own
    assert "<?xml" not in first and "<metadata" not in first and "dc:date" not in first


def test_a_reference_off_the_scale_is_named_and_does_not_squeeze_the_plot():
    series = Series("line", {0.1: {1: 70.0, 2: 71.0}, 0.4: {1: 71.0, 2: 72.5}})

    def drawn(level):
        panel = Panel("title", "accuracy (%)", [series], [("control", level)])
        return re.findall(r">([^<>]+)</text>", line_plot("key", [panel], "rate"))

    assert "control (below the scale)" in drawn(10.0) and "control (above the scale)" in drawn(100.0)
    assert "control" in drawn(70.5)


def test_long_curves_are_thinned():
    steps = list(range(1, 20_001))
    svg = curve_plot("key", [Curve("run", steps, [1 / step for step in steps])], "step", "loss (nats)")
    assert len(svg) < 40_000


@pytest.mark.parametrize(
    "value, text",
    [(0.0, "0.00"), (-1234.5, "−1234"), (80412, "80,412"), (3.14159, "3.14"), (1e-7, "1.00e−07"), (float("nan"), "–")],
)
def test_number(value, text):
    assert number(value) == text


def test_fixed_and_interval():
    assert fixed(-0.04, 1) == "0.0" and fixed(-1.25, 2) == "−1.25" and fixed(2, 1, sign=True) == "+2.0"
    assert interval_text(1.0, 0.5, 1.5) == "1.0 [0.5, 1.5]"
    assert interval_text(1.0, np.nan, np.nan) == "1.0" and interval_text(1.0, -np.inf, np.inf) == "1.0"
    assert interval_text(1.0, 1.0, 1.0) == "1.0"


# ------------------------------------------------------------------------------------------------------- deciding rows


def deciding(name):
    arguments = synthetic_run.arguments()
    claim = arguments["claims"].set_index("claim", drop=False).loc[name].to_dict()
    return claim, deciding_rows(claim, arguments["metrics"], arguments["costs"])


def test_deciding_rows_are_those_of_both_sides_and_add_up_to_the_estimate():
    claim, found = deciding("T1-not-worse")
    assert [row[0] for row in found.rows] == ["treatment", "baseline", "difference"]
    assert found.columns[2:] == tuple(f"seed {seed}" for seed in synthetic_run.SEEDS["mlm_masking"])
    assert np.mean(list(found.by_seed.values())) == pytest.approx(claim["estimate"])
    assert "corruption 0.4" in found.rows[0][1] and "corruption 0.15" in found.rows[1][1]
    assert "model medium" in found.shared and "model" not in found.rows[0][1]


@pytest.mark.parametrize("name, last", [("T2", "ratio"), ("C2", "difference"), ("T3", "difference")])
def test_deciding_rows_of_ratios_and_of_the_best_of_several(name, last):
    claim, found = deciding(name)
    assert found.rows[-1][0] == last
    assert np.mean(list(found.by_seed.values())) == pytest.approx(claim["estimate"])


def test_deciding_rows_do_not_invent_a_difference():
    claim, _ = deciding("T1-not-worse")
    arguments = synthetic_run.arguments()
    found = deciding_rows(claim | {"estimate": claim["estimate"] + 0.01}, arguments["metrics"], arguments["costs"])
    assert found.by_seed == {} and [row[0] for row in found.rows] == ["treatment", "baseline"]
    assert deciding("C11")[1].rows == ()


def test_variants_within_a_sentence_are_written_for_a_reader():
    text = 'auc is 0.97 for seed 12 of {"labels":{"not":"a"},"rate":[0.1,0.2],"s":"x"} and {"p":true}; {not json'
    assert plain(text) == ("auc is 0.97 for seed 12 of (labels not a, rate 0.1 or 0.2, s x) and (p true); {not json")
    assert plain('broken {"a":') == 'broken {"a":'


def test_a_long_reason_is_cut_in_the_summary_and_whole_in_the_section():
    claims = synthetic_run.arguments()["claims"]
    reason = "gate " + "because " * 60 + "end of the reason"
    claims.loc[claims["claim"] == "C8", "reason"] = reason
    html = build(claims=claims)
    assert html.count("end of the reason") == 1 and html.index("end of the reason") > html.index('id="system-mezo"')


def test_deciding_rows_of_costs_and_items():
    arguments = synthetic_run.arguments()
    memory = Claim(
        paper="mezo", claim="C3", statement="", source="", paper_value="", kind="ratio", at_most=1.05, table="costs",
        experiment="memory", metric="peak_bytes", treatment={"method": "mezo"}, baseline={"method": "inference"},
        min_seeds=1, resample="exact",
    )  # fmt: skip
    items = arguments["metrics"].assign(item="0").drop(columns=["n", "unit"])
    by_items = replace(next(claim for claim in synthetic_run.CLAIMS if claim.claim == "C2"), resample="seeds_and_items")
    for claim in decide([memory, by_items], arguments["metrics"], items, arguments["costs"]).to_dict("records"):
        found = deciding_rows(claim, arguments["metrics"], arguments["costs"])
        assert claim["rows"].startswith(("costs", "items")) and found.rows and found.by_seed


# ---------------------------------------------------------------------------------------------------------------- costs


def test_costs_are_summed_by_stage_in_the_order_of_the_chain():
    table = cost_table(synthetic_run.make_costs(), synthetic_run.MANIFEST)
    assert [row["stage"] for row in table["rows"]] == ["data", "pretrain", "finetune"]
    assert table["rows"][1] == {
        "stage": "pretrain", "jobs": "4", "cpu": "164.0", "wall": "176.0", "busy": "0.93", "peak": "900",
    }  # fmt: skip
    assert table["total"]["cpu"] == "224.0" and table["total"]["jobs"] == "12"
    assert table["note"].endswith("224 CPU s over 2 cores × 310 s, that is 36 %.")


def test_no_utilisation_is_claimed_where_it_cannot_be_known():
    costs = synthetic_run.make_costs()
    cached = synthetic_run.MANIFEST | {"ended": "2025-01-02T03:04:15+00:00"}
    assert "earlier run" in cost_table(costs, cached)["note"]
    for gone in ("started", "ended", "machine"):
        manifest = {key: value for key, value in synthetic_run.MANIFEST.items() if key != gone}
        assert "unknown" in cost_table(costs, manifest)["note"]
