"""Pictures of a reduction experiment as PNG: scatter plots of 2-D codes, and rows of rebuilt images."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

# Ten colours by Tol ("Colour schemes", muted, with one grey), told apart by colour-blind readers.
COLOURS = ("#332288", "#88ccee", "#44aa99", "#117733", "#999933", "#ddcc77", "#cc6677", "#882255", "#aa4499", "#777777")
# The page shows a picture as wide as its plots, so that the words of both are of one size.
WIDTH, DPI = 340 / 72, 160
STYLE: dict[RcKeyType, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "text.parse_math": False,
}
LABEL = 0.21  # inches above a line of images, for its name


def codes_picture(codes: Mapping[str, np.ndarray], labels: np.ndarray, label_names: Sequence[str]) -> bytes:
    """Draw one scatter plot a method, points (n, 2) coloured by class; each plot has a scale of its own."""
    columns = min(3, len(codes))
    rows = math.ceil(len(codes) / columns)
    names = [str(name) for name in label_names] if len(label_names) <= len(COLOURS) else []
    in_line = max(1, min(10, 46 // (3 + max(map(len, names), default=1))))  # of the legend, by its longest name
    legend = 0.2 * math.ceil(len(names) / in_line) + 0.1
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, WIDTH / columns * 1.12 * rows + legend), layout="constrained", dpi=DPI)
        for place, (name, points) in enumerate(codes.items(), start=1):
            axes = figure.add_subplot(rows, columns, place)
            shown = labels[: len(points)]
            for label in np.unique(shown):
                chosen = points[shown == label]
                axes.plot(chosen[:, 0], chosen[:, 1], "o", color=COLOURS[label % len(COLOURS)], markersize=2, mew=0)
            axes.set(title=name, xticks=[], yticks=[])
        if names:
            marks = [Line2D([], [], marker="o", ls="", color=colour) for colour in COLOURS[: len(names)]]
            figure.legend(marks, names, loc="outside lower center", ncols=in_line, frameon=False,
                          handletextpad=0.1, columnspacing=0.8)  # fmt: skip
        return _png(figure)


def rebuilt_picture(rows: Mapping[str, np.ndarray], image_shape: tuple[int, int, int]) -> bytes:
    """Draw one line of images (n, H * W * C) a method, clipped to [0, 1], the name above each line."""
    height, width, channels = image_shape
    count = len(next(iter(rows.values())))
    tall = WIDTH / count * height / width
    line = LABEL + tall
    whole = line * len(rows)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, whole), dpi=DPI)
        for number, (name, images) in enumerate(rows.items(), 1):
            axis = figure.add_axes((0, 1 - number * line / whole, 1, tall / whole))
            grid = np.ones((height, count * (width + 1) - 1, channels))
            for place, image in enumerate(images):
                left = place * (width + 1)
                grid[:, left : left + width] = np.clip(image, 0, 1).reshape(image_shape)
            axis.imshow(grid.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
            axis.set_title(name, loc="left", pad=3)
            axis.set_axis_off()
        return _png(figure)


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
