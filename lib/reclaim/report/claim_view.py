"""The claims table as the page shows it: the summary's rows, the details of each claim, forest plots."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from reclaim.report.cells import number_of, slug, text_of
from reclaim.report.deciding import deciding_rows, plain
from reclaim.report.figures import Exhibit, Row, fixed, interval_text, row_plot, shorten

# Each verdict with its sign (so that colour is not alone) and its meaning, in the order of the page.
VERDICTS = {
    "supported": ("✓", "The 95 % interval clears the bound that the claim sets."),
    "contradicted": ("✗", "The whole 95 % interval lies on the other side of the bound."),
    "inconclusive": ("?", "The interval holds the bound: more seeds are needed, and their number is given."),
    "invalid": ("!", "A pre-condition failed, so the comparison says nothing about the claim."),
    "not_testable": ("–", "Not in this run or out of its reach; the reason, and the overlay that has it, are given."),
}
FOREST_CAPTION = (
    "One row a claim. Small faint marks are single seeds, the large mark the estimate, the bar its 95 % interval. "
    "Dashed ticks are the margin that the interval has to clear, or to stay within; the thin line is no effect; an "
    "open diamond is the paper's own estimate, of its own models and data. A positive difference speaks for the "
    "claim. The sign before a name is the verdict: ✓ supported, ✗ contradicted, ? inconclusive, ! invalid."
)
# Indices into the palette: green, vermillion, ochre, plum.
FOREST_COLOURS = {"supported": 2, "contradicted": 1, "inconclusive": 4, "invalid": 3}
KINDS = {
    "bound": "a level against a bound",
    "superior": "better than the baseline",
    "not_inferior": "not worse than the baseline by more than the margin",
    "equivalent": "equal to the baseline within the margin",
    "ratio": "a ratio against a bound",
    "slope": "a slope",
    "interaction": "a difference of differences",
}


def in_order(claims: pd.DataFrame, papers: Sequence[str]) -> list[dict[str, Any]]:
    """Give the claims as dicts: by paper in the given order (others after them), headline claims first."""
    order = {paper: place for place, paper in enumerate(papers)}
    rows = claims.to_dict("records")
    return sorted(rows, key=lambda row: (order.get(row["paper"], len(order)), row["paper"], not row["headline"]))


def section_id(paper: str) -> str:
    """The id of a paper's section of the page."""
    return "system-" + slug(paper)


def claim_view(
    row: dict[str, Any], metrics: pd.DataFrame, costs: pd.DataFrame, manifest: dict[str, Any]
) -> dict[str, Any]:
    """Turn one row of the claims table into what the page prints of it."""
    verdict, kind = str(row["verdict"]), text_of(row.get("kind"))
    numbers = {key: number_of(row.get(key)) for key in ("estimate", "low", "high", "margin", "paper_estimate")}
    scale, places, unit = _unit(row, numbers)
    estimate, low, high, margin, paper = (scale * value for value in numbers.values())
    deciding = deciding_rows(row, metrics, costs)
    reason = plain(text_of(row.get("reason")))
    ours = f"{interval_text(estimate, low, high, places)} {unit}".strip() if math.isfinite(estimate) else "–"
    return {
        "paper": row["paper"],
        "name": str(row["claim"]),
        "section": section_id(row["paper"]),
        "id": "claim-" + slug(f"{row['paper']}-{row['claim']}"),
        "headline": bool(row["headline"]),
        "statement": text_of(row.get("statement")),
        "source": text_of(row.get("source")),
        "verdict": verdict,
        "sign": VERDICTS.get(verdict, ("", ""))[0],
        "word": verdict.replace("_", " "),
        "reason": shorten(reason, 200),
        "why": shorten(reason, 200)[:1].upper() + shorten(reason, 200)[1:],
        "whole_reason": reason[:1].upper() + reason[1:],
        "scale_note": text_of(row.get("scale_note")),
        "paper_value": text_of(row.get("paper_value")) or "–",
        "ours": ours,
        "holm": _holm(row),
        "seeds": _count(row.get("n_seeds")) or "–",
        "decision": _decision(row, f"{fixed(margin, places)} {unit}".strip() if math.isfinite(margin) else ""),
        "deciding": deciding,
        "where": plain(text_of(row.get("rows"))),
        "command": _command(row, manifest),
        "forest": {
            "group": {"ratio": "ratios", "bound": f"levels ({unit})" if unit else "levels"}.get(
                kind, f"differences ({unit})" if unit else "differences"
            ),
            "row": Row(
                label=str(row["claim"]),
                estimate=estimate,
                low=low,
                high=high,
                points=[scale * value for value in deciding.by_seed.values()],
                paper=paper,
                bounds={"superior": [margin], "not_inferior": [-margin], "equivalent": [-margin, margin]}.get(kind, []),
                colour=FOREST_COLOURS.get(verdict, 6),
            ),
            "text": interval_text(estimate, low, high, places),
        },
    }


