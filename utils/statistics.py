"""Means with 95% intervals by the percentile bootstrap, and rank correlation: SciPy's.

A *table* holds one group's scores [..., U]: whatever was measured in front, the U independent units (images, scenes)
last. Unit u is the same under everything that was measured, so a resample draws it for all of them: whatever is
computed from one table is paired.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

CONFIDENCE = 0.95
Statistic: TypeAlias = Callable[[np.ndarray], float]  # of a table's mean scores [...], a number
_DRAWN_AT_ONCE = 2**22  # units in all resamples that are held together


@dataclass(frozen=True)
class Estimate:
    """A mean and the ends of its 95% interval; None where a single unit tells nothing about the spread."""

    mean: float
    low: float | None = None
    high: float | None = None

    def shown(self, form: str = "{:.3f}", ends: str | None = None) -> str:
        """`0.812 [0.790, 0.833]`, the ends in a form of their own if one is given; else the mean alone."""
        mean = form.format(self.mean)
        if self.low is None or self.high is None:
            return mean
        low, high = ((ends or form).format(end) for end in (self.low, self.high))
        return f"{mean} [{low}, {high}]"


@dataclass(frozen=True)
class Bootstrap:
    """`samples` resamples from `seed`: the same scores give the same interval, whatever was estimated before."""

    samples: int = 1000
    seed: int = 0

    def estimate(self, table: Sequence[float] | np.ndarray, statistic: Statistic | None = None) -> Estimate:
        """The statistic of the mean scores (None: of scores [U] the mean itself), units drawn with replacement.

        ValueError without a single unit; one unit has no interval.
        """
        table = np.asarray(table, np.float64)
        if table.shape[-1] == 0:
            raise ValueError("no scores to estimate from")
        value = _of_means(table, statistic)
        if table.shape[-1] == 1:
            return Estimate(value)
        return self._interval(value, self._resampled(table, statistic, np.random.default_rng(self.seed)))

    def over_groups(self, tables: Sequence[np.ndarray], statistic: Statistic | None = None) -> Estimate:
        """Mean over groups (concepts) of their statistics, each group counting the same.

        Two levels are resampled: the groups, and within every drawn group its units. A single group has no interval:
        it tells nothing about the spread over groups.
        """
        mean = float(np.mean([_of_means(table, statistic) for table in tables]))
        if len(tables) < 2:
            return Estimate(mean)
        random = np.random.default_rng(self.seed)
        values = np.stack([self._resampled(table, statistic, random) for table in tables])  # [G, samples]

        def mean_of_drawn(groups: np.ndarray, axis: int) -> np.ndarray:
            # a group that is drawn twice is resampled twice: each draw takes a resample of its own
            return values[groups, random.integers(self.samples, size=groups.shape)].mean(axis)

        return self._interval(mean, self._distribution(len(tables), mean_of_drawn, random))

    def _resampled(self, table: np.ndarray, statistic: Statistic | None, random: np.random.Generator) -> np.ndarray:
        """The statistic of every resample of a table's units, [samples]."""
        units = table.shape[-1]
        if units == 1:
            return np.full(self.samples, _of_means(table, statistic))
        if statistic is None:
            return self._distribution(units, lambda drawn, axis: table[drawn].mean(axis), random)
        return self._distribution(units, lambda drawn: statistic(table[..., drawn].mean(-1)), random)

    def _distribution(self, count: int, of_drawn: Callable, random: np.random.Generator) -> np.ndarray:
        from scipy.stats import bootstrap  # takes half a second to import

        result = bootstrap(
            (np.arange(count),),
            of_drawn,
            n_resamples=self.samples,
            batch=max(_DRAWN_AT_ONCE // count, 1),
            method="percentile",
            rng=random,
        )
        return result.bootstrap_distribution

    def _interval(self, mean: float, values: np.ndarray) -> Estimate:
        low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return Estimate(mean, float(low), float(high))


def rank_correlation(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    """Spearman's, equal values sharing their rank; 0 where one side does not vary."""
    from scipy.stats import spearmanr

    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(spearmanr(x, y).statistic)


def _of_means(table: np.ndarray, statistic: Statistic | None) -> float:
    means = np.asarray(table.mean(axis=-1))
    return float(means) if statistic is None else float(statistic(means))
