"""The page: a title, and a tab for each thing one can do."""

from __future__ import annotations

from functools import partial

import gradio as gr

from ..services import Services, guarded
from .compare import compare_tab
from .generate import generate_tab
from .learn import learn_tab
from .mix import mix_tab
from .photo import photo_tab

TITLE = "# NeTI\nLearn a concept from a few photos, draw it anywhere."
NAMES = ("Learn", "Generate", "Mix", "From one photo", "Compare")
TABS = (learn_tab, generate_tab, mix_tab, photo_tab, compare_tab)


def build(services: Services) -> gr.Blocks:
    """The page, not yet served."""
    guard = partial(guarded, fail=partial(gr.Error, print_exception=False))

    def leave(request: gr.Request) -> None:
        services.drawer.cancel(str(request.session_hash))

    with gr.Blocks(title="NeTI", analytics_enabled=False) as page:
        gr.Markdown(TITLE, elem_id="title")
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap"):
            for name, make in zip(NAMES, TABS, strict=True):
                with gr.Tab(name) as tab:
                    refresh, filled = make(services, guard)
                    now = [component for component in filled if isinstance(component, gr.Dropdown)]
                    gr.on([page.load, tab.select], guard(refresh), now, filled, show_progress="hidden")
        page.unload(leave)
    return page
