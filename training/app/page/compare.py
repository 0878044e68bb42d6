"""Tab "Compare": several concepts as points, and the pictures behind each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from ..compare import compare
from ..markup.chart import CHOOSE, chart
from ..markup.pieces import bar
from ..services import Services


def compare_tab(services: Services, guard: Callable[..., Any]) -> tuple[Callable[..., Any], list[Any]]:
    """Build the tab; gives what brings its concepts up to date, and the component that this fills."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=300):
            chosen = gr.Dropdown([], multiselect=True, label="Concepts", elem_id="compared")
            measure = gr.Button("Draw and measure", variant="primary", elem_id="measure")
            status = gr.HTML(elem_id="compare-status")
            numbers = gr.HTML("", js_on_load=CHOOSE, elem_id="numbers")
        with gr.Column(scale=2, min_width=300):
            pictures = gr.Gallery(label="Behind the point", columns=2, buttons=[], elem_id="behind")
    points = gr.State([])

    def show(request: gr.Request, names: list[str]) -> Iterator[tuple[Any, ...]]:
        for made in compare(names, str(request.session_hash), services):
            done = chart(made.points) if made.points else gr.update()
            yield bar(made.share, made.words), done, made.points

    def behind(points: list[Any], event: gr.EventData) -> list[tuple[str, str]]:
        return points[event.point].pictures

    measure.click(guard(show), chosen, [status, numbers, points], show_progress="hidden", concurrency_limit=None)
    numbers.click(guard(behind), points, pictures, show_progress="hidden")
    return lambda now: gr.Dropdown([entry.name for entry in services.library.entries()], value=now), [chosen]
