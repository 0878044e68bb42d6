"""Tab "Mix": two concepts by turns, and a map of which one counts where and when."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gradio as gr

from ..drawing.mixing import mix_request, style_map
from ..markup.mixing import CLICK, MAP
from ..services import Services
from .panel import Panel


def mix_tab(services: Services, guard: Callable[..., Any]) -> tuple[Callable[..., Any], list[Any]]:
    """Build the tab; gives what brings its concepts up to date, and the components that this fills."""
    library = services.library
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            first = gr.Dropdown([], label="Geometry: content and shape", elem_id="first")
            second = gr.Dropdown([], label="Appearance: colour and texture", elem_id="second")
            start = gr.Slider(0, 900, 600, step=100, label="Mixing starts at timestep", info="more: more of the second")
            where = gr.HTML("", html_template=MAP, js_on_load=CLICK, elem_id="map")
        with gr.Column(scale=3, min_width=300):
            prompt = gr.Textbox("A photo of a {}", label="Prompt", elem_id="mix-prompt")
            seeds = gr.Textbox("0-2", label="Seeds", elem_id="mix-seeds")
            panel = Panel(services, guard, "mix")

    def refresh(one: str | None, two: str | None) -> list[Any]:
        names = [entry.name for entry in library.entries()]
        both = [one if one in names else next(iter(names), None), two if two in names else next(iter(names[1:]), None)]
        return [gr.Dropdown(names, value=value) for value in both]

    draw_map = guard(partial(style_map, library))
    gr.on([first.change, second.change, start.release], draw_map, [first, second, start], where, show_progress="hidden")
    draw = partial(mix_request, library, services.config)
    panel.connect([panel.draw.click], [first, second, where, prompt, seeds], draw)
    return refresh, [first, second]
