"""Requests of many callers, of any concepts, methods and prompts, drawn in one U-Net batch on one model."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from itertools import islice
from threading import Condition, Thread

import torch
from typing_extensions import Self

from ....utils.errors import UserError
from ...backbone.backbone import Backbone
from ...backbone.safety import SafetyChecker
from ...conditioning.composition import AnyConcept
from ...conditioning.prompt_conditioning import PromptConditioning
from ..draw import batches, conditionings_of
from ..recipes import ImageRecipe
from .progress import InProgress
from .ticket import Ticket


class QueueFull(UserError):
    """More images than the queue takes at a time."""


@dataclass(eq=False)
class _Waiting:
    """A request, as far as it was not begun: its batches to come, each with the number of its first recipe."""

    ticket: Ticket
    batches: deque[tuple[int, list[ImageRecipe]]]
    conditionings: Iterator[PromptConditioning]


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
        self._backbone = backbone
        self._progress = InProgress(backbone, max_batch, mixed=mix_requests, safety_checker=safety_checker)
        self._changed = Condition()  # guards what follows; the progress is the thread's own
        self._tickets: list[Ticket] = []
        self._waiting: deque[_Waiting] = deque()
        self._closed = False
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
            for batch in batches(ticket.recipes, 1 if self.mix_requests else self._progress.limit):
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
                    self._progress.step()
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
            self._changed.wait_for(lambda: self._closed or self._waiting or self._progress)
        self._progress.drop_done()
        while True:
            with self._changed:
                if self._closed:
                    return False
                if not self._waiting or not self._progress.has_room:
                    return True
                request = self._waiting.popleft()
            if not request.ticket.done:
                self._begin(request)

    def _begin(self, request: _Waiting) -> None:
        """Begin the first batch of a request, whose others then wait for its next turn."""
        number, recipes = request.batches.popleft()
        try:
            conditionings = list(islice(request.conditionings, len(recipes)))
            self._progress.begin(request.ticket, number, recipes, conditionings)
        except Exception as error:
            request.ticket.fail(error)
            return
        if request.batches:
            with self._changed:
                self._waiting.append(request)
