"""Requests in, pictures out: base models that stay loaded, progress step by step, and what is given up."""

from __future__ import annotations

import gc
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ....models.backbone.backbone import Backbone
from ....models.generation.gallery import in_words, variant_of
from ....models.generation.recipes import ImageRecipe, made_with
from ....models.generation.run import DTYPES, InferenceRun
from ....models.generation.serving.image_queue import ImageQueue
from ....models.generation.serving.ticket import Ticket
from ....utils.errors import UserError
from ..config import AppConfig
from ..places import Places
from .controls import NO_CONTROLS, Controls, controls_of
from .library import Library
from .request import Request, inference_config

MODELS = 2  # base models that stay loaded


class Progress(NamedTuple):
    """What there is of a request.

    pictures: file and caption. done, total: denoising steps times images. seeds: how many images stand in a row, where
    several settings stand below one another. cancelled: there will be no more.
    """

    pictures: list[tuple[str, str]]
    done: int
    total: int
    images: int
    seeds: int
    cancelled: bool = False

    @property
    def columns(self) -> int:
        """Of a gallery that shows each setting as a row."""
        return self.seeds if self.images > self.seeds else min(self.images, 2)

    @property
    def words(self) -> str:
        """How far it is."""
        if self.cancelled:
            return "cancelled"
        if self.done >= self.total:
            return f"{self.images} image{'s' * (self.images > 1)} drawn"
        if not self.done:
            return "waiting for its turn"
        return f"step {self.done} of {self.total} · {len(self.pictures)} of {self.images} images"


class Drawer:
    """Draws what the page asks for, each request in batches of its own: two people at once get the very images that
    each would get alone. One session (a browser's tab) has one request at a time: a new one ends the old."""

    def __init__(self, config: AppConfig, places: Places, library: Library) -> None:
        self.config, self.places, self.library = config, places, library
        self._models: dict[str, tuple[Backbone, ImageQueue]] = {}
        self._loading = threading.Lock()
        self._tickets: dict[str, Ticket] = {}

    def controls(self, name: str) -> Controls:
        """What a concept of the library can be drawn with. UserError if its file cannot be loaded."""
        return controls_of(self.library[name].load())

    def request(
        self, concept: str | None, prompt: str, seeds: str, negative_prompt: str, steps: float, guidance_scale: float,
        scheduler: str, truncation: float, lock: str, key_lock: bool, compare: str, *moved: float,
    ) -> Request:  # fmt: skip
        """What stands in the page's fields; the last ones as `Controls.widgets` orders them."""
        controls = self.controls(concept) if concept else NO_CONTROLS
        units, settings = controls.chosen(truncation, lock, key_lock, *moved)
        over = compare if compare in controls.comparable else None
        return Request(
            prompt, concept, negative_prompt, seeds, units, settings, over, int(steps), guidance_scale, scheduler
        )

    def pictures(self, session: str, request: Request, folder: Path | None = None) -> Iterator[Progress]:
        """Draw, writing every image with its recipe inside, and yield at every denoising step.

        folder: where the images go, and may be already; a new one unless it is given.

        Ends early when it is cancelled, and says so last, since the page may get an earlier word late. UserError for
        whatever is wrong with the request, and when the memory does not suffice; the app lives on.
        """
        self.cancel(session)
        controls = self.controls(request.concept) if request.compare and request.concept else None
        folder = folder or self.places.fresh(self.places.pictures)
        config, files = inference_config(request, self.config, self.library, controls, folder)
        run = InferenceRun(config, files, config.prompts or ())
        recipes = [recipe for each in run.missing.values() for recipe in each]
        events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        ticket: Ticket | None = None
        last: Progress | None = None
        try:
            drawing = self._queue(run)
            ticket = self._tickets[session] = drawing.submit(recipes, run.concepts.by_name, on_step=events.put)
            for last in self._follow(ticket, run, events):
                yield last
        except CancelledError:
            if last is not None and session not in self._tickets:  # and not because of a new request
                yield last._replace(cancelled=True)
        except (MemoryError, torch.OutOfMemoryError):  # of loading the model: the queue sees to that of drawing
            self.free()
            raise UserError("there is not enough memory for this base model; close what else uses it") from None
        finally:
            if self._tickets.get(session) is ticket:  # else it is a newer request's
                self._tickets.pop(session, None)

    def cancel(self, session: str) -> None:
        """Give up what a session waits for, if it waits for anything."""
        if (ticket := self._tickets.pop(session, None)) is not None:
            ticket.cancel()

    def free(self) -> None:
        """Let go of memory that nothing needs now."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _queue(self, run: InferenceRun) -> ImageQueue:
        """That of the run's base model, which is loaded if need be; the one not used for longest goes."""
        key = f"{run.base_model} {run.config.torch_dtype}"
        with self._loading:
            if key not in self._models:
                while len(self._models) >= MODELS:
                    self._models.pop(next(iter(self._models)))[1].close()
                    self.free()
                dtype = DTYPES[run.config.torch_dtype.value]
                backbone = Backbone.from_pretrained(run.base_model, dtype=dtype, device=run.device)
                drawing = ImageQueue(backbone, max_pending=self.config.max_pending, mix_requests=False)
                self._models[key] = backbone, drawing
            backbone, drawing = self._models[key] = self._models.pop(key)  # to the end
        run.concepts.check_fit(backbone)
        return drawing

    def _follow(self, ticket: Ticket, run: InferenceRun, events: queue.SimpleQueue[Any]) -> Iterator[Progress]:
        def pump() -> None:
            try:
                for drawn in ticket:
                    events.put(drawn)
                events.put(None)
            except BaseException as error:
                events.put(error)

        threading.Thread(target=pump, daemon=True).start()
        recipes = [recipe for each in run.recipes.values() for recipe in each]
        size: dict[str, Any] = {"images": len(recipes), "seeds": len(run.config.seeds)}
        total = len(recipes) * run.config.num_denoising_steps
        done = (len(recipes) - len(ticket.recipes)) * run.config.num_denoising_steps

        def there() -> list[tuple[str, str]]:
            paths = [(run.gallery.path(recipe), caption(recipe)) for recipe in recipes]
            return [(str(path), words) for path, words in paths if path.exists()]

        try:
            yield Progress([], done, total, **size)
            while (event := events.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                if isinstance(event, int):
                    done += event
                else:
                    run.gallery.add(event.image, event.recipe, {"made_with": made_with([], str(run.device))})
                if events.empty():
                    yield Progress(there(), min(done, total - 1), total, **size)  # some samplers take more steps
            yield Progress(there(), total, total, **size)
        finally:
            ticket.cancel()  # the browser may be gone


def caption(recipe: ImageRecipe) -> str:
    """What stands below an image."""
    names = " ".join(recipe.parsed.names) if recipe.concepts else ""
    what = ", ".join(in_words(variant_of(recipe))) or names or "all units"
    return f"{what.replace('hidden units', 'units')} · seed {recipe.seed}"  # short: it stands in a corner
