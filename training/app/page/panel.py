"""The part of a tab that draws: a button, how far it is, the images, and the chosen one to keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from ..drawing.request import Request
from ..markup.pieces import bar, note
from ..services import Services


class Panel:
    """Made where it is to stand. `connect` says what draws, and of which request."""

    def __init__(self, services: Services, guard: Callable[..., Any], name: str, verb: str = "Draw") -> None:
        self.services, self.guard = services, guard
        with gr.Row():
            self.draw = gr.Button(verb, variant="primary", elem_id=f"{name}-draw")
            cancel = gr.Button("Cancel", elem_id=f"{name}-cancel")
        self.status = gr.HTML(elem_id=f"{name}-status")
        self.pictures = gr.Gallery(
            label="Images", columns=2, height="auto", object_fit="contain", elem_id=f"{name}-pictures", buttons=[]
        )
        self.download = gr.DownloadButton("Choose an image to download it", size="sm", interactive=False)
        cancel.click(guard(self._give_up), None, self.status, queue=False)
        self.pictures.select(guard(self._choose), None, self.download, show_progress="hidden")

    def connect(self, triggers: list[Any], inputs: list[Any], request_of: Callable[..., Request]) -> None:
        """Whenever one of `triggers` happens, draw the request that is made of the values of `inputs`."""

        def show(request: gr.Request, *values: Any) -> Iterator[tuple[Any, str]]:
            for made in self.services.drawer.pictures(str(request.session_hash), request_of(*values)):
                yield gr.Gallery(made.pictures, columns=made.columns), bar(made.done / made.total, made.words)

        gr.on(
            triggers, self.guard(show), inputs, [self.pictures, self.status],
            concurrency_limit=None, show_progress="hidden", trigger_mode="multiple",
        )  # fmt: skip

    def _give_up(self, request: gr.Request) -> str:
        self.services.drawer.cancel(str(request.session_hash))
        return note("cancelled")

    def _choose(self, picked: gr.SelectData) -> Any:
        path = self.services.places.inside(picked.value["image"]["path"])
        return gr.DownloadButton("Download this image, its recipe inside", value=str(path), interactive=True)
