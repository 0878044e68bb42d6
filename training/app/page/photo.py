"""Tab "From one photo": a photo and a mask to a concept in a second, and a training from there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gradio as gr

from ..drawing.encoding import canvas, encoded, missing_encoder, refined
from ..markup.pieces import lines, note
from ..services import Services
from .panel import Panel


def photo_tab(services: Services, guard: Callable[..., Any]) -> tuple[Callable[..., Any], list[Any]]:
    """Build the tab; gives what says whether an encoder is there, and the component that this fills."""
    kept: dict[str, Any] = {"app": services.config, "places": services.places}
    missing = gr.HTML(elem_id="no-encoder")
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            photo = gr.File(label="A photo of one thing", height=130, elem_id="one-photo")
            brush = gr.Brush(default_size=40, colors=["#4f46e5"], color_mode="fixed")
            editor = gr.ImageEditor(type="pil", label="Paint over the thing", sources=(), transforms=(), layers=False,
                                    brush=brush, canvas_size=(512, 512), height=440, elem_id="painted")  # fmt: skip
            mask = gr.File(label="or drop its mask, white where the thing is", height=130, elem_id="one-mask")
            name = gr.Textbox("", label="Name", info="letters, digits, _ and -", elem_id="one-name")
            word = gr.Textbox("", label="What kind of thing", info="a plain word: car, cat, mug", elem_id="one-word")
        with gr.Column(scale=3, min_width=300):
            prompt = gr.Textbox("A photo of a {}", label="Prompt")
            panel = Panel(services, guard, "photo", "Make the concept and draw it")
            refine = gr.Button("Refine it: learn from this photo", size="sm", elem_id="refine")

    def learn(*values: Any) -> str:
        return note(f"{services.runs.add(refined(*values, **kept))} is being learned: see Learn")

    photo.upload(guard(canvas), photo, editor)
    panel.connect([panel.draw.click], [photo, editor, mask, name, word, prompt], partial(encoded, **kept))
    refine.click(guard(learn), [photo, editor, mask, name, word], panel.status)
    return lambda: lines(missing_encoder(services.config)), [missing]
