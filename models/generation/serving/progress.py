"""Images in progress, one U-Net batch per step, whatever goes wrong for one of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, islice

import torch
from torch import Tensor

from ....utils.errors import UserError
from ...backbone.backbone import Backbone
from ...backbone.safety import SafetyChecker
from ...conditioning.prompt_conditioning import PromptConditioning
from ..draw import begin, finish
from ..recipes import ImageRecipe
from ..sampling import Denoising, Predictor
from .ticket import Ticket

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Running:
    """Images of one request that take their steps together. number: of the first of `recipes` in the request."""

    ticket: Ticket
    number: int
    recipes: list[ImageRecipe]
    conditionings: list[PromptConditioning]
    images: Denoising


class InProgress:
    """What a queue's thread works at. limit: images at a time; halved for good when memory runs out.

    mixed: images of all requests share a batch; otherwise what was begun together is a batch of its own.
    """

    def __init__(
        self, backbone: Backbone, limit: int, *, mixed: bool = True, safety_checker: SafetyChecker | None = None
    ) -> None:
        self.limit, self._mixed = limit, mixed
        self._backbone, self._checker, self._predict = backbone, safety_checker, Predictor(backbone)
        self._running: list[_Running] = []

    def __bool__(self) -> bool:
        return bool(self._running)

    @property
    def has_room(self) -> bool:
        """Whether something may be begun now."""
        return len(self._running) < self.limit if self._mixed else not self._running

    def begin(
        self,
        ticket: Ticket,
        number: int,
        recipes: Sequence[ImageRecipe],
        conditionings: Sequence[PromptConditioning],
    ) -> None:
        """Begin these images, which the sampler treats alike. number: of the first recipe in its request."""
        images = begin(self._backbone, recipes, conditionings)
        self._running.append(_Running(ticket, number, list(recipes), list(conditionings), images))

    def drop_done(self) -> None:
        """Drop images whose request was given up or has failed."""
        self._running = [each for each in self._running if not each.ticket.done]

    def step(self) -> None:
        """One denoising step of all images in progress; those that finish are delivered."""
        for batch in self._chunks():
            self._step(batch)

    def _chunks(self) -> list[list[_Running]]:
        """What is in progress, as the batches of the next step."""
        if not self._mixed:
            return [[each] for each in self._running[:1]]
        chunks = []
        by_size = sorted(self._running, key=lambda each: each.images.latents.shape[2:])
        for _, alike in groupby(by_size, key=lambda each: each.images.latents.shape[2:]):
            while chunk := list(islice(alike, self.limit)):
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
                self.limit = half
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
            self.begin(each.ticket, each.number + start, each.recipes[own], each.conditionings[own])

    def _advance(self, each: _Running, prediction: Tensor) -> None:
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
