"""Plots of the report as inline SVG: one look, the same bytes for the same input, readable from 390 px up.

Every plot is `WIDTH` points wide and is scaled by the page, so text keeps its proportion to the plot. Rows of a plot
carry their label above the row and not beside it, because long labels beside a plot leave a phone nothing to plot in.
Colours are Okabe and Ito's palette for colour-blind readers ("Color Universal Design", 2008), and each series has its
own marker as well.

Text in the SVG is real text (searchable, escaped by matplotlib); the page sets its font. Matplotlib's own state is left
alone: figures are made without pyplot and inside `rc_context`.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, ScalarFormatter

from reclaim.stats import seed_interval

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

WIDTH = 340  # points; the page shows a plot at 330 to 470 CSS pixels
ROW = 42  # points of height for a labelled row
INK, MUTED, RULE = "#1a1a1a", "#555555", "#c9c9c9"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#8a4f7d", "#b07d00", "#2a7fa8", "#5c5c5c")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # keeps grid lines out of the words
STYLE: dict[RcKeyType, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.fontsize": 9.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "path.simplify": True,
}


@dataclass(frozen=True)
class Exhibit:
    """One thing a section shows: a plot with its table of values, a table alone, or the reason why it is absent.

    `key` is unique within its system and becomes part of an id. `caption` says how to read it. `columns` and `rows`
    are the plotted values as text; the page offers them under the plot, or shows them when there is no plot. An
    exhibit with `missing` has nothing else to show.
    """

    key: str
    title: str
    caption: str = ""
    svg: str = ""
    alt: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    missing: str = ""


@dataclass(frozen=True)
class Row:
    """A labelled row of `row_plot`: per-seed `points`, a mark at `estimate` with its interval, and the paper's own
    figure.

    `low`, `high` and `paper` may be NaN. `bounds` are what the interval has to clear or to stay within, drawn as ticks.
    """

    label: str
    estimate: float
    low: float = math.nan
    high: float = math.nan
    points: Sequence[float] = ()
    paper: float = math.nan
    bounds: Sequence[float] = ()
    colour: int = 0


@dataclass(frozen=True)
class Series:
    """A line of `line_plot`: for each x the values by seed. Seeds that are at every x are joined by thin lines."""

    label: str
    values: Mapping[float, Mapping[int, float]]


@dataclass(frozen=True)
class Panel:
    """One set of axes of `line_plot`, scaled to its series.

    `references` are labelled horizontal lines; one that lies off the scale is named in the legend with the side it
    lies on.
    """

    title: str
    ylabel: str
    series: Sequence[Series]
    references: Sequence[tuple[str, float]] = field(default=())


@dataclass(frozen=True)
class Curve:
    """One run's curve in `curve_plot`; runs with one `label` share a colour and get a mean line."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]


def mean_interval(values: Iterable[float]) -> tuple[float, float, float]:
    """Give mean, low and high of the two-sided 95 % t interval over seeds; infinite ends for one value, NaN for
    none.
    """
    found = [value for value in values if math.isfinite(value)]
    if not found:
        return math.nan, math.nan, math.nan
    interval = seed_interval(found)
    return interval.estimate, interval.low, interval.high


def number(value: float, digits: int = 3) -> str:
    """Write a number with `digits` significant places and a true minus sign; a dash for NaN."""
    if value is None or not math.isfinite(value):
        return "–"
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        text = f"{value:.{max(digits - 1, 0)}e}"
    else:
        places = digits - 1 - (math.floor(math.log10(abs(value))) if value else 0)
        text = f"{value:,.{max(places, 0)}f}" if abs(value) >= 1e4 else f"{value:.{max(places, 0)}f}"
    return text.replace("-", "−")


