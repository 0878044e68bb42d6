"""Which learning rate and step budget each method is compared with: chosen on the tuning concepts, by one rule for all.

The rule, fixed before any run: of all pairs of a learning rate and a number of steps, the one with the highest harmonic
mean of relative image and relative text similarity, averaged over the same images of the same tuning concepts. Relative
means between the bounds: for image similarity 0 is the super-category word and 1 the photos themselves, for text
similarity 0 is the photos and 1 the word. A pair that is better than both zeros is preferred to one that is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...evaluation.scores import IMAGE, TEXT
from ...jobs.job import Job, Results
from .plan import Choice, Drawing
from .work import DIVERGED

RULE = (
    "the highest harmonic mean of relative image and relative text similarity on the tuning concepts. Relative means "
    "between the bounds: for image similarity 0 is the super-category word and 1 the photos, for text similarity 0 is "
    "the photos and 1 the word. A scale whose bounds stand the wrong way round is left out"
)


@dataclass(frozen=True)
class Bounds:
    """Similarities, averaged over the tuning concepts: of images of the super-category word, and of the photos."""

    word_image: float
    word_text: float
    photos_image: float
    photos_text: float

    def relative(self, image: float, text: float) -> tuple[float | None, float | None]:
        """Image and text similarity between the bounds; None where the bounds do not span a scale."""
        return (
            _between(image, self.word_image, self.photos_image),
            _between(text, self.photos_text, self.word_text),
        )

    def score(self, image: float, text: float) -> float:
        """What the rule compares: the harmonic mean, or the worse of the two where one is not above 0."""
        scales = [value for value in self.relative(image, text) if value is not None]
        if not scales:
            return 0.0
        if min(scales) <= 0:
            return min(scales)
        return len(scales) / sum(1 / value for value in scales)


@dataclass(frozen=True)
class Candidate:
    """One pair that was tried; image, text and score None: the training diverged."""

    method: str
    rate: float
    step: int
    image: float | None = None
    text: float | None = None
    score: float | None = None


@dataclass(frozen=True)
class Selection:
    """Method -> what it is compared with; and, where there was a search, its bounds and all that was tried."""

    chosen: Mapping[str, Choice]
    bounds: Bounds | None = None
    tried: Sequence[Candidate] = ()


def candidates(results: Results, jobs: Sequence[Job]) -> tuple[Bounds, list[Candidate]]:
    """The bounds on the tuning concepts, and every pair of learning rate and steps that was tried, with its score."""
    drawings = [(job.task, results.result(job)) for job in jobs if isinstance(job.task, Drawing)]
    ends = [result for drawing, result in drawings if drawing.training is None]
    bounds = Bounds(
        *(float(np.mean([np.mean(end[kind][m]) for end in ends])) for kind in ("word", "photos") for m in (IMAGE, TEXT))
    )
    found: dict[tuple[str, float, int], list[dict[str, Any]]] = {}
    for drawing, result in drawings:
        if drawing.training is not None:
            pair = (drawing.training.method, drawing.training.rate, drawing.step)
            found.setdefault(pair, []).append(result)
    tried = []
    for pair, own in found.items():
        if any(DIVERGED in result for result in own):
            tried.append(Candidate(*pair))
        else:
            image, text = (float(np.mean([np.mean(result[metric]) for result in own])) for metric in (IMAGE, TEXT))
            tried.append(Candidate(*pair, image, text, bounds.score(image, text)))
    return bounds, tried


def choose(candidates: Sequence[Candidate]) -> dict[str, Choice]:
    """Method -> its best pair; of equals the one with fewer steps, then the lower learning rate.

    A method all of whose trainings diverged is missing.
    """
    chosen = {}
    for method in dict.fromkeys(candidate.method for candidate in candidates):
        good = [c for c in candidates if c.method == method and c.score is not None]
        if good:
            best = max(good, key=lambda c: (c.score, -c.step, -c.rate))
            chosen[method] = Choice(best.rate, best.step)
    return chosen


def edges(candidates: Sequence[Candidate], method: str, choice: Choice) -> list[str]:
    """Where the choice lies at the edge of what was tried, so that something beyond might be better still."""
    rates = sorted({candidate.rate for candidate in candidates if candidate.method == method})
    steps = sorted({candidate.step for candidate in candidates if candidate.method == method})
    found = []
    if len(rates) > 1 and choice.rate in (rates[0], rates[-1]):
        found.append("lowest rate" if choice.rate == rates[0] else "highest rate")
    if len(steps) > 1 and choice.step == steps[-1]:
        found.append("most steps")
    return found


def _between(value: float, zero: float, one: float) -> float | None:
    return (value - zero) / (one - zero) if one > zero else None
