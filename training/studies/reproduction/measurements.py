"""All scores of a plan, by what they were measured on: what claims and tables are computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ....utils.statistics import Bootstrap
from ...evaluation.rows import PROMPT_ONLY, TRAINING_IMAGES, Kind, Row, ScoredSet, metric_rows
from ...evaluation.scores import IMAGE
from ...jobs.job import Job, Results
from .plan import FULL, NETI, Drawing, Training


class Condition(NamedTuple):
    """Whose images, and how they were made. step None: after the chosen number of steps, on the full set of images; a
    number: on the short set. truncation: hidden units kept. bypass False: switched off while drawing."""

    method: str
    step: int | None = None
    truncation: int | None = None
    bypass: bool = True


BASE_ALONE = "{}, v_base alone"
WORD = Condition(PROMPT_ONLY)  # images of the super-category word, the full set
Scored = Mapping[str, np.ndarray]  # metric -> scores [U] of the same images under every condition


def condition_of(drawing: Drawing) -> Condition:
    """What a drawing of the main stage was made to measure."""
    if drawing.training is None:
        return WORD
    if drawing.variant:
        return Condition(drawing.variant)
    step = None if drawing.images.name == FULL else drawing.step
    return Condition(drawing.training.method, step, drawing.truncation, drawing.bypass)


@dataclass(frozen=True)
class Measurements:
    """condition -> concept -> training seed -> scores: of what is finished, which may be less than the plan has.

    The word has its one set of images under every seed.
    """

    scores: Mapping[Condition, Mapping[str, Mapping[int, Scored]]]

    def concepts(self, *conditions: Condition) -> list[str]:
        """The concepts that all the conditions have, for a seed that they have in common."""
        first, *_ = sets = [self.scores.get(condition, {}) for condition in conditions]
        return [name for name in first if set.intersection(*(set(each.get(name, {})) for each in sets))]

    @property
    def methods(self) -> list[str]:
        """The methods with images at their chosen budget, and those drawn otherwise; the word left out."""
        full = [condition for condition in self.scores if condition == Condition(condition.method)]
        return [condition.method for condition in full if condition != WORD]

    def has(self, *conditions: Condition) -> bool:
        """Whether there is a concept for which all of these were measured."""
        return bool(self.concepts(*conditions))

    def steps(self, method: str) -> list[int]:
        """The numbers of steps of the method's curve, rising."""
        return sorted(c.step for c in self.scores if c.method == method and c.step is not None)

    def truncations(self, method: str) -> list[int]:
        """The truncations of the method, rising; all units are not among them."""
        return sorted(c.truncation for c in self.scores if c.method == method and c.truncation is not None)

    def slider(self, method: str) -> list[Condition]:
        """The method's truncations, rising, and then all units."""
        return [*(Condition(method, truncation=kept) for kept in self.truncations(method)), Condition(method)]

    def numbered(self, prefix: str) -> list[Condition]:
        """The methods whose names are the prefix and a number, by the number."""
        found = {int(m.removeprefix(prefix)): m for m in self.methods if m.removeprefix(prefix).isdigit()}
        return [Condition(found[number]) for number in sorted(found)]

    def tables(self, conditions: Sequence[Condition], metrics: Sequence[str]) -> list[np.ndarray]:
        """One table [conditions, metrics, U] per concept that has all of them, as `Bootstrap.over_groups` takes them.

        The seeds that all have are taken, one after another.
        """
        tables = []
        for concept in self.concepts(*conditions):
            found = [self.scores[condition][concept] for condition in conditions]
            seeds = sorted(set.intersection(*map(set, found)))
            tables.append(np.array([[_joined(each, seeds)[metric] for metric in metrics] for each in found]))
        return tables


