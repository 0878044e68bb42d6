"""From scores to rows: one per prompt, one over the prompts of a concept, one over concepts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...utils.config.choices import Choice
from .scores import Bootstrap, Estimate, Scores

TRAINING_IMAGES, PROMPT_ONLY = "training images", "prompt only"  # the rails, as they are named in every output


class Kind(Choice):
    """What a row measures: a method's images, or a rail, the bound that methods are seen against."""

    run = "run"
    rail = "rail"


@dataclass(frozen=True)
class Cell:
    """The scores of one method's images of one concept at one truncation."""

    kind: Kind
    method: str
    concept: str
    truncation: int | None  # hidden units kept; None = all
    images: int
    overall: Scores
    by_prompt: Mapping[str, tuple[int, Scores]]  # prompt -> its number of images and their scores; {} for rails' photos


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


def metric_rows(cells: Sequence[Cell], bootstrap: Bootstrap) -> list[Row]:
    """All rows of all cells, in their order; the rows over concepts come last.

    A row over concepts is made where a method has several, for the truncations that ALL of them have: means over
    different concepts could not be compared.
    """
    rows = []
    for cell in cells:
        place = (cell.kind, cell.method, cell.concept, cell.truncation)
        rows.append(Row(*place, None, 1, cell.images, _estimates(cell.overall, bootstrap)))
        for prompt, (images, scores) in cell.by_prompt.items():
            rows.append(Row(*place, prompt, 1, images, _estimates(scores, bootstrap)))
    for kind, method in dict.fromkeys((cell.kind, cell.method) for cell in cells):
        own = [cell for cell in cells if (cell.kind, cell.method) == (kind, method)]
        concepts = {cell.concept for cell in own}
        for truncation in dict.fromkeys(cell.truncation for cell in own):
            group = [cell for cell in own if cell.truncation == truncation]
            if len(group) == len(concepts) > 1:
                images = sum(cell.images for cell in group)
                estimates = {
                    metric: bootstrap.estimate_over_groups([cell.overall[metric] for cell in group])
                    for metric in group[0].overall
                    if all(len(cell.overall[metric]) for cell in group)
                }
                rows.append(Row(kind, method, None, truncation, None, len(group), images, estimates))
    return rows


def unequal_sets(cells: Sequence[Cell]) -> list[str]:
    """One line for each set of images whose mean does not compare with the others': it lacks prompts or concepts."""
    runs = [cell for cell in cells if cell.by_prompt]
    notes = []
    for cell in runs:
        prompts = {prompt for other in runs if other.concept == cell.concept for prompt in other.by_prompt}
        if missing := sorted(prompts - cell.by_prompt.keys()):
            others = f" and {len(missing) - 1} more prompts" if len(missing) > 1 else ""
            notes.append(
                f"{_name(cell)}: no image of {missing[0]!r}{others}, which others have; means over different prompts "
                "do not compare"
            )
        concepts = {other.concept for other in runs if other.method == cell.method}
        concepts -= {c.concept for c in runs if (c.method, c.truncation) == (cell.method, cell.truncation)}
        if concepts:
            notes.append(
                f"{_name(cell)}: no images of {', '.join(sorted(concepts))} at this truncation, so no mean over "
                "concepts is made"
            )
    return notes


def truncation_name(truncation: int | None) -> str:
    return "all" if truncation is None else str(truncation)


def _name(cell: Cell) -> str:
    return f"{cell.method}, {cell.concept}, {truncation_name(cell.truncation)} units"


def _estimates(scores: Scores, bootstrap: Bootstrap) -> dict[str, Estimate]:
    return {metric: bootstrap.estimate(values) for metric, values in scores.items() if len(values)}
