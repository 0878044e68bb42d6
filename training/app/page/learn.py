"""Tab "Learn": photos in, a concept out, and what the trainings have come to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from ..learning.photos import receive
from ..learning.request import DEFAULT, MASKS, Lesson, presets, run_config
from ..markup.pieces import lines, note
from ..markup.runs import run_view
from ..services import Services

EVERY = 2.0  # seconds between two looks at a run


def learn_tab(services: Services, guard: Callable[..., Any]) -> tuple[Callable[..., Any], list[Any]]:
    """Build the tab; gives what finds the runs, and the components that this fills."""
    config, places, runs = services.config, services.places, services.runs
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            files = gr.File(label="Three to six photos of it", file_count="multiple", height=140, elem_id="photos")
            seen = gr.Gallery(columns=4, visible=False, show_label=False, buttons=[], elem_id="seen")
            problems = gr.HTML(elem_id="problems")
            name = gr.Textbox("", label="Name", info="letters, digits, _ and -", elem_id="name")
            word = gr.Textbox("", label="What kind of thing", info="a plain word: car, cat, mug", elem_id="word")
            with gr.Accordion("More", open=False, elem_id="learn-more"):
                masks = gr.Dropdown(MASKS, value="none", label="Masks", info="what lies outside is not learned")
                method = gr.Dropdown(config.methods, label="Method")
                preset = gr.Dropdown(presets(config), value=DEFAULT, label="Preset", info="on top of the recipe")
                steps = gr.Number(None, label="Steps", info="empty: as the recipe says", elem_id="learn-steps")
            start = gr.Button("Learn it", variant="primary", elem_id="learn")
        with gr.Column(scale=3, min_width=300):
            run = gr.Dropdown([], label="Run", elem_id="run")
            status = gr.HTML(elem_id="run-status")
            with gr.Row():
                stop = gr.Button("Stop", size="sm", elem_id="stop")
                resume = gr.Button("Go on", size="sm", elem_id="resume")
            grid = gr.Image(label="Drawn on the way", interactive=False, visible=False, buttons=[], elem_id="grid")
    folder, timer = gr.State(None), gr.Timer(EVERY)

    def check(uploads: list[str] | None, which: str) -> list[Any]:
        if not uploads:
            return [None, gr.Gallery(visible=False), ""]
        photos = receive([Path(upload) for upload in uploads], places.fresh(places.photos), which)
        return [str(photos.folder), gr.Gallery(photos.shown, visible=True), lines(photos.problems)]

    def learn(photos: str | None, name: str, *values: Any) -> Any:
        return find(runs.add(run_config(Lesson.of(photos, name, *values), config, places)))

    def find(now: str | None) -> Any:
        names = runs.names()
        return gr.Dropdown(names, value=now if now in names else next(iter(names), None))

    def look(name: str | None) -> list[Any]:
        if not name:
            return [note("nothing is learned yet"), gr.Image(visible=False), *[gr.Button(interactive=False)] * 2]
        at = runs.status(name)
        image = gr.Image(str(at.grid) if at.grid else None, visible=bool(at.grid))
        return [run_view(at), image, gr.Button(interactive=at.can_stop), gr.Button(interactive=at.can_resume)]

    seeing: dict[str, Any] = {"inputs": run, "outputs": [status, grid, stop, resume], "show_progress": "hidden"}
    gr.on([files.change, masks.change], guard(check), [files, masks], [folder, seen, problems])
    start.click(guard(learn), [folder, name, word, method, steps, preset, masks], run)
    gr.on([timer.tick, run.change], guard(look), **seeing)
    stop.click(guard(runs.stop), run, None).then(guard(look), **seeing)
    resume.click(guard(runs.resume), run, None).then(guard(look), **seeing)
    return find, [run]