def measurements(
    results: Results, jobs: Sequence[Job], prompts: Sequence[str] = ()
) -> tuple[Measurements, dict[str, Scored]]:
    """All scores of the main jobs that are given, and the photos' by concept. prompts: of these alone, none: of all."""
    scores: dict[Condition, dict[str, dict[int, Scored]]] = {}
    photos = {}
    seeds = sorted({job.task.seed for job in jobs if isinstance(job.task, Training)})
    for job in jobs:
        drawing = job.task
        if not isinstance(drawing, Drawing) or (prompts and not set(prompts) & set(drawing.images.prompts)):
            continue
        result = results.result(job)
        of_concept = scores.setdefault(condition_of(drawing), {}).setdefault(drawing.concept.name, {})
        if drawing.training is None:
            photos[drawing.concept.name] = _arrays(result["photos"])
            of_concept.update(dict.fromkeys(seeds, _arrays(result["word"], drawing, prompts)))
        else:
            of_concept[drawing.training.seed] = _arrays(result, drawing, prompts)
    return Measurements(scores), photos


def rows(measured: Measurements, photos: dict[str, Scored], bootstrap: Bootstrap) -> list[Row]:
    """The full sets of images and the upper bounds, as rows of a metrics report.

    A concept counts once all truncations of the method are there, and those of NeTI.
    """
    sets = []
    compared = measured.slider(NETI) if Condition(NETI) in measured.scores else []
    for condition in measured.scores:
        if condition.step is not None:
            continue
        kind = Kind.bound if condition == WORD else Kind.run
        method = condition.method if condition.bypass else BASE_ALONE.format(condition.method)
        together = measured.slider(condition.method) if condition.bypass else [condition]
        for concept in measured.concepts(*together, *compared):
            of_seeds = measured.scores[condition][concept]
            scores = _joined(of_seeds, sorted(of_seeds))
            sets.append(
                ScoredSet(kind, method, concept, condition.truncation, len(scores[IMAGE]), scores, by_prompt={})
            )
    for concept in measured.concepts(WORD, *compared):
        scores = photos[concept]
        sets.append(ScoredSet(Kind.bound, TRAINING_IMAGES, concept, None, len(scores[IMAGE]), scores, by_prompt={}))
    return metric_rows(sets, bootstrap)


def steps_to_reach(level: float, steps: Sequence[int], values: np.ndarray) -> float:
    """After how many steps a curve first reaches `level`, straight lines between its points.

    A curve that starts above the level reaches it at its first point, which is as early as was looked. The level must
    not lie above the curve's highest value.
    """
    first = int(np.argmax(values >= level))
    if first == 0:
        return float(steps[0])
    return float(np.interp(level, values[first - 1 : first + 1], steps[first - 1 : first + 1]))


def image_at_text(text: float, curve: np.ndarray, otherwise: float) -> float:
    """The image similarity that a curve offers to whoever wants text similarity `text`.

    curve [K,2]: (image, text) similarity of a method's truncations. Between two of them straight lines are drawn. Below
    the lowest text similarity of the curve its image similarity there counts: more text than was asked for is no harm.
    Above the highest one the method has nothing to offer, and `otherwise` counts.
    """
    points = curve[np.argsort(curve[:, 1])]
    if text > points[-1, 1]:
        return otherwise
    return float(np.interp(text, points[:, 1], points[:, 0]))


def _arrays(scores: dict[str, list[float]], drawing: Drawing | None = None, prompts: Sequence[str] = ()) -> Scored:
    """As arrays; of the images of a drawing those of `prompts` alone, if any are given."""
    arrays = {metric: np.array(values) for metric, values in scores.items()}
    if drawing is None or not prompts:
        return arrays
    kept = np.repeat([prompt in prompts for prompt in drawing.images.prompts], len(drawing.images.seeds))
    return {metric: values[kept] for metric, values in arrays.items() if len(values) == len(kept)}


def _joined(of_seeds: Mapping[int, Scored], seeds: Sequence[int]) -> Scored:
    parts = [of_seeds[seed] for seed in seeds]
    return {metric: np.concatenate([part[metric] for part in parts]) for metric in parts[0]}
