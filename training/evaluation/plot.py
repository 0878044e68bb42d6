"""Text against image similarity: a point per truncation, a line per method, the rails at the edges."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...utils.image_files import write_atomically
from .report import Report
from .rows import TRAINING_IMAGES, Kind, Row, truncation_name
from .scores import IMAGE, TEXT, Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D
    from matplotlib.transforms import Bbox

Point = tuple[float, float]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe-Ito: safe to tell apart
MARKERS = "osD^vPX"
RAIL = "#6b6b6b"
INK, SOFT_INK = "#1a1a1a", "#5a5a5a"
DPI = 160
DISTANCES = (9, 15, 23, 33)  # of a label from its point, in typographic points, nearest first
DIRECTIONS = 12


def write_plot(report: Report, path: Path) -> None:
    """Write the plot of the report's headline rows as PNG. Points are means, the thin crosses 95% intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import; Agg draws without a screen
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 6.4), dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    runs = [row for row in report.headline if row.kind is Kind.run]
    rails = [row for row in report.headline if row.kind is Kind.rail]
    labels = []
    for number, place in enumerate(dict.fromkeys((row.method, row.concept) for row in runs)):
        line = sorted((row for row in runs if (row.method, row.concept) == place), key=_order)
        colour = COLOURS[number % len(COLOURS)]
        _draw_line(axes, line, _name(line[0], runs), colour, MARKERS[number % len(MARKERS)])
        if len(line) > 1 or line[0].truncation is not None:
            labels += [(row, colour) for row in line]
    for row in rails:
        _draw_rail(axes, row, _name(row, rails))

    axes.margins(0.1)
    axes.set_xlabel("image similarity  (to the training images)", color=INK)
    axes.set_ylabel("text similarity  (to the prompt)", color=INK)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=SOFT_INK)
    figure.suptitle(_title(report), x=0.012, ha="left", fontsize=12, color=INK)
    told = f"{report.protocol_line}. Crosses and bands: 95% intervals. Numbers at points: hidden units kept."
    axes.set_title(textwrap.fill(told, 118), loc="left", fontsize=7.5, color=SOFT_INK, pad=9)
    figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=9)
    canvas.draw()  # fixes the layout, which the places of the labels depend on
    figure.set_layout_engine("none")
    strokes = [p for row in runs for p in _cross(axes, row)]
    strokes += [p for line in axes.lines for p in _along(line)]
    _label_points(axes, labels, [_pixel(axes, row) for row in runs], strokes)
    write_atomically(path, lambda file: figure.savefig(file, format="png", metadata={"Description": told}))


def _draw_line(axes: Axes, rows: Sequence[Row], name: str, colour: str, marker: str) -> None:
    image, text = ([row.estimates[metric] for row in rows] for metric in (IMAGE, TEXT))
    x, y = [estimate.mean for estimate in image], [estimate.mean for estimate in text]
    axes.errorbar(x, y, xerr=_reach(image), yerr=_reach(text), fmt="none", ecolor=colour, elinewidth=0.9, alpha=0.4)
    axes.plot(x, y, color=colour, marker=marker, markersize=6, linewidth=1.7, markeredgecolor="white", label=name)


def _draw_rail(axes: Axes, row: Row, name: str) -> None:
    """The training images bound image similarity (a vertical line), the prompt alone text similarity (horizontal)."""
    vertical = row.method == TRAINING_IMAGES
    value = row.estimates[IMAGE if vertical else TEXT]
    line, band = (axes.axvline, axes.axvspan) if vertical else (axes.axhline, axes.axhspan)
    label = f"{name}: {'image' if vertical else 'text'} similarity {value.mean:.3f}"
    line(value.mean, color=RAIL, linestyle="--" if vertical else ":", linewidth=1.4, label=label, zorder=1.5)
    if value.low is not None and value.high is not None:
        band(value.low, value.high, color=RAIL, alpha=0.08, linewidth=0)


def _label_points(
    axes: Axes, labels: Sequence[tuple[Row, str]], points: Sequence[Point], strokes: Sequence[Point]
) -> None:
    """Write each labelled point's truncation beside it, where it covers no point or label, and no line if it can."""
    from matplotlib.transforms import Bbox

    inside = axes.get_window_extent()
    taken = [Bbox.from_bounds(x - 9, y - 9, 18, 18) for x, y in points]
    for row, colour in labels:
        at = row.estimates[IMAGE].mean, row.estimates[TEXT].mean
        style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8.5, "color": colour}
        text = axes.annotate(truncation_name(row.truncation), at, (0, 0), textcoords="offset points", **style)
        centred = text.get_window_extent()
        places = {offset: centred.translated(offset[0] * DPI / 72, offset[1] * DPI / 72) for offset in _offsets()}
        costs = {offset: _cost(offset, place, inside, taken, strokes) for offset, place in places.items()}
        best = min(costs, key=costs.__getitem__)
        text.set_position(best)
        taken.append(places[best].padded(2))
        if math.hypot(*best) > DISTANCES[1]:
            leader = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 6, "shrinkB": 4}
            axes.annotate("", at, best, textcoords="offset points", arrowprops=leader)


def _cost(offset: Point, place: Bbox, inside: Bbox, taken: Sequence[Bbox], strokes: Sequence[Point]) -> float:
    """How bad a place for a label is: outside the axes or on another mark, then on a line, then far from its point."""
    outside = not (inside.contains(place.x0, place.y0) and inside.contains(place.x1, place.y1))
    crossed = sum(place.contains(*stroke) for stroke in strokes)
    return 1000 * (outside + place.count_overlaps(taken)) + 5 * crossed + math.hypot(*offset) / 4


def _offsets() -> Iterator[Point]:
    for distance, step in itertools.product(DISTANCES, range(DIRECTIONS)):
        angle = math.pi / 2 + 2 * math.pi * step / DIRECTIONS
        yield distance * math.cos(angle), distance * math.sin(angle)


def _along(line: Line2D) -> list[Point]:
    """Pixels along a drawn line."""
    corners = line.get_transform().transform(line.get_xydata())
    return [pixel for start, end in itertools.pairwise(corners) for pixel in _between(start, end)]


def _cross(axes: Axes, row: Row) -> list[Point]:
    """Pixels along the interval cross of a point."""
    (x, x_low, x_high), (y, y_low, y_high) = (
        (estimate.mean, estimate.mean - down, estimate.mean + up)
        for estimate in (row.estimates[IMAGE], row.estimates[TEXT])
        for [down], [up] in [_reach([estimate])]
    )
    left, right, bottom, top = axes.transData.transform([(x_low, y), (x_high, y), (x, y_low), (x, y_high)])
    return _between(left, right) + _between(bottom, top)


def _between(start: Point, end: Point) -> list[Point]:
    """Pixels from start to end, about one in three."""
    (x0, y0), (x1, y1) = start, end
    steps = int(math.hypot(x1 - x0, y1 - y0) / 3) + 1
    return [(x0 + (x1 - x0) * k / steps, y0 + (y1 - y0) * k / steps) for k in range(steps + 1)]


def _pixel(axes: Axes, row: Row) -> Point:
    x, y = axes.transData.transform((row.estimates[IMAGE].mean, row.estimates[TEXT].mean))
    return float(x), float(y)


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
