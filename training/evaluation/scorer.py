"""Scores of images by the metric models: the one way from image files to numbers, for metrics and reproduction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...models.judging.cache import FeatureCache, Picture, file_features
from ...models.judging.metric_model import CLIPMetricModel, MetricModel
from ...utils.devices import library_versions
from ...utils.errors import UserError
from ..config.options import MaskSource
from ..config.run import DataConfig
from ..data.masks import find_masks
from ..data.photos import find_images
from .config import ConceptSource
from .scores import (
    DINO,
    DIVERSITY,
    IDENTITY,
    IMAGE,
    MASKED,
    REFERENCE,
    TEXT,
    PlaceholderRule,
    Scores,
    compared_text,
    diversity,
    identity_scores,
    image_scores,
    text_scores,
)

DEFINITIONS = {
    IMAGE: "mean cosine over all training x generated pairs",
    TEXT: "mean over generated images of the cosine with the prompt's text",
    DIVERSITY: "1 - mean cosine over pairs of different images of one prompt, mean over prompts",
    REFERENCE: "as image_similarity, to the reference pictures in place of the training images",
    MASKED: "as image_similarity, to the training images with grey for all that their masks leave out",
    IDENTITY: "share of the images whose nearest concept, by the references where given, is their own",
}


class ConceptPictures(NamedTuple):
    """What images of a concept are compared with. references, masked: none if there is nothing to compare with."""

    super_category: str
    photos: Sequence[Picture]
    references: Sequence[Picture] = ()
    masked: Sequence[Picture] = ()


def find_pictures(source: ConceptSource, references: Path | None, masks: Path | None) -> ConceptPictures:
    """The pictures in a concept's folders. UserError for one that is missing or holds none, and for a missing mask."""
    photos = [Picture(path) for path in _images(source.folder, "concepts")]
    masked: list[Picture] = []
    if masks is not None:
        data = DataConfig(source.folder, "<any>", masks=MaskSource.folder, masks_dir=masks)
        files = find_masks([photo.path for photo in photos], data)
        masked = [Picture(photo.path, mask) for photo, mask in zip(photos, files, strict=True)]
    others = [] if references is None else [Picture(path) for path in _images(references, "references")]
    return ConceptPictures(source.super_category, photos, others, masked)


class Scorer:
    """The metric models and the concepts. Pictures are looked at once, those of the concepts when first needed.

    clip: for images and texts; dino: for DINO similarity, None: left out. on_images(n): called when n more are done.
    """

    def __init__(
        self,
        concepts: Mapping[str, ConceptPictures],
        clip: CLIPMetricModel,
        dino: MetricModel | None = None,
        *,
        placeholder: PlaceholderRule = PlaceholderRule.removed,
        cache_dir: Path | None = None,
        batch_size: int = 32,
        on_images: Callable[[int], object] | None = None,
    ) -> None:
        self.concepts, self.placeholder, self.batch_size, self.on_images = concepts, placeholder, batch_size, on_images
        self.models: dict[str, MetricModel] = {IMAGE: clip} if dino is None else {IMAGE: clip, DINO: dino}
        self.clip = clip
        self._known_photos: dict[str, dict[str, np.ndarray]] = {}
        self._known_others: dict[tuple[str, str], np.ndarray | None] = {}
        self.caches = {metric: FeatureCache(cache_dir, model) for metric, model in self.models.items()}

    def generated(self, concept: str, paths: Mapping[str, Sequence[Path]]) -> dict[str, Scores]:
        """Prompt -> the scores of its images, given as prompt -> files. UserError for a file that is no image."""
        shown = self._features([Picture(path) for files in paths.values() for path in files])
        scores, start = {}, 0
        for (prompt, files), text in zip(paths.items(), self._texts(concept, list(paths)), strict=True):
            part = {metric: features[start : start + len(files)] for metric, features in shown.items()}
            scores[prompt] = self._scores(concept, part, [text])
            start += len(files)
        return scores

    def photos(self, concept: str, prompts: Sequence[str]) -> Scores:
        """The scores of the concept's own photos in the place of generated images, each compared with every prompt."""
        return self._scores(concept, self._photos(concept), self._texts(concept, prompts))

    @property
    def protocol(self) -> dict[str, Any]:
        """Every choice that decides the scores, by name, ready for JSON."""
        clip, dino = self.clip, self.models.get(DINO)
        return {
            "judge": clip.name,
            "judge_digest": clip.digest,
            "pooling": clip.pooling,
            "judge_input": clip.input.record,
            "resizing": clip.input.resizing.value,
            "placeholder": self.placeholder.value,
            "dino": dino.name if dino else None,
            "dino_digest": dino.digest if dino else None,
            "dino_pooling": dino.pooling if dino else None,
            "dino_input": dino.input.record if dino else None,
            **DEFINITIONS,
            "device": str(clip.model.device),
            "precision": clip.record["precision"],
            "versions": library_versions(),
        }

    def _scores(
        self, concept: str, shown: Mapping[str, np.ndarray], texts: np.ndarray | Sequence[np.ndarray]
    ) -> Scores:
        """Of images [N,D] that stand for each of the texts [D]: their prompt, or for photos all prompts."""
        photos, images = self._photos(concept), shown[IMAGE]
        scores = {metric: image_scores(features, photos[metric]) for metric, features in shown.items()}
        spread = diversity(images)
        scores[TEXT] = np.mean([text_scores(images, text) for text in texts], axis=0)
        scores[DIVERSITY] = np.array([] if spread is None else [spread])
        for metric in (REFERENCE, MASKED):
            if (others := self._others(concept, metric)) is not None:
                scores[metric] = image_scores(images, others)
        if len(self.concepts) > 1:
            scores[IDENTITY] = identity_scores(images, concept, {name: self._identity(name) for name in self.concepts})
        return scores

    def _identity(self, concept: str) -> np.ndarray:
        """What tells the concept from others: its references, else its photos."""
        references = self._others(concept, REFERENCE)
        return self._photos(concept)[IMAGE] if references is None else references

    def _photos(self, concept: str) -> dict[str, np.ndarray]:
        if concept not in self._known_photos:
            self._known_photos[concept] = self._features(self.concepts[concept].photos)
        return self._known_photos[concept]

    def _others(self, concept: str, metric: str) -> np.ndarray | None:
        """CLIP features of the references or masked photos; None without any."""
        if (concept, metric) not in self._known_others:
            pictures = self.concepts[concept].references if metric == REFERENCE else self.concepts[concept].masked
            self._known_others[concept, metric] = self._of_model(IMAGE, pictures) if pictures else None
        return self._known_others[concept, metric]

    def _features(self, pictures: Sequence[Picture]) -> dict[str, np.ndarray]:
        return {metric: self._of_model(metric, pictures) for metric in self.models}

    def _of_model(self, metric: str, pictures: Sequence[Picture]) -> np.ndarray:
        cache = self.caches[metric]
        return file_features(self.models[metric], pictures, cache, self.batch_size, self.on_images).numpy()

    def _texts(self, concept: str, prompts: Sequence[str]) -> np.ndarray:
        word = self.concepts[concept].super_category
        return self.clip.text_features([compared_text(prompt, self.placeholder, word) for prompt in prompts]).numpy()


def _images(folder: Path, key: str) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"the folder of pictures {folder} does not exist; check {key}")
    return find_images(folder)[0]
