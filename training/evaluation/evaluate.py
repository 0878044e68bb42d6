"""What `scripts/compute_metrics.py` does with its config: find the images, score them, and put the numbers in rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...models.conditioning.prompts import SLOT
from ...models.judging.metric_model import CLIPMetricModel, MetricModel
from ...utils.devices import pick_device
from ...utils.errors import UserError
from ...utils.statistics import Bootstrap
from .config import MetricsConfig, RunSource
from .images import GeneratedImage, GeneratedSet, read_generated
from .report import Report, bootstrap_protocol, require_replaceable
from .rows import TRAINING_IMAGES, Kind, ScoredSet, metric_rows, unequal_sets
from .scorer import Scorer, find_pictures
from .scores import IMAGE, joined

Sets = dict[tuple[str, str], GeneratedSet]  # (method, concept) -> the images of all its folders


class Evaluation:
    """One measurement. Making the object reads all folders and prompts; `report` loads the models and measures.

    Raises UserError for a device that is not there, a missing folder, one without images or without prompts, images of
    several concepts in one entry, a prompt-only image whose prompt no run has, and files of others under the names of
    the results.
    """

    def __init__(self, config: MetricsConfig) -> None:
        self.config = config
        require_replaceable(config.output_dir)
        self.device = pick_device(config.device)
        self.concepts = {
            concept.name: find_pictures(
                concept, config.reference_folders.get(concept.name), config.mask_folders.get(concept.name)
            )
            for concept in config.concept_sources
        }
        self.runs = _read(config.run_sources)
        self.prompts = {
            name: list(dict.fromkeys(p for (_, c), images in self.runs.items() if c == name for p in images.prompts))
            for name in self.concepts
        }
        self.bounds = {
            place: self._with_slot(place[1], images)
            for place, images in _read(config.prompt_only_sources, plain=True).items()
        }

    @property
    def num_features(self) -> int:
        """How many images will be looked at, by all metric models together."""
        generated = sum(len(images.images) for images in [*self.runs.values(), *self.bounds.values()])
        models = 2 if self.config.dino else 1
        compared = self.concepts.values()
        once = sum(len(c.references) + len(c.masked) for c in compared)
        return models * (generated + sum(len(c.photos) for c in compared)) + once

    def report(self, on_images: Callable[[int], object] | None = None) -> Report:
        """Score all images. on_images(n): called when n more are done.

        Raises UserError for a metric model that cannot be loaded and a cache that cannot be written to.
        """
        config = self.config
        place: dict[str, Any] = {"resizing": config.resizing, "device": self.device}
        clip = CLIPMetricModel.from_pretrained(config.judge, revision=config.judge_revision, key="judge", **place)
        dino = MetricModel.from_pretrained(config.dino, key="dino", **place) if config.dino else None
        scorer = Scorer(
            self.concepts,
            clip,
            dino,
            placeholder=config.placeholder,
            cache_dir=config.cache_dir,
            batch_size=config.batch_size,
            on_images=on_images,
        )
        sets = self._scored(scorer)
        bootstrap = Bootstrap(config.bootstrap_samples, config.bootstrap_seed)
        protocol = {
            **scorer.protocol,
            "judge_revision": config.judge_revision,
            "concepts": list(self.concepts),
            **bootstrap_protocol(bootstrap),
        }
        return Report(protocol, self._sources(), metric_rows(sets, bootstrap), self._notes(sets))

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

    def _scored(self, scorer: Scorer) -> list[ScoredSet]:
        """The scores of every run at every truncation, then of the upper bounds."""
        sets = []
        for kind, read in ((Kind.run, self.runs), (Kind.bound, self.bounds)):
            for (method, concept), images in read.items():
                for truncation in images.truncations:
                    paths = _by_prompt(images.images, truncation)
                    by_prompt = {p: (len(paths[p]), s) for p, s in scorer.generated(concept, paths).items()}
                    count = sum(number for number, _ in by_prompt.values())
                    overall = joined([scores for _, scores in by_prompt.values()])
                    sets.append(ScoredSet(kind, method, concept, truncation, count, overall, by_prompt))
        for concept, prompts in self.prompts.items():
            if prompts:
                scores = scorer.photos(concept, prompts)
                sets.append(ScoredSet(Kind.bound, TRAINING_IMAGES, concept, None, len(scores[IMAGE]), scores, {}))
        return sets

    def _sources(self) -> dict[str, Any]:
        """What was read: the concepts, and the generated sets with what their recipes have in common."""
        config = self.config
        entries = [
            {
                "method": source.method,
                "concept": source.concept,
                "folder": str(source.folder),
                "recipe": {**self.runs, **self.bounds}[source.method, source.concept].recipe,
            }
            for source in [*config.run_sources, *config.prompt_only_sources]
        ]
        concepts = []
        for concept in config.concept_sources:
            pictures = self.concepts[concept.name]
            names = {
                "images": [picture.path.name for picture in pictures.photos],
                "references": [picture.path.name for picture in pictures.references],
                "masks": [picture.mask.name for picture in pictures.masked if picture.mask],
            }
            concepts.append({**concept._asdict(), "folder": str(concept.folder), **names})
        return {"concepts": concepts, "generated": entries}

    def _notes(self, sets: list[ScoredSet]) -> list[str]:
        notes = []
        for (method, concept), images in {**self.runs, **self.bounds}.items():
            about = f"{method}, {concept}: "
            if images.withheld:
                notes.append(f"{about}{images.withheld} images that the safety checker withheld are left out")
            if images.skipped:
                notes.append(f"{about}{len(images.skipped)} grids are left out, such as {images.skipped[0].name}")
            if not images.recipe:
                first = images.images[0]
                notes.append(f"{about}images of another tool; the prompt of {first.path} is read as {first.prompt!r}")
        return notes + unequal_sets(sets)


def _read(sources: Iterable[RunSource], plain: bool = False) -> Sets:
    folders: dict[tuple[str, str], list[Path]] = {}
    for source in sources:
        folders.setdefault((source.method, source.concept), []).append(source.folder)
    return {place: read_generated(paths, plain) for place, paths in folders.items()}


def _by_prompt(images: Iterable[GeneratedImage], truncation: int | None) -> dict[str, list[Path]]:
    paths: dict[str, list[Path]] = {}
    for image in images:
        if image.truncation == truncation:
            paths.setdefault(image.prompt, []).append(image.path)
    return paths
