"""From finished cells to what the page tells: candidates of the search, measurements, rows of a report, sizes."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ....models.backbone.frame import Frame
from ....models.concepts.concept import Concept
from ....models.methods import METHODS, Start
from ....utils.config.parsing import to_plain_dict
from ....utils.statistics import Bootstrap
from ...coach.plan import method_config
from ...config.run import ConceptDtype, RunConfig
from ...evaluation.rows import TRAINING_IMAGES, Kind, Row, ScoredSet, metric_rows
from ...evaluation.scores import IMAGE, TEXT
from .board import Board
from .cells import Cell, Drawing, Training
from .measurements import WORD, ConceptScores, Condition, Measurements, condition_of
from .selection import Candidate, Rails
from .workshop import DIVERGED

SD14 = Frame.of_sizes(16, [768])  # Stable Diffusion v1.4, for which sizes are told
BASE_ALONE = "{}, v_base alone"


def candidates(board: Board, cells: Sequence[Cell]) -> tuple[Rails, list[Candidate]]:
    """The rails on the tuning concepts, and every pair of learning rate and steps that was tried, with its score."""
    drawings = [cell for cell in cells if isinstance(cell, Drawing)]
    ends = [board.result(cell) for cell in drawings if cell.training is None]
    rails = Rails(
        *(float(np.mean([np.mean(end[kind][m]) for end in ends])) for kind in ("word", "photos") for m in (IMAGE, TEXT))
    )
    found: dict[tuple[str, float, int], list[dict]] = {}
    for cell in drawings:
        if cell.training is not None:
            pair = (cell.training.method, cell.training.rate, cell.step)
            found.setdefault(pair, []).append(board.result(cell))
    tried = []
    for pair, results in found.items():
        if any(DIVERGED in result for result in results):
            tried.append(Candidate(*pair))
        else:
            image, text = (float(np.mean([np.mean(result[metric]) for result in results])) for metric in (IMAGE, TEXT))
            tried.append(Candidate(*pair, image, text, rails.score(image, text)))
    return rails, tried


def measurements(board: Board, cells: Sequence[Cell]) -> tuple[Measurements, dict[str, ConceptScores]]:
    """All scores of the main cells, the training seeds of a concept one after another; and the photos' by concept."""
    parts: dict[Condition, dict[str, list[ConceptScores]]] = {}
    photos = {}
    seeds = len({cell.seed for cell in cells if isinstance(cell, Training)})
    for cell in cells:
        if not isinstance(cell, Drawing):
            continue
        result = board.result(cell)
        if cell.training is None:
            photos[cell.concept.name] = _arrays(result["photos"])
            found = [_arrays(result["word"])] * seeds  # no training in it: the same images beside those of every seed
        else:
            found = [_arrays(result)]
        parts.setdefault(condition_of(cell), {}).setdefault(cell.concept.name, []).extend(found)
    scores = {
        condition: {
            concept: {metric: np.concatenate([part[metric] for part in of_seeds]) for metric in of_seeds[0]}
            for concept, of_seeds in of_concepts.items()
        }
        for condition, of_concepts in parts.items()
    }
    return Measurements(scores), photos


def rows(measured: Measurements, photos: dict[str, ConceptScores], bootstrap: Bootstrap) -> list[Row]:
    """The full sets of images and the rails, as rows of a metrics report."""
    sets = []
    for condition, of_concepts in measured.scores.items():
        if condition.step is not None:
            continue
        kind = Kind.bound if condition == WORD else Kind.run
        method = condition.method if condition.bypass else BASE_ALONE.format(condition.method)
        for concept, scores in of_concepts.items():
            sets.append(
                ScoredSet(kind, method, concept, condition.truncation, len(scores[IMAGE]), scores, by_prompt={})
            )
    for concept, scores in photos.items():
        sets.append(ScoredSet(Kind.bound, TRAINING_IMAGES, concept, None, len(scores[IMAGE]), scores, by_prompt={}))
    return metric_rows(sets, bootstrap)


def sd14_bytes(config: RunConfig) -> int:
    """Size in bytes of the half-precision file of a concept that this configuration would train on SD v1.4."""
    method = METHODS[config.model.method].create(
        method_config(config.model),
        SD14,
        Start(torch.ones(SD14.text_width), torch.Generator().manual_seed(0)),
    )
    half = replace(config, log=replace(config.log, concept_dtype=ConceptDtype.fp16))
    metadata = {"base_model": "CompVis/stable-diffusion-v1-4", "step": config.optim.max_train_steps}
    concept = Concept(
        method,
        config.data.placeholder_token,
        config.data.super_category_token,
        {**metadata, "training_config": to_plain_dict(half)},
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "concept.safetensors"
        concept.save(path, torch.float16)
        return path.stat().st_size


def _arrays(scores: dict[str, list[float]]) -> ConceptScores:
    return {metric: np.array(values) for metric, values in scores.items()}
