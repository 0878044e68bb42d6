"""Tab "Generate": a concept, a prompt, and what the concept can be drawn with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from ....models.conditioning.prompts import PAPER_PROMPTS
from ....models.generation.sampling import SCHEDULERS
from ..drawing.controls import LOCKS, NOTHING, SLIDERS
from ..drawing.request import Request, restored
from ..markup.pieces import note
from ..services import Services
from .panel import Panel


def generate_tab(services: Services, guard: Callable[..., Any]) -> tuple[Callable[..., Any], list[Any]]:
    """Build the tab; gives what brings its library up to date, and the components that this fills."""
    config, drawer, library = services.config, services.drawer, services.library
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            shelf = gr.Gallery(columns=4, allow_preview=False, label="Concepts", buttons=[], elem_id="library")
            concept = gr.Dropdown([], label="Concept", info="stands for {} in the prompt", elem_id="concept")
            prompt = gr.Textbox("A photo of a {}", label="Prompt", info="others join as {name}", elem_id="prompt")
            gr.Examples([[text] for text in PAPER_PROMPTS[2:14:3]], prompt, label="Try", elem_id="examples")
            truncation = gr.Slider(0, 128, 128, step=1, label="Truncation", visible=False, elem_id="truncation",
                                   info="fewer units: freer to edit; all: closest to the photos")  # fmt: skip
            sliders = [
                gr.Slider(at.low, at.high, at.low, step=at.step, label=at.label, info=at.info, visible=False)
                for at in SLIDERS.values()
            ]
            lock = gr.Dropdown(LOCKS, label="Lock", info="what the concept's keys are locked to", visible=False)
            key_lock = gr.Checkbox(label="Key lock: closer to the prompt", visible=False)
            compare = gr.Radio([NOTHING], value=NOTHING, label="Side by side over", visible=False, elem_id="compare")
            with gr.Accordion("More", open=False):
                negative = gr.Textbox("", label="Negative prompt", info="what the images should not show")
                steps = gr.Slider(1, 100, config.num_denoising_steps, step=1, label="Denoising steps", elem_id="steps")
                guidance = gr.Slider(1, 15, config.guidance_scale, step=0.5, label="Guidance")
                scheduler = gr.Dropdown(list(SCHEDULERS), label="Sampler")
                upload = gr.UploadButton("Add a concept file", file_types=[".safetensors"], size="sm", elem_id="add")
        with gr.Column(scale=3, min_width=300):
            seeds = gr.Textbox("0-3", label="Seeds", info="such as 7, 0-3 or 1,5,7", elem_id="seeds")
            panel = Panel(services, guard, "generate")
            restore = gr.UploadButton("Restore from an image", file_types=[".png"], size="sm", elem_id="restore")
    found = gr.State(None)
    offered = [truncation, lock, key_lock, compare, *sliders]
    fields = [concept, prompt, seeds, negative, steps, guidance, scheduler]

    def refresh(now: str | None) -> tuple[Any, Any]:
        entries = library.entries()
        names = [entry.name for entry in entries]
        shown = [(str(library.thumbnail(entry)), entry.caption) for entry in entries]
        return shown, gr.Dropdown(names, value=now if now in names else next(iter(names), None))

    def offer(name: str | None, brought: Request | None) -> list[Any]:
        at = brought if brought is not None and brought.concept == name else Request("")
        widgets = drawer.controls(name).widgets(at.truncation, **at.settings) if name else [{}] * len(offered)
        return [gr.update(**widget) for widget in widgets]

    def pick(picked: gr.SelectData) -> str:
        return picked.value["caption"].partition(" · ")[0]

    def bring_back(file: str) -> list[Any]:
        return [*restored(Path(file), library), note(f"restored from {Path(file).name}")]

    concept.change(guard(offer), [concept, found], offered, show_progress="hidden")
    shelf.select(guard(pick), None, concept, show_progress="hidden")
    moved = [truncation.release, *(slider.release for slider in sliders)]
    panel.connect([panel.draw.click, prompt.submit, *moved], [*fields, *offered], drawer.request)
    brought = restore.upload(guard(bring_back), restore, [found, *fields, panel.status])
    brought.then(guard(offer), [concept, found], offered)
    added = upload.upload(guard(lambda file: library.add(Path(file)).name), upload, concept)
    added.then(guard(refresh), concept, [shelf, concept])
    return refresh, [shelf, concept]
