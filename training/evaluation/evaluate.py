"""What `scripts/compute_metrics.py` does with its config: find the images, judge them, and put the numbers in rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...models.conditioning.prompts import SLOT
from ...models.judging.cache import FeatureCache, file_features
from ...models.judging.judge import CLIPJudge, ImageJudge
from ...utils.devices import pick_device
from ...utils.errors import UserError
from ..data.photos import find_images
from .config import MetricsConfig, RunSource
from .generated_images import GeneratedImage, GeneratedSet, read_generated
from .protocol import protocol
from .report import Report
from .rows import TRAINING_IMAGES, Cell, Kind, metric_rows, unequal_sets
from .scores import (
    DINO,
    DIVERSITY,
    IMAGE,
    TEXT,
    Bootstrap,
    Scores,
    diversity,
    image_scores,
    joined,
    judged_text,
    text_scores,
)

Features = dict[Path, dict[str, np.ndarray]]  # image file -> metric -> its unit feature [D]


class Evaluation:
    """One measurement. Making the object reads all folders and recipes; `report` loads the judge and measures.

    Raises UserError for a device that is not there, a missing folder, one without images or without recipes, images of
    several concepts in one entry, and a prompt-only image whose prompt no run has.
    """

    def __init__(self, config: MetricsConfig) -> None:
        self.config = config
        self.device = pick_device(config.device)
        self.concepts = {concept.name: concept for concept in config.concept_sources}
        self.training = {name: _training_images(concept.folder) for name, concept in self.concepts.items()}
        self.runs = _read(config.run_sources)
        self.prompts = {
            name: list(dict.fromkeys(p for (_, c), images in self.runs.items() if c == name for p in images.prompts))
            for name in self.concepts
        }
        self.prompt_only = {
            place: self._with_slot(place[1], images) for place, images in _read(config.prompt_only_sources).items()
        }

    @property
    def paths(self) -> list[Path]:
        """Every image file that is measured, once."""
        sets = [*self.runs.values(), *self.prompt_only.values()]
        generated = (image.path for images in sets for image in images.images)
        return list(dict.fromkeys([*(path for paths in self.training.values() for path in paths), *generated]))

    @property
    def num_features(self) -> int:
        """How many images will be judged, by all judges together."""
        return len(self.paths) * (2 if self.config.dino else 1)

    def report(self, on_images: Callable[[int], object] | None = None) -> Report:
        """Judge all images and texts. on_images(n): called when n more images are done.

        Raises UserError for a judge that cannot be loaded and a cache that cannot be written to.
        """
        config = self.config
        place: dict[str, Any] = {"resizing": config.resizing, "device": self.device}
        judge = CLIPJudge.from_pretrained(config.judge, revision=config.judge_revision, key="judge", **place)
        dino = ImageJudge.from_pretrained(config.dino, key="dino", **place) if config.dino else None
        features: Features = {path: {} for path in self.paths}
        for metric, model in {IMAGE: judge, DINO: dino}.items():
            if model is not None:
                cache = FeatureCache(config.cache_dir, model)
                found = file_features(model, self.paths, cache, config.batch_size, on_images).numpy()
                for path, feature in zip(self.paths, found, strict=True):
                    features[path][metric] = feature
        cells = self._cells(features, self._text_features(judge))
        rows = metric_rows(cells, Bootstrap(config.bootstrap_samples, config.bootstrap_seed))
        return Report(protocol(config, judge, dino, str(self.device)), self._sources(), rows, self._notes(cells))

    def _with_slot(self, concept: str, images: GeneratedSet) -> GeneratedSet:
        """The prompt-only images under the prompts of the runs, whose `{}` they fill with the super-category word."""
        word = self.concepts[concept].super_category
        used = images.recipe.get("word")
        if used is not None and used != word:
            raise UserError(
                f"prompt_only of {concept}: {images.images[0].path} was made with the word {used!r}, but concepts says "
                f"{word!r}; they must be the same"
            )
        filled = {prompt.replace(SLOT, word): prompt for prompt in self.prompts[concept]}
        for image in images.images:
            if image.prompt not in filled and image.prompt not in filled.values():
                raise UserError(
                    f"{image.path}: no run of {concept} has the prompt {image.prompt!r} (with {SLOT} for {word!r}); "
                    "prompt_only must show the prompts of the runs"
                )
        renamed = [replace(image, prompt=filled.get(image.prompt, image.prompt)) for image in images.images]
        return replace(images, images=renamed)

    def _text_features(self, judge: CLIPJudge) -> dict[tuple[str, str], np.ndarray]:
        """(concept, prompt) -> unit feature [D] of the text that the prompt's images are compared with."""
        places = [(name, prompt) for name, prompts in self.prompts.items() for prompt in prompts]
        texts = [judged_text(p, self.config.placeholder, self.concepts[c].super_category) for c, p in places]
        return dict(zip(places, judge.text_features(texts).numpy(), strict=True))

    def _cells(self, features: Features, texts: dict[tuple[str, str], np.ndarray]) -> list[Cell]:
        """The scores of every run at every truncation, then of the rails."""
        cells = []
        for kind, sets in ((Kind.run, self.runs), (Kind.rail, self.prompt_only)):
            for (method, concept), images in sets.items():
                training = _stacked(features, self.training[concept])
                for truncation in images.truncations:
                    by_prompt = {}
                    for prompt, paths in _by_prompt(images.images, truncation).items():
                        shown = _stacked(features, paths)
                        by_prompt[prompt] = (len(paths), _scores(shown, training, [texts[concept, prompt]]))
                    count = sum(number for number, _ in by_prompt.values())
                    overall = joined([scores for _, scores in by_prompt.values()])
                    cells.append(Cell(kind, method, concept, truncation, count, overall, by_prompt))
        for concept, paths in self.training.items():
            if self.prompts[concept]:
                training = _stacked(features, paths)
                scores = _scores(training, training, [texts[concept, prompt] for prompt in self.prompts[concept]])
                cells.append(Cell(Kind.rail, TRAINING_IMAGES, concept, None, len(paths), scores, {}))
        return cells

    def _sources(self) -> dict[str, Any]:
        """What was read: the concepts, and the generated sets with what their recipes have in common."""
        config = self.config
        entries = [
            {
                "method": source.method,
                "concept": source.concept,
                "folder": str(source.folder),
                "recipe": {**self.runs, **self.prompt_only}[source.method, source.concept].recipe,
            }
            for source in [*config.run_sources, *config.prompt_only_sources]
        ]
        concepts = [
            {**concept._asdict(), "folder": str(concept.folder), "images": [path.name for path in self.training[name]]}
            for name, concept in self.concepts.items()
        ]
        return {"concepts": concepts, "generated": entries}

    def _notes(self, cells: list[Cell]) -> list[str]:
        sets = {**self.runs, **self.prompt_only}
        withheld = [
            f"{method}, {concept}: {images.withheld} images that the safety checker withheld are left out"
            for (method, concept), images in sets.items()
            if images.withheld
        ]
        return withheld + unequal_sets(cells)


