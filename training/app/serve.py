"""Serving the page: where it listens, how it looks, and that it asks nothing of any other machine."""

from __future__ import annotations

import os
from pathlib import Path

import gradio as gr

from ...utils.errors import UserError
from .config import AppConfig
from .page.page import build
from .services import Services

STYLE = Path(__file__).parent / "page" / "style.css"
PHONE = STYLE.with_name("phone.html")
# of Gradio's own files, its semi-bold knows no Latin letters
FONTS = (gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), "ui-sans-serif", "system-ui", "sans-serif")
MAX_UPLOAD = "64mb"  # a photo of a camera has 10, a concept file 2


def serve(config: AppConfig) -> str:
    """Serve the page from threads of their own, and work on the queue of trainings; gives the address.

    UserError for a port that is taken, and as `Services`.
    """
    services = Services(config)
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(services.places.cache)}
    page = build(services).queue(default_concurrency_limit=8, max_size=64)
    try:
        _, address, public = page.launch(
            server_name=config.host,
            server_port=config.port,
            auth=config.login,
            share=config.share,
            theme=gr.themes.Base(primary_hue="indigo", neutral_hue="slate", radius_size="lg", font=FONTS),
            css_paths=STYLE,
            head_paths=PHONE,
            allowed_paths=[str(services.places.outputs)],
            max_file_size=MAX_UPLOAD,
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
    except OSError:
        raise UserError(f"port {config.port} of {config.host} is taken or not ours; choose another port") from None
    services.runs.start()
    return public or address