def _unit(row: dict[str, Any], numbers: dict[str, float]) -> tuple[float, int, str]:
    """Give scale, decimals and unit for printing: fractions as points (levels: %) of 100, large sizes as MiB."""
    unit = text_of(row.get("unit"))
    if unit.startswith("fraction"):
        return 100.0, 1, "%" if row.get("kind") == "bound" else unit.replace("fraction", "points", 1)
    if unit in ("1", "ratio"):
        unit = ""
    largest = max(
        (abs(value) for key, value in numbers.items() if key != "margin" and math.isfinite(value)), default=0.0
    )
    scale = 1.0
    if unit == "bytes" and largest >= 2**20:
        scale, unit = 2.0**-20, "MiB"
    largest *= scale
    places = min(6, max(0, 2 - math.floor(math.log10(largest)))) if largest > 0 else 0
    return scale, places, unit


def _holm(row: dict[str, Any]) -> str:
    """Say what the Holm-adjusted decision is, where there is a p value to adjust."""
    adjusted = number_of(row.get("holm_p"))
    if not math.isfinite(adjusted):
        return ""
    p = "p\xa0<\xa00.001" if adjusted < 1e-3 else f"p\xa0=\xa0{fixed(adjusted, 3)}"
    return f"Holm: {text_of(row.get('holm_decision')).replace('_', ' ')}, {p}"


def _count(value: Any) -> str:
    count = number_of(value)
    return f"{count:.0f}" if math.isfinite(count) and count > 0 else ""


def _decision(row: dict[str, Any], margin: str) -> list[tuple[str, str]]:
    """Give what decides the claim, as pairs of term and value; unknown ones are left out."""
    kind, p = text_of(row.get("kind")), number_of(row.get("p_value"))
    pairs = [
        ("Decided by", KINDS.get(kind, kind.replace("_", " "))),
        ("On the metric", text_of(row.get("metric"))),
        ("Margin", margin),
        ("p value before Holm", "" if not math.isfinite(p) else "below 0.001" if p < 1e-3 else fixed(p, 3)),
        ("Seeds", text_of(row.get("seeds"))),
        ("Seeds that would decide", _count(row.get("seeds_needed"))),
    ]
    return [(term, value) for term, value in pairs if value]


def _command(row: dict[str, Any], manifest: dict[str, Any]) -> str:
    """Give the command that rebuilds the claim: in this run's overlay, or in the one that has it.

    The target comes first because Snakemake takes every word after `--configfile` for a configuration.
    """
    overlay = text_of(row.get("overlay")) if row["verdict"] == "not_testable" else ""
    overlay = overlay or text_of(manifest.get("overlay"))
    chosen = f" --configfile {shlex.quote(f'config/{overlay}.yaml')}" if overlay not in ("", "default") else ""
    return f"snakemake claims --cores all{chosen}"


def summary_groups(views: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Split the summary into the headline claims and the rest."""
    headline = [view for view in views if view["headline"]]
    others = [view for view in views if not view["headline"]]
    return [(title, rows) for title, rows in (("Headline claims", headline), ("Other claims", others)) if rows]


def forests(views: Sequence[dict[str, Any]], key: str) -> list[Exhibit]:
    """Draw the claims that have an interval: a forest plot for differences of one unit, for ratios, and for levels."""
    shown = [view for view in views if view["forest"]["row"].low < view["forest"]["row"].high]
    several = len({view["paper"] for view in shown}) > 1
    exhibits: list[Exhibit] = []
    for name in dict.fromkeys(view["forest"]["group"] for view in shown):
        chosen = [view for view in shown if view["forest"]["group"] == name]
        rows = [_named(view, several) for view in chosen]
        texts = [view["forest"]["text"] for view in chosen]
        table = [
            (f"{view['paper']} {view['name']}", view["word"], view["ours"], view["paper_value"], view["seeds"])
            for view in chosen
        ]
        exhibits.append(Exhibit(
            key=f"forest-{slug(name)}",
            title=f"Estimates and intervals: {name}",
            caption=FOREST_CAPTION if not exhibits else "Read like the plot before it.",
            svg=row_plot(f"{key}-forest-{slug(name)}", rows, name, texts=texts,
                         zero=1.0 if name == "ratios" else None if name.startswith("levels") else 0.0,
                         paper_label="the paper" if any(math.isfinite(row.paper) for row in rows) else ""),
            alt="Estimates with 95 % intervals: " + "; ".join(f"{row[0]}: {row[2]}, {row[1]}" for row in table) + ".",
            columns=("claim", "verdict", "this run [95 % interval]", "the paper", "seeds"),
            rows=table,
        ))  # fmt: skip
    return exhibits


def _named(view: dict[str, Any], with_paper: bool) -> Row:
    """Give a claim's row with its verdict's sign, and its paper where the plot has several."""
    row = view["forest"]["row"]
    return replace(row, label=f"{view['sign']} {view['paper'] + ' ' if with_paper else ''}{row.label}")
