"""The page: a title and a tab for each thing one can do; how it looks, and how it is served."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from ..config import AppConfig
from ..services import Services, guarded
from .generate import generate_tab
from .learn import learn_tab

TITLE = "# NeTI\nLearn a concept from a few photos, draw it anywhere."
STYLE = Path(__file__).with_name("style.css")
TABS: dict[str, Callable[..., Any]] = {"Learn": learn_tab, "Generate": generate_tab}


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


def serve(config: AppConfig) -> str:
    """Serve the page from threads of their own, and work on the queue of trainings; gives the address."""
    services = Services(config)
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(services.places.cache)}
    theme = gr.themes.Base(primary_hue="indigo", neutral_hue="slate", radius_size="lg", spacing_size="md")
    _, address, _ = (
        build(services)
        .queue(default_concurrency_limit=8, max_size=64)
        .launch(
            server_name=config.host,
            server_port=config.port,
            auth=config.login,
            share=config.share,
            theme=theme,
            css_paths=STYLE,
            allowed_paths=[str(services.places.outputs)],
            max_file_size="64mb",
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            inbrowser=False,
            inline=False,
            quiet=True,
            prevent_thread_lock=True,
        )
    )
    services.runs.start()
    return address
