"""The measurement of one cell's images: every score of every image, from which all tables are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ....models.judging.cache import Picture
from ....models.judging.metric_model import CLIPMetricModel
from ...data.photos import find_images
from ...evaluation.config import ConceptSource
from ...evaluation.scorer import ConceptPictures, Scorer
from ...evaluation.scores import joined
from .plan_config import ReproductionConfig

Numbers = dict[str, list[float]]  # metric -> one number per image, prompt by prompt (diversity: one per prompt)


class Bench:
    """The metric model, and the features of all images it has seen."""

    def __init__(self, config: ReproductionConfig, model: CLIPMetricModel) -> None:
        concepts = {
            source.name: ConceptPictures(source.super_category, [Picture(p) for p in find_images(source.folder)[0]])
            for source in (*config.concept_sources, *config.tuning_sources)
        }
        self.scorer = Scorer(
            concepts,
            model,
            placeholder=config.placeholder,
            cache_dir=config.work_dir / "features",
            batch_size=config.batch_size,
        )

    def generated(self, concept: ConceptSource, paths: Mapping[str, Sequence[Path]]) -> Numbers:
        """Scores of generated images, given as prompt -> files, by the definitions of docs/metrics.md."""
        scores = joined(list(self.scorer.generated(concept.name, paths).values()))
        return {metric: values.tolist() for metric, values in scores.items()}

    def photos(self, concept: ConceptSource, prompts: Sequence[str]) -> Numbers:
        """Scores of the concept's own photos in the place of generated images, each compared with every prompt."""
        return {metric: values.tolist() for metric, values in self.scorer.photos(concept.name, prompts).items()}
