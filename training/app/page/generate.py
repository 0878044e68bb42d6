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
            shelf = gr.Gallery(
                label="Concepts", columns=4, height="auto", allow_preview=False, elem_id="library", buttons=[]
            )
            concept = gr.Dropdown([], label="Concept", info="stands for {} in the prompt", elem_id="concept")
            prompt = gr.Textbox("A photo of a {}", label="Prompt", info="others join as {name}", elem_id="prompt")
            gr.Examples([[text] for text in PAPER_PROMPTS[2:14:3]], prompt, label="Try", elem_id="examples")
            truncation = gr.Slider(
                0, 128, 128, step=1, label="Truncation", info="fewer units: freer to edit; all: closest to the photos",
                visible=False, elem_id="truncation",
            )  # fmt: skip
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
                upload = gr.UploadButton("Add a concept file", file_types=[".safetensors"], size="sm")
        with gr.Column(scale=3, min_width=300):
            seeds = gr.Textbox("0-3", label="Seeds", info="such as 7, 0-3 or 1,5,7", elem_id="seeds")
            panel = Panel(services, guard, "generate")
            restore = gr.UploadButton("Restore from an image", file_types=[".png"], size="sm", elem_id="restore")

    found = gr.State(None)
    offered = [truncation, lock, key_lock, compare, *sliders]
    fields = [concept, prompt, seeds, negative, steps, guidance, scheduler]

    @guard
    def refresh(now: str | None) -> tuple[Any, Any]:
        shown = [(str(library.thumbnail(entry)), entry.caption) for entry in library.entries()]
        names = [caption.partition(" · ")[0] for _, caption in shown]
        return shown, gr.Dropdown(names, value=now if now in names else next(iter(names), None))

    @guard
    def offer(name: str | None, brought: Request | None) -> list[Any]:
        if not name:
            return [gr.update()] * len(offered)
        at = brought if brought is not None and brought.concept == name else Request("")
        return [gr.update(**each) for each in drawer.controls(name).widgets(at.truncation, **at.settings)]

    @guard
    def pick(picked: gr.SelectData) -> str:
        return picked.value["caption"].partition(" · ")[0]

    @guard
    def bring_back(file: str) -> list[Any]:
        at = restored(Path(file), library)
        values = [at.concept, at.prompt, at.seeds, at.negative_prompt, at.steps, at.guidance_scale, at.scheduler]
        return [at, note(f"restored: {Path(file).name}"), *values]

    @guard
    def add(file: str) -> str:
        return library.add(Path(file)).name

    gr.on([concept.change], offer, [concept, found], offered, show_progress="hidden")
    shelf.select(pick, None, concept, show_progress="hidden")
    panel.connect(
        [panel.draw.click, prompt.submit, truncation.release, *(slider.release for slider in sliders)],
        [*fields, *offered],
        drawer.request,
    )
    restore.upload(bring_back, restore, [found, panel.status, *fields]).then(offer, [concept, found], offered)
    upload.upload(add, upload, concept).then(refresh, concept, [shelf, concept])
    return refresh, [shelf, concept]
