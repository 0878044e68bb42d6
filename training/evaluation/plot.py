"""Text against image similarity: a point per truncation, a line per method, the upper bounds at the edges."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...utils.files import write_atomically
from ...utils.statistics import Estimate
from .report import PLOT_MARK, Report
from .rows import TRAINING_IMAGES, Kind, Row, truncation_name
from .scores import IMAGE, REFERENCE, TEXT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe-Ito: safe to tell apart
MARKERS = "osD^vPX"
COMPARED = {IMAGE: "the training images", REFERENCE: "reference pictures"}
BOUND = "#6b6b6b"
INK, SOFT_INK = "#1a1a1a", "#5a5a5a"
DPI = 160
BETWEEN = 8  # points of a line, from one corner to the next, that labels keep off


def write_plot(report: Report, path: Path, likeness: str = IMAGE) -> None:
    """Write the plot of the report's headline rows as PNG. Points are means, the thin crosses 95% intervals.

    likeness: the metric along the horizontal axis.
    """
    from adjustText import adjust_text  # slow to import, as matplotlib is
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # draws without a screen
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 6.4), dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    runs = [row for row in report.headline if row.kind is Kind.run]
    bounds = [row for row in report.headline if row.kind is Kind.bound]
    lines, labels = [], []
    for number, place in enumerate(dict.fromkeys((row.method, row.concept) for row in runs)):
        line = sorted((row for row in runs if (row.method, row.concept) == place), key=_order)
        colour = COLOURS[number % len(COLOURS)]
        lines.append(np.array([_point(row, likeness) for row in line]))
        _draw_line(axes, line, likeness, _name(line[0], runs), colour, MARKERS[number % len(MARKERS)])
        if len(line) > 1 or line[0].truncation is not None:
            labels += [
                axes.text(
                    *_point(r, likeness),
                    truncation_name(r.truncation),
                    color=colour,
                    fontsize=8.5,
                    ha="center",
                    va="center",
                )
                for r in line
            ]
    for row in bounds:
        _draw_bound(axes, row, likeness, _name(row, bounds))

    axes.margins(0.1)
    axes.set_xlabel(f"image similarity  (to {COMPARED[likeness]})", color=INK)
    axes.set_ylabel("text similarity  (to the prompt)", color=INK)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=SOFT_INK)
    figure.suptitle(_title(report), x=0.012, ha="left", fontsize=12, color=INK)
    about = f"{report.protocol_line}. Crosses and bands: {PLOT_MARK}. Numbers at points: hidden units kept."
    axes.set_title(textwrap.fill(about, 118), loc="left", fontsize=7.5, color=SOFT_INK, pad=9)
    figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=9)
    canvas.draw()  # fixes the layout, which the places of the labels depend on
    figure.set_layout_engine("none")
    if labels:
        x, y = np.concatenate([_along(line) for line in lines]).T  # labels keep off points and lines
        leader = {"arrowstyle": "-", "color": SOFT_INK, "linewidth": 0.5}
        adjust_text(labels, x, y, ax=axes, expand=(1.7, 1.5), max_move=4, iter_lim=300, arrowprops=leader)
    write_atomically(path, lambda file: figure.savefig(file, format="png", metadata={"Description": about}))


def _draw_line(axes: Axes, rows: Sequence[Row], likeness: str, name: str, colour: str, marker: str) -> None:
    image, text = ([row.estimates[metric] for row in rows] for metric in (likeness, TEXT))
    x, y = [estimate.mean for estimate in image], [estimate.mean for estimate in text]
    axes.errorbar(x, y, xerr=_reach(image), yerr=_reach(text), fmt="none", ecolor=colour, elinewidth=0.9, alpha=0.4)
    axes.plot(x, y, color=colour, marker=marker, markersize=6, linewidth=1.7, markeredgecolor="white", label=name)


def _draw_bound(axes: Axes, row: Row, likeness: str, name: str) -> None:
    """The training images bound image similarity (a vertical line), the prompt alone text similarity (horizontal)."""
    vertical = row.method == TRAINING_IMAGES
    value = row.estimates[likeness if vertical else TEXT]
    line, band = (axes.axvline, axes.axvspan) if vertical else (axes.axhline, axes.axhspan)
    label = f"{name}: {'image' if vertical else 'text'} similarity {value.mean:.3f}"
    line(value.mean, color=BOUND, linestyle="--" if vertical else ":", linewidth=1.4, label=label, zorder=1.5)
    if value.low is not None and value.high is not None:
        band(value.low, value.high, color=BOUND, alpha=0.08, linewidth=0)


def _point(row: Row, likeness: str) -> tuple[float, float]:
    return row.estimates[likeness].mean, row.estimates[TEXT].mean


def _along(corners: np.ndarray) -> np.ndarray:
    """[K,2] corners of a line -> points along it [N,2], themselves included."""
    place = np.linspace(0, len(corners) - 1, BETWEEN * (len(corners) - 1) + 1)
    return np.stack([np.interp(place, range(len(corners)), corners[:, k]) for k in (0, 1)], axis=1)


def _name(row: Row, others: Sequence[Row]) -> str:
    """The method, and its concept where the plot shows several: no mean over concepts could be made then."""
    several = row.concept and len({other.concept for other in others}) > 1
    return f"{row.method} ({row.concept})" if several else row.method


def _order(row: Row) -> float:
    return math.inf if row.truncation is None else row.truncation


def _reach(estimates: Sequence[Estimate]) -> list[list[float]]:
    """Distances down and up to the ends of the intervals, 0 where there is none; a skewed one may lie to one side."""
    low = [max(e.mean - e.low, 0.0) if e.low is not None else 0.0 for e in estimates]
    high = [max(e.high - e.mean, 0.0) if e.high is not None else 0.0 for e in estimates]
    return [low, high]


def _title(report: Report) -> str:
    concepts = list(dict.fromkeys(row.concept for row in report.rows if row.concept))
    what = concepts[0] if len(concepts) == 1 else f"{len(concepts)} concepts"
    return f"Text against image similarity: {what}"
