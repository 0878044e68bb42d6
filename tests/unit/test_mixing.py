"""Measuring mixing: rank correlation by hand, detectors, renders of two things, the pages' measured parts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from neti.training.miniature.world.objects import find_font
from neti.training.miniature.world.world import World
from neti.training.studies.mixing.config import MixingConfig
from neti.training.studies.mixing.measurements import both_found
from neti.training.studies.mixing.page import seed_correlations, several_section, style_section
from neti.training.studies.mixing.pair_scenes import concept_look, random_renders, render_looks
from neti.training.studies.mixing.presence import Detectors
from neti.utils.config.parsing import parse_config
from neti.utils.errors import UserError


def test_detectors_find_what_is_there() -> None:
    random = np.random.default_rng(0)
    shown = [frozenset(name for name in "ab" if random.random() < 0.5) for _ in range(300)]
    signal = np.array([[name in one for name in "ab"] for one in shown], float)
    features = np.concatenate([signal + 0.2 * random.normal(size=signal.shape), random.normal(size=(300, 4))], axis=1)
    detectors = Detectors.learn("ab", features[:200], shown[:200])
    found = detectors.found(features[200:])
    assert np.mean([one == set(truth) for one, truth in zip(found, shown[200:], strict=True)]) > 0.95


def test_thresholds_come_from_scores_that_leave_the_render_out() -> None:
    """With more features than renders any labels can be fitted; the thresholds must not believe it."""
    random = np.random.default_rng(0)
    features = random.normal(size=(60, 100))
    shown = [frozenset("a") if random.random() < 0.5 else frozenset() for _ in range(60)]
    detectors = Detectors.learn("a", features, shown)
    scores = np.concatenate([features, np.ones((60, 1))], axis=1) @ detectors.weights[:, 0]
    by_hand = []
    for k in range(60):
        rest = [n for n in range(60) if n != k]
        again = Detectors.learn("a", features[rest], [shown[n] for n in rest])
        by_hand.append(float(np.append(features[k], 1) @ again.weights[:, 0]))
    truth = np.array(["a" in one for one in shown])

    def gain(cut: float) -> float:
        return float(np.mean(np.array(by_hand)[truth] > cut) + np.mean(np.array(by_hand)[~truth] <= cut))

    order = sorted(by_hand)
    best = max(gain((low + high) / 2) for low, high in pairwise(order))
    assert gain(float(detectors.thresholds[0])) == pytest.approx(best)
    assert np.mean((scores > 0) == truth) == 1.0, "while the fit itself tells nothing"


@pytest.fixture(scope="module")
def world() -> World:
    try:
        return World.create("cpu", str(find_font()))
    except UserError:
        pytest.skip("the font Noto Color Emoji is not installed")


def test_renders_say_what_they_show(world: World) -> None:
    looks = [concept_look("tiger"), concept_look("taxi")]
    both = render_looks(world, looks, 64, np.random.default_rng(0))
    assert (both.concepts, both.categories) == ({"tiger", "taxi"}, {"cat", "car"})
    assert both.image.size == (64, 64)
    again = render_looks(world, looks, 64, np.random.default_rng(0))
    assert again.image.tobytes() == both.image.tobytes()
    renders = random_renders(world, ["tiger", "taxi"], ["dog", "bird"], 64, 30, seed=1)
    assert {len(one.categories) for one in renders} == {1, 2}
    assert any(one.concepts for one in renders) and any(not one.concepts for one in renders)
    with pytest.raises(ValueError, match="3 things"):
        render_looks(world, [*looks, looks[0]], 64, np.random.default_rng(0))


KINDS = {"tiger": "cat", "taxi": "car"}
FOUND = {
    "tiger + taxi": [
        {"concepts": ["taxi", "tiger"], "categories": ["car", "cat"]},
        {"concepts": ["taxi"], "categories": ["car", "cat", "dog"]},
        {"concepts": ["taxi", "wolf"], "categories": ["car", "dog"]},
    ]
}


def test_both_are_found_only_together() -> None:
    both = both_found(FOUND, KINDS)
    assert both["concepts"][0].tolist() == [1, 0, 0]
    assert both["categories"][0].tolist() == [1, 1, 0]


def test_the_pages_hold_the_numbers() -> None:
    config = parse_config(MixingConfig, ["--mixing_start", "[900, 100]", "--style_seeds", "0-1"])
    rising = {"geometry": [0.1, 0.2], "appearance": [0.9, 0.8]}
    falling = {"geometry": [0.7, 0.6], "appearance": [0.3, 0.2]}
    own = {"geometry": {"geometry": [1.0, 1.0], "appearance": [0.0, 0.0]}, "appearance": rising}
    measured = {pair: {"own": own, "mixed": [rising, falling]} for pair in ("a + b", "c + d")}
    assert seed_correlations(measured["a + b"]["mixed"], config.mixing_start, "geometry") == pytest.approx([-1, -1])
    page = style_section(measured, config, "SETTINGS")
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[1:5]] == [
        "| geometry concept alone",
        "| 100",
        "| 900",
        "| appearance concept alone",
    ]
    assert "| 100 | 0.650 [0.600, 0.700] | 0.250 [0.200, 0.300] |" in rows
    assert "| a + b | -1.00 | +1.00 |" in rows and "**-1.00 [-1.00, -1.00]**" in page and "SETTINGS" in page

    page = several_section({"ways": {"concepts": FOUND}, "checks": {"both": FOUND}}, KINDS, config, "SETTINGS")
    assert "| concepts | 3 | 67% [0%, 100%] | 33% [0%, 100%] |" in page
    assert "| real renders of both | 3 | 67%" in page and "SETTINGS" in page


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--style_pairs", '["tiger"]'], "style_pairs: 'tiger' must read \"concept + concept\""),
        (["--style_pairs", "[]", "--both_pairs", "[]"], "nothing to measure"),
        (["--mixing_start", "500"], "mixing_start needs two"),
        (["--both_prompt", "a {first}"], "must name {first} and {second}"),
        (["--style_prompt", "a cat"], "has no {}"),
        (["--help_seeds", "9"], "there are 8 both_seeds"),
        (["--style_pairs", '["tiger + lion"]'], "there is no lion"),
        (["--both_pairs", '["teacup + teapot"]'], "are of one kind"),
        (["--categories", "cats"], "categories = ['cats']"),
    ],
)
def test_settings_that_measure_nothing_are_told(argv: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_config(MixingConfig, argv)
    assert message in str(caught.value) and len(str(caught.value).splitlines()) == 1
