"""CLIP metrics as pure functions of unit feature matrices: the protocol of Textual Inversion, with intervals.

N generated images, M training images, D feature width. A *score* is what one independent unit (an image, or for
diversity a prompt) contributes; a metric is the mean of its scores, and the bootstrap resamples the scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...models.conditioning.prompts import SLOT
from ...utils.config.choices import Choice

IMAGE, TEXT, DIVERSITY, DINO = "image_similarity", "text_similarity", "diversity", "dino_similarity"
METRICS = (IMAGE, TEXT, DIVERSITY, DINO)
CONFIDENCE = 0.95

Scores = Mapping[str, np.ndarray]  # metric -> one score per unit


class PlaceholderRule(Choice):
    """What stands in the judged text where the concept stood in the prompt."""

    removed = "removed"  # nothing: "A photo of  on a beach", the definition of Textual Inversion
    replaced = "replaced"  # the super-category word: "A photo of toy on a beach"


def judged_text(prompt: str, rule: PlaceholderRule, super_category: str) -> str:
    """The text that an image of `prompt` (with `{}` for the concept) is compared with."""
    return prompt.replace(SLOT, "" if rule is PlaceholderRule.removed else super_category)


def image_scores(generated: np.ndarray, training: np.ndarray) -> np.ndarray:
    """[N,D], [M,D] -> [N]: each generated image's mean cosine with all training images.

    Their mean is the image similarity: the mean over all training x generated pairs.
    """
    return generated.astype(np.float64) @ training.astype(np.float64).mean(axis=0)


def text_scores(generated: np.ndarray, text: np.ndarray) -> np.ndarray:
    """[N,D], [D] -> [N]: each image's cosine with the prompt's text."""
    return generated.astype(np.float64) @ text.astype(np.float64)


def diversity(images: np.ndarray) -> float | None:
    """[N,D] -> 1 - the mean cosine over all pairs of DIFFERENT images (of one prompt); None for fewer than two."""
    count = len(images)
    if count < 2:
        return None
    rows = images.astype(np.float64)
    total = rows.sum(axis=0)
    pairs = float(total @ total) - float((rows * rows).sum())
    return 1.0 - pairs / (count * (count - 1))


def joined(parts: Sequence[Scores]) -> dict[str, np.ndarray]:
    """The scores of several prompts as those of one set of images."""
    return {metric: np.concatenate([part[metric] for part in parts]) for metric in parts[0]}


@dataclass(frozen=True)
class Estimate:
    """A mean and the ends of its 95% interval; None where a single unit tells nothing about the spread."""

    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Bootstrap:
    """Percentile intervals from `samples` resamples. The same seed and scores give the same interval, in any order."""

    samples: int = 1000
    seed: int = 0

    def estimate(self, scores: np.ndarray) -> Estimate:
        """Mean of the scores [N] and its interval over units drawn with replacement."""
        mean = float(scores.mean())
        if len(scores) < 2:
            return Estimate(mean)
        return self._interval(mean, self._resampled(scores, np.random.default_rng(self.seed)))

    def estimate_over_groups(self, groups: Sequence[np.ndarray]) -> Estimate:
        """Mean over groups (concepts) of their means, each group counting the same.

        Two levels are resampled: the groups, and within every drawn group its units.
        """
        random = np.random.default_rng(self.seed)
        mean = float(np.mean([scores.mean() for scores in groups]))
        if len(groups) < 2:
            raise ValueError("an interval over groups needs at least two of them")
        means = np.stack([self._resampled(scores, random) for scores in groups])  # [G, samples]
        drawn = random.integers(len(groups), size=(self.samples, len(groups)))
        # a group that is drawn twice is resampled twice: each draw takes its mean from a resample of its own
        resample = random.integers(self.samples, size=drawn.shape)
        return self._interval(mean, means[drawn, resample].mean(axis=1))

    def _resampled(self, scores: np.ndarray, random: np.random.Generator) -> np.ndarray:
        drawn = random.integers(len(scores), size=(self.samples, len(scores)))
        return scores[drawn].mean(axis=1)

    def _interval(self, mean: float, means: np.ndarray) -> Estimate:
        low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return Estimate(mean, float(low), float(high))
