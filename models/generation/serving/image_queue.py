"""Requests of many callers, of any concepts, methods and prompts, drawn in one U-Net batch on one model."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from itertools import groupby, islice
from threading import Condition, Thread

import torch
from typing_extensions import Self

from ....utils.errors import UserError
from ...backbone.backbone import Backbone
from ...backbone.safety import SafetyChecker
from ...conditioning.composition import AnyConcept
from ...conditioning.prompt_conditioning import PromptConditioning
from ..draw import batches, begin, conditionings_of, finish
from ..recipes import ImageRecipe
from ..sampling import Denoising, Predictor
from .ticket import Ticket

logger = logging.getLogger(__name__)


class QueueFull(UserError):
    """More images than the queue takes at a time."""


@dataclass(eq=False)
class _Waiting:
    """A request, as far as it was not begun: its batches to come, each with the number of its first recipe."""

    ticket: Ticket
    batches: deque[tuple[int, list[ImageRecipe]]]
    conditionings: Iterator[PromptConditioning]


@dataclass(eq=False)
class _Running:
    """Images of one request that take their steps together. number: of the first of `recipes` in the request."""

    ticket: Ticket
    number: int
    recipes: list[ImageRecipe]
    conditionings: list[PromptConditioning]
    images: Denoising


class ImageQueue:
    """A thread that draws what any number of callers ask for.

    A concept is a few numbers in the text encoder's input, so images of different concepts share a U-Net batch like
    images of one: there are no weights to switch. They need not begin together either. Every U-Net call takes one step
    of all images in progress, whatever their step, sampler, guidance, prompt or method; a finished image leaves, and
    the next one joins at the next step. Nobody waits for a batch to fill. Only images of other sizes take turns.

    max_batch: images in progress, and so the latents in memory. max_pending: images that wait or are in progress, of
    all requests. Requests take turns, image by image, so that a long one does not keep a short one from beginning.
    When memory runs out, the batch is halved for good and the images in it go on.
    mix_requests: False draws each request's images in the batches that `draw` makes of them, and nothing beside them:
    bit for bit the images of `draw` with `batch_size=max_batch`, unless memory runs out. Requests then take turns batch
    by batch. Mixed, an image depends on how many are beside it, as far as kernels round differently for other sizes.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        max_batch: int = 8,
        max_pending: int = 64,
        mix_requests: bool = True,
        safety_checker: SafetyChecker | None = None,
    ) -> None:
        self.max_pending, self.mix_requests = max_pending, mix_requests
        self._backbone, self._checker, self._predict = backbone, safety_checker, Predictor(backbone)
        self._limit = max_batch
        self._changed = Condition()  # guards what follows, up to _running, which is the thread's own
        self._tickets: list[Ticket] = []
        self._waiting: deque[_Waiting] = deque()
        self._closed = False
        self._running: list[_Running] = []
        self._thread = Thread(target=self._work, name="image queue", daemon=True)
        self._thread.start()

    def submit(
        self,
        recipes: Sequence[ImageRecipe],
        concepts: Mapping[str, AnyConcept],
        on_step: Callable[[int], object] | None = None,
    ) -> Ticket:
        """Ask for images; returns at once. From any thread.

        concepts, on_step: as `draw` takes them; on_step is called in the queue's thread. What is wrong with a recipe is
        raised by the ticket. Raises QueueFull beyond `max_pending`, RuntimeError when the queue is closed.
        """
        ticket = Ticket(recipes, concepts, on_step, self._changed)
        conditionings = conditionings_of(self._backbone, ticket.recipes, ticket.concepts)
        with self._changed:
            if self._closed:
                raise RuntimeError("the image queue is closed")
            if (pending := self.pending) + len(recipes) > self.max_pending:
                raise QueueFull(
                    f"{len(recipes)} images do not fit beside the {pending} that are waiting or being made (at most "
                    f"{self.max_pending}); try again later or ask for fewer"
                )
            waiting: deque[tuple[int, list[ImageRecipe]]] = deque()
            for batch in batches(ticket.recipes, 1 if self.mix_requests else self._limit):
                waiting.append((waiting[-1][0] + len(waiting[-1][1]) if waiting else 0, batch))
            self._tickets.append(ticket)
            if waiting:
                self._waiting.append(_Waiting(ticket, waiting, conditionings))
            self._changed.notify_all()
        return ticket

    @property
    def pending(self) -> int:
        """Images that wait or are in progress."""
        with self._changed:
            self._tickets = [ticket for ticket in self._tickets if not ticket.done]
            return sum(ticket.unfinished for ticket in self._tickets)

    def close(self) -> None:
        """Cancel all requests that are not done, and end the thread before its next step."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        end: BaseException = CancelledError("the image queue was closed")
        try:
            with torch.inference_mode():
                while self._admit():
                    for images in self._chunks():
                        self._step(images)
        except BaseException as error:  # nobody waits for a thread that is gone
            end = error
            raise
        finally:
            with self._changed:
                self._closed = True
                for ticket in self._tickets:
                    ticket.fail(end)

    def _admit(self) -> bool:
        """Wait for something to do, drop what was given up, and begin what there is room for; False: closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting or self._running)
        self._running = [each for each in self._running if not each.ticket.done]
        while True:
            with self._changed:
                if self._closed:
                    return False
                if not self._waiting or (len(self._running) >= self._limit if self.mix_requests else self._running):
                    return True
                request = self._waiting.popleft()
            if not request.ticket.done:
                self._begin(request)

    def _begin(self, request: _Waiting) -> None:
        """Begin the first batch of a request, whose others then wait for its next turn."""
        number, recipes = request.batches.popleft()
        try:
            conditionings = list(islice(request.conditionings, len(recipes)))
            images = begin(self._backbone, recipes, conditionings)
        except Exception as error:
            request.ticket.fail(error)
            return
        self._running.append(_Running(request.ticket, number, recipes, conditionings, images))
        if request.batches:
            with self._changed:
                self._waiting.append(request)

    def _chunks(self) -> list[list[_Running]]:
        """What is in progress, as the batches of the next step."""
        if not self.mix_requests:
            return [self._running[:1]] if self._running else []
        chunks = []
        by_size = sorted(self._running, key=lambda each: each.images.latents.shape[2:])
        for _, alike in groupby(by_size, key=lambda each: each.images.latents.shape[2:]):
            while chunk := list(islice(alike, self._limit)):
                chunks.append(chunk)
        return chunks

    def _step(self, batch: list[_Running]) -> None:
        """One step of all these images. A batch that fails is tried in halves, until it is known whose fault it was."""
        try:
            predictions = self._predict([each.images for each in batch])
        except Exception as error:
            memory = _is_out_of_memory(error)
            failure = error.with_traceback(None) if memory else error  # frames of the traceback hold tensors
        else:
            for each, prediction in zip(batch, predictions, strict=True):
                self._advance(each, prediction)
            return
        if memory and torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = len(batch) // 2
        if half:
            if memory:
                self._limit = half
                logger.warning("out of memory with %d images at a time; going on with %d", len(batch), half)
            self._step(batch[:half])
            self._step(batch[half:])
        elif memory and len(batch[0].recipes) > 1:
            self._restart_in_halves(batch[0])
        else:
            one = "there is not enough memory for one image; close what else uses the device, or ask for a smaller one"
            batch[0].ticket.fail(UserError(one) if memory else failure)

    def _restart_in_halves(self, each: _Running) -> None:
        self._running.remove(each)
        half = len(each.recipes) // 2
        logger.warning("out of memory with %d images at a time; going on with %d", len(each.recipes), half)
        for start, own in ((0, slice(half)), (half, slice(half, None))):
            recipes, conditionings = each.recipes[own], each.conditionings[own]
            images = begin(self._backbone, recipes, conditionings)
            self._running.append(_Running(each.ticket, each.number + start, recipes, conditionings, images))

    def _advance(self, each: _Running, prediction: torch.Tensor) -> None:
        """Take the step, and deliver what is finished; an error is the request's own."""
        ticket, images = each.ticket, each.images
        if ticket.done:  # given up meanwhile
            return
        try:
            images.advance(prediction)
            ticket.stepped(len(each.recipes))
            if not images.finished:
                return
            self._running.remove(each)
            for number, (recipe, latent) in enumerate(zip(each.recipes, images.latents.split(1), strict=True)):
                if not ticket.done:
                    made = finish(self._backbone, recipe, ticket.concepts, latent, self._checker)
                    ticket.deliver(each.number + number, made)
        except Exception as error:
            ticket.fail(error)


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error)  # only CUDA has an exception of its own for it
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )
