"""Intervals as wide as theory says, paired and on two levels; Spearman on cases worked out by hand; hashes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from neti.utils.hashing import file_hash, folder_hash, json_hash, pixels_hash, weights_hash
from neti.utils.statistics import Bootstrap, Estimate, rank_correlation

XY = "sha256:769a4e6d0003189c7e96c5d9b7e810a0d11c3a12832527ec94b0f86d277f51ca"  # of the two bytes "xy"


def reach(estimate: Estimate) -> float:
    """Half the width of the interval."""
    assert estimate.low is not None and estimate.high is not None
    return (estimate.high - estimate.low) / 2


def test_an_interval_is_that_of_the_mean() -> None:
    scores = np.random.default_rng(0).normal(0.7, 0.05, size=200)
    estimate = Bootstrap(samples=4000).estimate(scores)
    expected = 1.96 * scores.std() / np.sqrt(200)
    assert estimate.mean == pytest.approx(scores.mean())
    assert estimate.low == pytest.approx(scores.mean() - expected, abs=0.1 * expected)
    assert estimate.high == pytest.approx(scores.mean() + expected, abs=0.1 * expected)
    assert Bootstrap(samples=4000).estimate(scores) == estimate
    assert Bootstrap(samples=4000, seed=1).estimate(scores) != estimate


def test_one_score_has_no_interval_and_equal_ones_have_an_empty_one() -> None:
    assert Bootstrap().estimate([0.5]) == Estimate(0.5)
    assert Bootstrap().estimate([0.5] * 9) == Estimate(0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="no scores"):
        Bootstrap().estimate([])


def test_a_statistic_sees_the_same_units_of_all_rows() -> None:
    assert Bootstrap().estimate(np.array([[1.0, 2.0], [2.0, 4.0]]), lambda m: m[0] / m[1]) == Estimate(0.5, 0.5, 0.5)


def test_over_groups_each_counts_the_same_and_their_differences_widen_the_interval() -> None:
    random = np.random.default_rng(0)
    groups = [random.normal(mean, 0.01, size) for mean, size in ((0.6, 10), (0.7, 1000), (0.8, 10))]
    estimate = Bootstrap().over_groups(groups)
    assert estimate.mean == pytest.approx(np.mean([group.mean() for group in groups]))
    assert estimate.low is not None and estimate.high is not None
    assert 0.58 < estimate.low < 0.65 and 0.75 < estimate.high < 0.82  # in 1 of 27 resamples one group stands alone
    assert 0 < reach(Bootstrap().over_groups([groups[0]] * 3)) < 0.01, "the units' own spread is resampled too"
    assert reach(Bootstrap().over_groups([np.array([0.6]), np.array([0.8])])) == pytest.approx(0.1)


def test_an_interval_over_groups_is_paired_and_has_the_right_width() -> None:
    """The mean of n groups with standard deviation s has the interval +- 1.96 s / sqrt(n)."""
    random = np.random.default_rng(1)
    differences = random.normal(0.3, 0.1, size=40)
    common = random.normal(0, 10, size=(40, 1, 500))  # what both rows share cancels, however large
    tables = [np.array([[d], [0.0]]) + c for d, c in zip(differences, common, strict=True)]
    estimate = Bootstrap(samples=2000).over_groups(tables, lambda means: means[0] - means[1])
    assert estimate.mean == pytest.approx(differences.mean())
    assert reach(estimate) == pytest.approx(1.96 * differences.std() / np.sqrt(40), rel=0.1)


def test_units_are_resampled_within_a_group() -> None:
    tables = [np.random.default_rng(2).normal(0, 1, size=(1, 100))] * 2  # equal groups: all spread is of the units
    estimate = Bootstrap(samples=2000).over_groups(tables, lambda means: means[0])
    assert reach(estimate) == pytest.approx(1.96 * tables[0].std() / np.sqrt(100) / np.sqrt(2), rel=0.1)
    assert Bootstrap().over_groups([np.ones((1, 5))], lambda means: means[0]) == Estimate(1.0)


def test_estimates_are_shown_in_any_form() -> None:
    assert Estimate(0.5).shown() == "0.500"
    assert Estimate(0.5, 0.25, 0.75).shown("{:.1f}%", "{:+.2f}") == "0.5% [+0.25, +0.75]"


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 99], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, -7], -1.0),
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], 0.8),  # 1 - 6 * 4 / (5 * 24)
        ([1, 2, 3, 4], [1, 2, 2, 3], 3 / np.sqrt(10)),  # ranks 0, 1.5, 1.5, 3
        ([1, 2, 3], [5, 5, 5], 0.0),
    ],
)
def test_rank_correlation(x: list[float], y: list[float], expected: float) -> None:
    assert rank_correlation(x, y) == pytest.approx(expected)


def test_hashes_follow_contents_and_keep_their_values(tmp_path: Path) -> None:
    """Recipes inside images, result names and protocols hold such hashes: they must not change."""
    for folder, text in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / folder / "inner").mkdir(parents=True)
        (tmp_path / folder / "inner" / "file").write_text(text)
    a, b, c = (tmp_path / name for name in "abc")
    assert folder_hash(a) == folder_hash(b) != folder_hash(c)
    assert file_hash(a / "inner" / "file").startswith("sha256:2d711642b726b04401627ca9fbac32f5")
    assert file_hash(a / "inner" / "file", c / "inner" / "file") == XY
    assert json_hash({"b": 1, "a": [2]}) == json_hash({"a": [2], "b": 1}) == "41ff4104bc48"
    assert pixels_hash([Image.new("RGB", (2, 1))]) != pixels_hash([Image.new("RGB", (1, 2))])
    assert weights_hash({"w": torch.ones(2).half()}) == weights_hash({"w": torch.ones(2)})
    assert weights_hash({"w": torch.ones(2)}) != weights_hash({"v": torch.ones(2)})
