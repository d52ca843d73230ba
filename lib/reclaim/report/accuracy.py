"""Exhibits of accuracy that several systems share: one row an arm, or lines over a masking rate. Values in per cent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from reclaim.report.figures import (
    Exhibit,
    Panel,
    Row,
    Series,
    fixed,
    interval_text,
    line_plot,
    mean_interval,
    percent,
    row_plot,
)
from reclaim.report.system import Record, by_seed, group

HOW = "Small faint marks are seeds, the large mark is their mean, the bar its 95 % t interval over seeds."


def mean_text(values: Iterable[float], places: int = 1) -> str:
    """Write mean and interval of one value a seed."""
    return interval_text(*mean_interval(values), places=places)


def summary(label: str, records: Sequence[Record]) -> tuple[str, str, str, str]:
    """Give a line of a table: label, mean with interval (%), number of seeds, values by seed."""
    values = by_seed(records, 100).values()
    return label, mean_text(values), str(len(values)), ", ".join(fixed(value, 1) for value in values)


def by_rate(records: Iterable[Record]) -> dict[float, dict[int, float]]:
    """Give the values in per cent by corruption rate and seed; records without the rate are left out."""
    rates = group((record for record in records if record.keys.get("corruption") is not None), corruption)
    return {rate: by_seed(rates[rate], 100) for rate in sorted(rates)}


def corruption(record: Record) -> float:
    """Give the masking rate that a record's checkpoint was pre-trained at."""
    return float(record.keys["corruption"])


def arms_exhibit(
    system: str,
    key: str,
    title: str,
    arms: Mapping[str, Sequence[Record]],
    caption: str,
    *,
    score: str = "accuracy",
    colour: Callable[[Record], int] = lambda record: 0,
    paper: Callable[[Record], float] = lambda record: math.nan,
    paper_label: str = "",
) -> Exhibit:
    """Draw one row an arm; `score` names the metric, `paper` gives the paper's value (%) for an arm, or NaN."""
    rows, table = [], []
    quoted = {label: paper(records[0]) for label, records in arms.items()}
    if not any(map(math.isfinite, quoted.values())):
        paper_label = ""
    for label, records in arms.items():
        points = list(by_seed(records, 100).values())
        row = Row(label, *mean_interval(points), points=points, paper=quoted[label], colour=colour(records[0]))
        rows.append(row)
        table.append(summary(label, records) + ((fixed(row.paper, 1),) if paper_label else ()))
    return Exhibit(
        key=key,
        title=title,
        caption=f"{HOW} {caption}",
        svg=row_plot(
            f"{system}-{key}", rows, f"test {score} (%)", texts=[line[1] for line in table], paper_label=paper_label
        ),
        alt=f"Mean test {score} in per cent: "
        + "; ".join(f"{line[0]}: {line[1]}" + (f" (paper {line[4]})" if paper_label else "") for line in table)
        + ".",
        columns=(
            "arm",
            f"mean {score} (%) [95 % interval]",
            "seeds",
            "by seed (%)",
            *(["the paper (%)"] if paper_label else []),
        ),
        rows=table,
    )


def lines_exhibit(
    system: str, key: str, title: str, panels: Sequence[Panel], caption: str, first: str = "line", alt: str = ""
) -> Exhibit:
    """Draw values over the masking rate; the table below has the series with seeds, not the paper's."""
    ours = [line for panel in panels for line in panel.series if any(len(found) > 1 for found in line.values.values())]
    ours = ours or [line for panel in panels[:1] for line in panel.series]
    table = [
        (line.label, f"{percent(rate, 0)} %", mean_text(found.values()), str(len(found)))
        for line in ours
        for rate, found in line.values.items()
    ]
    rates = sorted({rate for line in ours for rate in line.values})
    return Exhibit(
        key=key,
        title=title,
        caption=f"{HOW} Thin lines join the runs of one seed. {caption}",
        svg=line_plot(
            f"{system}-{key}", panels, "masking rate (%)", xticks=rates if len(rates) < 6 else (), percent_x=True
        ),
        alt="Means in per cent: " + "; ".join(f"{line[0]} at {line[1]}: {line[2]}" for line in table) + f".{alt}",
        columns=(first, "masking rate", "mean (%) [95 % interval]", "seeds"),
        rows=table,
    )


def rate_series(label: str, records: Iterable[Record]) -> Series:
    """Make the series of one arm over the masking rate."""
    return Series(label, by_rate(records))
