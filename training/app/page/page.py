"""The page: a title, and a tab for each thing one can do."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import gradio as gr

from ..services import Services, guarded
from .generate import generate_tab
from .learn import learn_tab
from .mix import mix_tab

TITLE = "# NeTI\nLearn a concept from a few photos, draw it anywhere."
TABS: dict[str, Callable[..., Any]] = {"Learn": learn_tab, "Generate": generate_tab, "Mix": mix_tab}


def build(services: Services) -> gr.Blocks:
    """The page, not yet served."""
    guard = functools.partial(guarded, fail=functools.partial(gr.Error, print_exception=False))

    def leave(request: gr.Request) -> None:
        services.drawer.cancel(str(request.session_hash))

    with gr.Blocks(title="NeTI", analytics_enabled=False) as page:
        gr.Markdown(TITLE, elem_id="title")
        with gr.Tabs(elem_id="tabs"):
            for name, build_tab in TABS.items():
                with gr.Tab(name, id=name.lower()) as tab:
                    refresh, filled = build_tab(services, guard)
                    now = [component for component in filled if isinstance(component, gr.Dropdown)]
                    gr.on([page.load, tab.select], refresh, now, filled, show_progress="hidden")
        page.unload(leave)
    return page
