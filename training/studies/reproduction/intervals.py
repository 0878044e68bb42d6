"""Statistics of paired measurements, with bootstrap intervals over concepts and images.

A *table* holds one concept's scores [..., U]: any conditions in front, the U images last. Image u has the same prompt
and seed under every condition; a resample draws the same images for all of them, and all comparisons are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...evaluation.scores import CONFIDENCE, Bootstrap, Estimate


def over_concepts(
    tables: Sequence[np.ndarray], statistic: Callable[[np.ndarray], float], bootstrap: Bootstrap
) -> Estimate:
    """Mean over concepts of a statistic of the mean scores [...], with its interval.

    Two levels are resampled: the concepts, and within every drawn one its images. A single concept has no interval: it
    tells nothing about the spread over concepts.
    """
    mean = float(np.mean([statistic(table.mean(axis=-1)) for table in tables]))
    if len(tables) < 2:
        return Estimate(mean)
    random = np.random.default_rng(bootstrap.seed)
    values = np.array([_resampled(table, statistic, bootstrap.samples, random) for table in tables])
    concepts = random.integers(len(tables), size=(bootstrap.samples, len(tables)))
    # a concept that is drawn twice is resampled twice: each draw takes a resample of its own
    resamples = random.integers(bootstrap.samples, size=concepts.shape)
    low, high = np.quantile(values[concepts, resamples].mean(axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(mean, float(low), float(high))


def _resampled(
    table: np.ndarray, statistic: Callable[[np.ndarray], float], samples: int, random: np.random.Generator
) -> list[float]:
    units = table.shape[-1]
    drawn = random.integers(units, size=(samples, units)) + units * np.arange(samples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=samples * units).reshape(samples, units)  # how often each image is in
    means = table @ (counts.T / units)  # [..., samples]
    return [statistic(means[..., k]) for k in range(samples)]


def rank_correlation(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    """Spearman's: the correlation of the ranks, equal values sharing theirs; 0 where one side does not vary."""
    ranks = [_ranks(np.asarray(values)) for values in (x, y)]
    centred = [rank - rank.mean() for rank in ranks]
    spread = float(np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float((centred[0] * centred[1]).sum() / spread) if spread > 0 else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def steps_to_reach(level: float, steps: Sequence[int], values: np.ndarray) -> float:
    """After how many steps a curve first reaches `level`, straight lines between its points.

    A curve that starts above the level reaches it at its first point, which is as early as was looked. The level must
    not lie above the curve's highest value.
    """
    first = int(np.argmax(values >= level))
    if first == 0:
        return float(steps[0])
    before, after = values[first - 1], values[first]
    return float(steps[first - 1] + (steps[first] - steps[first - 1]) * (level - before) / (after - before))


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