def fixed(value: float, places: int, sign: bool = False) -> str:
    """Write a number with `places` decimals, a true minus sign, and `+` where asked; a dash for NaN."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:{'+' if sign else ''},.{places}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def percent(value: float, places: int = 1) -> str:
    """Write a fraction as per cent without the sign of unit."""
    return fixed(value * 100, places) if value is not None else "–"


def shorten(text: str, room: int) -> str:
    """Cut a text that would take too much room; it stands whole elsewhere on the page."""
    return text if len(text) <= room else text[: room - 1] + "…"


def interval_text(estimate: float, low: float, high: float, places: int = 1, sign: bool = False) -> str:
    """Write `estimate [low, high]`, or the estimate alone where there is no interval or it has no width."""
    text = fixed(estimate, places, sign)
    if math.isfinite(low) and math.isfinite(high) and low < high:
        text += f" [{fixed(low, places, sign)}, {fixed(high, places, sign)}]"
    return text


def row_plot(
    key: str,
    rows: Sequence[Row],
    xlabel: str,
    *,
    texts: Sequence[str] = (),
    zero: float | None = None,
    paper_label: str = "",
    bars: bool = False,
) -> str:
    """Draw one row per `Row` from top to bottom: label above, points, mean and interval (or a bar from 0) below it.

    `texts` are written at the right of the labels, `zero` is a vertical line of no effect. Returns the SVG element.
    """
    height = len(rows) * ROW + 44 + (22 if paper_label else 0)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        axes = figure.add_subplot()
        _grid(axes, "x")
        if zero is not None:
            axes.axvline(zero, color=MUTED, linewidth=1)
        for place, row in enumerate(rows):
            _row(axes, row, place, bars)
            text: dict[str, Any] = {"va": "center", "bbox": BEHIND, "in_layout": False}
            text["transform"] = axes.get_yaxis_transform()
            room = 54 - len(texts[place]) if place < len(texts) else 56
            axes.text(0, place - 0.32, shorten(row.label, room), ha="left", **text)
            if place < len(texts):
                axes.text(1, place - 0.32, texts[place], ha="right", color=MUTED, fontsize=9.5, **text)
        axes.set_ylim(len(rows) - 0.45, -0.6)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(xlabel)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        if bars:
            axes.set_xlim(left=0)
        _plain_ticks(axes.xaxis)
        if paper_label:
            mark = Line2D([], [], marker="D", color="none", markeredgecolor=INK, mew=1.3, markersize=6.5)
            figure.legend([mark], [paper_label], loc="outside lower center", frameon=False)
        return to_svg(figure, key)


def line_plot(
    key: str, panels: Sequence[Panel], xlabel: str, *, xticks: Sequence[float] = (), percent_x: bool = False
) -> str:
    """Draw panels one below the other over one x axis: per-seed points, means joined by a line, 95 % t intervals."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH / 72, (len(panels) * 225 + 15) / 72), layout="constrained")
        parts = figure.subfigures(len(panels), 1, squeeze=False)[:, 0]
        axes = None
        for part, panel in zip(parts, panels, strict=True):
            axes = part.add_subplot(sharex=axes)
            _grid(axes, "y")
            for index, series in enumerate(panel.series):
                _series(axes, series, index, len(panel.series))
            _references(axes, panel.references)
            axes.set_title(shorten(panel.title, 50), loc="left")
            axes.set_ylabel(panel.ylabel)
            axes.set_xlabel(xlabel)
            if xticks:
                axes.set_xticks(list(xticks))
            if percent_x:
                axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
            _plain_ticks(axes.yaxis)
            if len(panel.series) > 1 or panel.references:
                _legend(part, axes)
        return to_svg(figure, key)


def curve_plot(
    key: str, curves: Sequence[Curve], xlabel: str, ylabel: str, *, references: Sequence[tuple[str, float]] = ()
) -> str:
    """Draw every run as a thin line and the mean of the runs that share a label as a thick one."""
    with matplotlib.rc_context(STYLE):
        labels = list(dict.fromkeys(curve.label for curve in curves))
        height = 215 + 14 * (len(labels) + len(references))
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        axes = figure.add_subplot()
        _grid(axes, "y")
        for index, label in enumerate(labels):
            colour = COLOURS[index % len(COLOURS)]
            style = ("-", "--", "-.", ":")[index % 4]
            runs = [curve for curve in curves if curve.label == label]
            for run in runs:
                axes.plot(*_thin(run.steps, run.values), color=colour, linewidth=0.7, alpha=0.35)
            axes.plot(*_thin(*_mean_curve(runs)), color=colour, linewidth=2, linestyle=style, label=label)
        _references(axes, references)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        _plain_ticks(axes.xaxis)
        _plain_ticks(axes.yaxis)
        _legend(figure, axes)
        return to_svg(figure, key)


def to_svg(figure: Figure, key: str) -> str:
    """Render to an `<svg>` element without prolog, date or fixed size; ids carry `key`, so that many fit in one
    page.
    """
    stream = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": key}):
        FigureCanvasSVG(figure)
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", metadata=metadata, transparent=True)
    text = stream.getvalue()
    body = text[text.index("<svg") :]
    box = re.findall(r'viewBox="([^"]+)"', body)[0]
    body = body[body.index(">") + 1 :].rstrip()
    prefix = re.sub(r"[^A-Za-z0-9_-]+", "-", key)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", body)
    body = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{prefix}-\1"', body)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{html.escape(box)}" class="plot">{body}'


