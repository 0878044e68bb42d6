"""The measurement of one cell's images: every score of every image, from which all tables are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ....models.judging.cache import FeatureCache, file_features
from ....models.judging.judge import CLIPJudge
from ...data.photos import find_images
from ...evaluation.config import ConceptSource
from ...evaluation.scores import DIVERSITY, IMAGE, TEXT, diversity, image_scores, judged_text, text_scores
from .plan_config import ReproductionConfig

Scores = dict[str, list[float]]  # metric -> one number per image, prompt by prompt (diversity: one per prompt)


class Bench:
    """The judge, and the features of all images it has seen."""

    def __init__(self, config: ReproductionConfig, judge: CLIPJudge) -> None:
        self.config, self.judge = config, judge
        self.cache = FeatureCache(config.work_dir / "features", judge)
        self._photos: dict[Path, np.ndarray] = {}

    def generated(self, concept: ConceptSource, paths: Mapping[str, Sequence[Path]]) -> Scores:
        """Scores of generated images, given as prompt -> files, by the definitions of docs/metrics.md."""
        photos, texts = self._photo_features(concept), self._text_features(concept, list(paths))
        scores: Scores = {IMAGE: [], TEXT: [], DIVERSITY: []}
        for files, text in zip(paths.values(), texts, strict=True):
            shown = self._features(files)
            scores[IMAGE] += image_scores(shown, photos).tolist()
            scores[TEXT] += text_scores(shown, text).tolist()
            if (spread := diversity(shown)) is not None:
                scores[DIVERSITY].append(spread)
        return scores

    def photos(self, concept: ConceptSource, prompts: Sequence[str]) -> Scores:
        """Scores of the concept's own photos in the place of generated images, each compared with every prompt."""
        photos, texts = self._photo_features(concept), self._text_features(concept, prompts)
        told = np.mean([text_scores(photos, text) for text in texts], axis=0)
        return {IMAGE: image_scores(photos, photos).tolist(), TEXT: told.tolist(), DIVERSITY: []}

    def _photo_features(self, concept: ConceptSource) -> np.ndarray:
        if concept.folder not in self._photos:
            self._photos[concept.folder] = self._features(find_images(concept.folder)[0])
        return self._photos[concept.folder]

    def _features(self, paths: Sequence[Path]) -> np.ndarray:
        return file_features(self.judge, paths, self.cache, self.config.batch_size).numpy()

    def _text_features(self, concept: ConceptSource, prompts: Sequence[str]) -> np.ndarray:
        texts = [judged_text(prompt, self.config.placeholder, concept.super_category) for prompt in prompts]
        return self.judge.text_features(texts).numpy()