def _training_images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"the folder of training images {folder} does not exist; check concepts")
    return find_images(folder)[0]


def _read(sources: Iterable[RunSource]) -> dict[tuple[str, str], GeneratedSet]:
    """(method, concept) -> the images of all its folders."""
    folders: dict[tuple[str, str], list[Path]] = {}
    for source in sources:
        folders.setdefault((source.method, source.concept), []).append(source.folder)
    return {place: read_generated(paths) for place, paths in folders.items()}


def _by_prompt(images: Iterable[GeneratedImage], truncation: int | None) -> dict[str, list[Path]]:
    paths: dict[str, list[Path]] = {}
    for image in images:
        if image.truncation == truncation:
            paths.setdefault(image.prompt, []).append(image.path)
    return paths


def _stacked(features: Features, paths: Iterable[Path]) -> dict[str, np.ndarray]:
    """Metric -> features [N,D] of the files."""
    rows = [features[path] for path in paths]
    return {metric: np.stack([row[metric] for row in rows]) for metric in rows[0]}


def _scores(shown: dict[str, np.ndarray], training: dict[str, np.ndarray], texts: list[np.ndarray]) -> Scores:
    """The scores of images that stand for each of the texts: one text for generated ones, all prompts for photos."""
    spread = diversity(shown[IMAGE])
    similarities = {metric: image_scores(shown[metric], training[metric]) for metric in shown}
    return {
        **similarities,
        TEXT: np.mean([text_scores(shown[IMAGE], text) for text in texts], axis=0),
        DIVERSITY: np.array([] if spread is None else [spread]),
    }