def _row(axes: Axes, row: Row, place: int, bars: bool) -> None:
    """Draw one row of a row plot: single seeds just below the interval, so that it does not hide them."""
    colour, marker = COLOURS[row.colour % len(COLOURS)], MARKERS[row.colour % len(MARKERS)]
    if bars:
        axes.barh(place + 0.08, row.estimate, height=0.34, color=colour, alpha=0.45)
    if row.low < row.high < math.inf:
        axes.plot([row.low, row.high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
    axes.plot(row.points, [place + 0.24] * len(row.points), marker, color=colour, alpha=0.55, markersize=4.5, mew=0)
    if not bars:
        axes.plot(row.estimate, place, marker, color=colour, markersize=7.5, markeredgecolor="white", mew=0.8)
    if math.isfinite(row.paper):
        axes.plot(row.paper, place, "D", color="none", markeredgecolor=INK, markersize=6.5, mew=1.3)
    for bound in row.bounds:
        axes.plot([bound, bound], [place - 0.14, place + 0.34], color=INK, linewidth=1.6, linestyle=(0, (2, 1)))


def _series(axes: Axes, series: Series, index: int, count: int) -> None:
    """Draw one series of a line plot; series with seeds are set a little apart, so that they do not hide each other."""
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    xs = sorted(series.values)
    several = any(len(by_seed) > 1 for by_seed in series.values.values())
    shift = (index - (count - 1) / 2) * (max(xs) - min(xs)) * 0.016 if several else 0.0
    places = [x + shift for x in xs]
    summary = [mean_interval(series.values[x].values()) for x in xs]
    for seed in sorted(set.intersection(*(set(series.values[x]) for x in xs))) if several else ():
        axes.plot(places, [series.values[x][seed] for x in xs], color=colour, linewidth=0.7, alpha=0.4)
    for x, place, (_, low, high) in zip(xs, places, summary, strict=True):
        by_seed = list(series.values[x].values())
        if several:
            axes.plot([place] * len(by_seed), by_seed, marker, color=colour, alpha=0.5, markersize=4, mew=0)
        if math.isfinite(low):
            axes.plot([place, place], [low, high], color=colour, linewidth=2, solid_capstyle="butt")
    axes.plot(places, [mean for mean, _, _ in summary], color=colour, linewidth=1.6, marker=marker, markersize=7,
              markeredgecolor="white", mew=0.8, label=series.label, zorder=3)  # fmt: skip


def _references(axes: Axes, references: Sequence[tuple[str, float]]) -> None:
    """Draw horizontal lines within the scale that the data set, and name the others in the legend."""
    low, high = axes.get_ylim()
    reach = 0.6 * (high - low)
    for index, (label, value) in enumerate(references):
        style: dict[str, Any] = {"color": INK, "linewidth": 1.2, "linestyle": ("--", ":", "-.")[index % 3]}
        if low - reach <= value <= high + reach:
            axes.axhline(value, label=label, **style)
        else:
            axes.plot([], [], label=f"{label} ({'above' if value > high else 'below'} the scale)", **style)


def _legend(figure: FigureBase, axes: Axes) -> None:
    """Put a legend below, in two columns where its labels fit."""
    handles, labels = axes.get_legend_handles_labels()
    labels = [shorten(label, 50) for label in labels]
    columns = 2 if max(map(len, labels)) <= 22 else 1
    figure.legend(handles, labels, loc="outside lower center", frameon=False, ncols=columns)


def _mean_curve(runs: Sequence[Curve]) -> tuple[list[float], list[float]]:
    """Average runs over the steps that all of them logged."""
    tables = [dict(zip(run.steps, run.values, strict=True)) for run in runs]
    common = sorted(set.intersection(*(set(table) for table in tables)))
    return common, [float(np.mean([table[step] for table in tables])) for step in common]


def _thin(steps: Sequence[float], values: Sequence[float], most: int = 240) -> tuple[list[float], list[float]]:
    """Average neighbouring points of a long curve, so that a page with many runs stays small."""
    size = -(-len(steps) // most)
    if size < 2:
        return list(steps), list(values)
    places = range(0, len(steps), size)
    thin_steps, thin_values = (
        [float(np.mean(axis[place : place + size])) for place in places] for axis in (steps, values)
    )
    return thin_steps, thin_values


def _grid(axes: Axes, axis: Literal["x", "y"]) -> None:
    axes.grid(axis=axis, color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)


def _plain_ticks(axis: Axis) -> None:
    """Keep tick labels plain: no offset such as `1e6` in a corner."""
    formatter = axis.get_major_formatter()
    if isinstance(formatter, ScalarFormatter):  # the formatter of a linear scale
        formatter.set_useOffset(False)
