"""All scores of a plan, by what they were measured on: what claims and tables are computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ...evaluation.rows import PROMPT_ONLY
from ...evaluation.scores import IMAGE, TEXT
from .cells import FULL, Drawing


class Condition(NamedTuple):
    """Whose images, and how they were made. step None: after the chosen number of steps, on the full set of images; a
    number: on the short set. truncation: hidden units kept. bypass False: switched off while drawing."""

    method: str
    step: int | None = None
    truncation: int | None = None
    bypass: bool = True


WORD = Condition(PROMPT_ONLY)  # images of the super-category word, the full set
ConceptScores = Mapping[str, np.ndarray]  # metric -> scores [U] of the same images under every condition


def condition_of(drawing: Drawing) -> Condition:
    """What a drawing of the main stage was made to measure."""
    if drawing.training is None:
        return WORD
    step = None if drawing.images.name == FULL else drawing.step
    return Condition(drawing.training.method, step, drawing.truncation, drawing.bypass)


@dataclass(frozen=True)
class Measurements:
    """condition -> concept -> scores. Every condition has all concepts."""

    scores: Mapping[Condition, Mapping[str, ConceptScores]]

    @property
    def concepts(self) -> list[str]:
        return list(next(iter(self.scores.values())))

    @property
    def methods(self) -> list[str]:
        """The methods with images at their chosen budget, the rail left out."""
        full = [condition for condition in self.scores if condition == Condition(condition.method)]
        return [condition.method for condition in full if condition != WORD]

    def has(self, *conditions: Condition) -> bool:
        """Whether all of these were measured."""
        return all(condition in self.scores for condition in conditions)

    def steps(self, method: str) -> list[int]:
        """The numbers of steps of the method's curve, rising."""
        return sorted(c.step for c in self.scores if c.method == method and c.step is not None)

    def truncations(self, method: str) -> list[int]:
        """The truncations of the method, rising; all units are not among them."""
        return sorted(c.truncation for c in self.scores if c.method == method and c.truncation is not None)

    def slider(self, method: str) -> list[Condition]:
        """The method's truncations, rising, and then all units."""
        return [*(Condition(method, truncation=kept) for kept in self.truncations(method)), Condition(method)]

    def tables(self, conditions: Sequence[Condition], metrics: Sequence[str] = (IMAGE, TEXT)) -> list[np.ndarray]:
        """One table [conditions, metrics, U] per concept, as `intervals.over_concepts` takes them."""
        return [
            np.array([[self.scores[condition][concept][metric] for metric in metrics] for condition in conditions])
            for concept in self.concepts
        ]
