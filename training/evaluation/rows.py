"""From scores to rows: one per prompt, one over the prompts of a concept, one over concepts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...utils.config.choices import Choice
from ...utils.statistics import Bootstrap, Estimate
from .scores import Scores

TRAINING_IMAGES, PROMPT_ONLY = "training images", "prompt only"  # the upper bounds, as every output names them


class Kind(Choice):
    """What a row measures: a method's images, or an upper bound that methods are seen against."""

    run = "run"
    bound = "bound"


@dataclass(frozen=True)
class ScoredSet:
    """The scores of one method's images of one concept at one truncation."""

    kind: Kind
    method: str
    concept: str
    truncation: int | None  # hidden units kept; None = all
    images: int
    overall: Scores
    by_prompt: Mapping[str, tuple[int, Scores]]  # prompt -> its number of images and their scores; {} for photos


@dataclass(frozen=True)
class Row:
    """One line of the result. concept None: the mean over `concepts` concepts; prompt None: over all prompts."""

    kind: Kind
    method: str
    concept: str | None
    truncation: int | None
    prompt: str | None
    concepts: int
    images: int
    estimates: Mapping[str, Estimate]  # a metric without a single score is left out


def metric_rows(sets: Sequence[ScoredSet], bootstrap: Bootstrap) -> list[Row]:
    """All rows of all sets, in their order; the rows over concepts come last.

    A row over concepts is made where a method has several, for the truncations that ALL of them have: means over
    different concepts could not be compared.
    """
    rows = []
    for one in sets:
        place = (one.kind, one.method, one.concept, one.truncation)
        rows.append(Row(*place, None, 1, one.images, _estimates(one.overall, bootstrap)))
        for prompt, (images, scores) in one.by_prompt.items():
            rows.append(Row(*place, prompt, 1, images, _estimates(scores, bootstrap)))
    for kind, method in dict.fromkeys((one.kind, one.method) for one in sets):
        own = [one for one in sets if (one.kind, one.method) == (kind, method)]
        concepts = {one.concept for one in own}
        for truncation in dict.fromkeys(one.truncation for one in own):
            group = [one for one in own if one.truncation == truncation]
            if len(group) == len(concepts) > 1:
                images = sum(one.images for one in group)
                estimates = {
                    metric: bootstrap.over_groups([one.overall[metric] for one in group])
                    for metric in group[0].overall
                    if all(len(one.overall.get(metric, ())) for one in group)
                }
                rows.append(Row(kind, method, None, truncation, None, len(group), images, estimates))
    return rows


def unequal_sets(sets: Sequence[ScoredSet]) -> list[str]:
    """One line for each set of images whose mean does not compare with the others': it lacks prompts or concepts."""
    runs = [one for one in sets if one.by_prompt]
    notes = []
    for one in runs:
        prompts = {prompt for other in runs if other.concept == one.concept for prompt in other.by_prompt}
        if missing := sorted(prompts - one.by_prompt.keys()):
            others = f" and {len(missing) - 1} more prompts" if len(missing) > 1 else ""
            notes.append(
                f"{_name(one)}: no image of {missing[0]!r}{others}, which others have; means over different prompts "
                "do not compare"
            )
        concepts = {other.concept for other in runs if other.method == one.method}
        concepts -= {c.concept for c in runs if (c.method, c.truncation) == (one.method, one.truncation)}
        if concepts:
            notes.append(
                f"{_name(one)}: no images of {', '.join(sorted(concepts))} at this truncation, so no mean over "
                "concepts is made"
            )
    return notes


def truncation_name(truncation: int | None) -> str:
    return "all" if truncation is None else str(truncation)


def _name(one: ScoredSet) -> str:
    return f"{one.method}, {one.concept}, {truncation_name(one.truncation)} units"


def _estimates(scores: Scores, bootstrap: Bootstrap) -> dict[str, Estimate]:
    return {metric: bootstrap.estimate(values) for metric, values in scores.items() if len(values)}
