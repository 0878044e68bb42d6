"""Points of a comparison: as a chart whose points one can click, and as a table."""

from __future__ import annotations

import html
from collections.abc import Sequence

from ..compare import Point

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 640, 380, 62, 16, 40, 44
COLOURS = ("#4f46e5", "#d55e00", "#009e73", "#cc79a7", "#0072b2", "#6b7280")  # safe to tell apart
TICKS = 4
CHOOSE = """element.addEventListener('click', event => {
  const point = event.target.closest('[data-point]');
  if (point) trigger('click', {point: Number(point.dataset.point)});
});"""


class Scale:
    """From values to pixels, with some room at both ends."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        room = max(0.12 * (max(values) - min(values)), 0.01)
        self.low, self.high, self.start, self.end = min(values) - room, max(values) + room, start, end

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        return [self.low + (self.high - self.low) * k / TICKS for k in range(TICKS + 1)]


def chart(points: Sequence[Point]) -> str:
    """An SVG of image similarity (across) against text similarity (up), a line for each concept, and the table."""
    x = Scale([point.image for point in points], LEFT, WIDTH - RIGHT)
    y = Scale([point.text for point in points], HEIGHT - BOTTOM, TOP)
    concepts = dict(zip(dict.fromkeys(point.concept for point in points), COLOURS, strict=False))
    parts = [_axes(x, y)]
    for concept, colour in concepts.items():
        path = " ".join(f"{x(p.image):.1f},{y(p.text):.1f}" for p in points if p.concept == concept)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5" opacity="0.5"/>')
    for number, point in enumerate(points):
        across, up = x(point.image), y(point.text)
        about = html.escape(f"{point.concept}, {point.units} units: {point.shown[0]} image, {point.shown[1]} text")
        parts.append(
            f'<g data-point="{number}" class="point"><title>{about}</title>'
            f'<circle cx="{across:.1f}" cy="{up:.1f}" r="7" fill="{concepts[point.concept]}"/>'
            f'<text x="{across + 11:.1f}" y="{up + 4:.1f}">{point.units}</text></g>'
        )
    names = "".join(
        f'<span><i style="background:{colour}"></i>{html.escape(name)}</span>' for name, colour in concepts.items()
    )
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" class="chart" role="img">{"".join(parts)}</svg>'
    return f'{svg}<p class="legend">{names}</p>{_table(points)}'


def _axes(x: Scale, y: Scale) -> str:
    lines = [f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>' for t in y.ticks]
    marks = [f'<text x="{LEFT - 8}" y="{y(t) + 4:.1f}" text-anchor="end">{t:.2f}</text>' for t in y.ticks]
    below = HEIGHT - BOTTOM + 18
    marks += [f'<text x="{x(t):.1f}" y="{below}" text-anchor="middle">{t:.2f}</text>' for t in x.ticks]
    middle = (LEFT + WIDTH - RIGHT) / 2
    marks.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">similarity to the photos</text>')
    marks.append(f'<text transform="translate(14 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">to the prompt</text>')
    return f'<g class="grid">{"".join(lines)}</g><g class="marks">{"".join(marks)}</g>'


def _table(points: Sequence[Point]) -> str:
    rows = "".join(
        f'<tr data-point="{number}"><td>{html.escape(point.concept)}</td><td>{point.units}</td>'
        f"<td>{point.shown[0]}</td><td>{point.shown[1]}</td><td>{len(point.pictures)}</td></tr>"
        for number, point in enumerate(points)
    )
    head = "".join(f"<th>{text}</th>" for text in ("concept", "units", "to the photos", "to the prompt", "images"))
    return f'<div class="wide"><table class="numbers"><tr>{head}</tr>{rows}</table></div>'
