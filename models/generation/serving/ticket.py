"""What a caller holds of a request to the image queue."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from threading import Condition

from ...conditioning.composition import AnyConcept
from ..draw import Drawn
from ..recipes import ImageRecipe


class Ticket:
    """One request: iterate it for its images, in the order of its recipes, each as soon as it is there.

    Every image is handed out once and then forgotten here. When the request has failed, its error is raised after the
    images that were finished before; CancelledError when it was cancelled.
    """

    def __init__(
        self,
        recipes: Sequence[ImageRecipe],
        concepts: Mapping[str, AnyConcept],
        on_step: Callable[[int], object] | None,
        changed: Condition,
    ) -> None:
        """changed: the queue's, notified of whatever happens to a request."""
        self.recipes, self.concepts, self._on_step, self._changed = tuple(recipes), dict(concepts), on_step, changed
        self._made: dict[int, Drawn] = {}
        self._delivered = self._finished = 0
        self._error: BaseException | None = None

    def __iter__(self) -> Ticket:
        return self

    def __next__(self) -> Drawn:
        """The next image, waiting for it."""
        with self._changed:
            self._changed.wait_for(lambda: self._delivered in self._made or self.done)
            if self._delivered in self._made:
                self._delivered += 1
                return self._made.pop(self._delivered - 1)
            if self._error is not None:
                raise self._error
            raise StopIteration

    @property
    def unfinished(self) -> int:
        """How many of its images wait or are in progress."""
        return 0 if self.done else len(self.recipes) - self._finished

    @property
    def done(self) -> bool:
        """Whether nothing more is being made for it: finished, failed or cancelled."""
        return self._error is not None or self._finished == len(self.recipes)

    def cancel(self) -> None:
        """Give the request up: its images leave the batch before the next denoising step. Harmless when it is done."""
        self.fail(CancelledError("the request was cancelled"))

    def fail(self, error: BaseException) -> None:
        """End the request with an error of its own, unless it is done. For the queue."""
        with self._changed:
            if not self.done:
                self._error = error
                self._changed.notify_all()

    def deliver(self, number: int, image: Drawn) -> None:
        """The image of the recipe of that number is there. For the queue."""
        with self._changed:
            if not self.done:
                self._made[number] = image
                self._finished += 1
                self._changed.notify_all()

    def stepped(self, images: int) -> None:
        """So many images have made a step; an error of the caller's function is the request's. For the queue."""
        if self._on_step is not None:
            self._on_step(images)
