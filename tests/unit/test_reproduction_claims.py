"""Statistics, verdicts and the choice of settings, on measurements whose answers are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from neti.training.evaluation.scores import IMAGE, TEXT
from neti.training.studies.reproduction.claims import (
    CONFIRMED,
    REFUTED,
    UNDECIDED,
    UNTESTED,
    Claim,
    Claims,
    Finding,
    reading,
)
from neti.training.studies.reproduction.measurements import (
    WORD,
    Condition,
    Measurements,
    Scored,
    image_at_text,
    steps_to_reach,
)
from neti.training.studies.reproduction.plan import Choice
from neti.training.studies.reproduction.selection import Bounds, Candidate, choose, edges
from neti.utils.statistics import Bootstrap, Estimate

BOOTSTRAP = Bootstrap(samples=200, seed=0)
CONCEPTS, UNITS = 6, 10
Similarities = dict[Condition, tuple[float, float]]


def claims(similarities: Similarities, spread: float = 0.002, seed: int = 0) -> Claims:
    """On scores around the given (image, text) similarities: concepts differ a lot, paired differences by `spread`."""
    random = np.random.default_rng(seed)
    offsets = random.normal(0, 0.05, size=(CONCEPTS, 2, UNITS))
    scores: dict[Condition, dict[str, dict[int, Scored]]] = {}
    for condition, means in similarities.items():
        noise = offsets + random.normal(0, spread, size=offsets.shape)
        scores[condition] = {
            f"concept {k}": {0: {IMAGE: means[0] + noise[k, 0], TEXT: means[1] + noise[k, 1]}} for k in range(CONCEPTS)
        }
    return Claims(Measurements(scores), Bootstrap(samples=200, seed=0), IMAGE)


def curve(method: str, values: dict[int, float]) -> Similarities:
    return {Condition(method, step): (value, 0.2) for step, value in values.items()}


def slider(method: str, values: dict[int | None, tuple[float, float]]) -> Similarities:
    return {Condition(method, truncation=kept): pair for kept, pair in values.items()}


ORDERED: dict[int | None, tuple[float, float]] = {4: (0.5, 0.30), 16: (0.6, 0.27), 64: (0.7, 0.24), None: (0.8, 0.20)}
REVERSED: dict[int | None, tuple[float, float]] = {4: (0.8, 0.20), 16: (0.7, 0.24), 64: (0.6, 0.27), None: (0.5, 0.30)}
FLAT: dict[int | None, tuple[float, float]] = dict.fromkeys(ORDERED, (0.6, 0.25))


def verdicts(claim: Claim) -> list[str]:
    return [finding.verdict for finding in claim.tests]


def means(claim: Claim) -> list[float]:
    return [finding.estimate.mean for finding in claim.tests if finding.estimate is not None]


def test_one_concept_has_no_interval_and_decides_nothing() -> None:
    estimate = BOOTSTRAP.over_groups([np.ones((1, 5))], lambda means: means[0])
    assert estimate == Estimate(1.0)
    assert Finding("anything", estimate).verdict == UNDECIDED


def test_steps_to_reach() -> None:
    values = np.array([0.2, 0.6, 0.5, 1.0])
    assert steps_to_reach(0.4, [10, 20, 30, 40], values) == pytest.approx(15)
    assert steps_to_reach(0.8, [10, 20, 30, 40], values) == pytest.approx(36)
    assert steps_to_reach(0.1, [10, 20, 30, 40], values) == 10
    assert steps_to_reach(1.0, [10, 20, 30, 40], values) == 40


def test_image_at_text() -> None:
    points = np.array([[0.8, 0.20], [0.5, 0.30], [0.7, 0.24]])
    assert image_at_text(0.22, points, 0.1) == pytest.approx(0.75)
    assert image_at_text(0.27, points, 0.1) == pytest.approx(0.6)
    assert image_at_text(0.15, points, 0.1) == pytest.approx(0.8), "more text than asked for is no harm"
    assert image_at_text(0.31, points, 0.1) == 0.1, "nothing on the curve is as true to the text"


@pytest.mark.parametrize(
    ("low", "high", "above", "verdict"),
    [
        (0.1, 0.2, True, CONFIRMED),
        (0.1, 0.2, False, REFUTED),
        (-0.2, -0.1, True, REFUTED),
        (-0.2, -0.1, False, CONFIRMED),
        (-0.1, 0.2, True, UNDECIDED),
        (0.0, 0.2, True, UNDECIDED),
        (None, None, True, UNDECIDED),
    ],
)
def test_the_rule_of_a_test(low: float | None, high: float | None, above: bool, verdict: str) -> None:
    assert Finding("x", Estimate(0.15, low, high), above).verdict == verdict


def test_the_rule_of_a_claim() -> None:
    yes, no, open_ = (Finding("x", Estimate(0.0, *ends)) for ends in ((1, 2), (-2, -1), (-1, 1)))
    absent = Finding("x", None)
    assert [Claim("a", "", "", tests).verdict for tests in ([yes, yes], [yes, open_], [yes, open_, no])] == [
        CONFIRMED,
        UNDECIDED,
        REFUTED,
    ]
    assert [Claim("a", "", "", tests).verdict for tests in ([yes, absent], [no, absent], [absent, absent])] == [
        UNDECIDED,
        REFUTED,
        UNTESTED,
    ]


FAST, SLOW = {50: 0.6, 100: 0.8, 200: 0.9}, {50: 0.4, 100: 0.5, 200: 0.6, 400: 0.8}


def test_fewer_steps() -> None:
    """The level is 0.8, the highest that both reach: NeTI after 100 steps, the others after 400."""
    claim = claims(curve("neti", FAST) | curve("xti", SLOW) | curve("textual_inversion", SLOW), 1e-6).fewer_steps()
    assert verdicts(claim) == [CONFIRMED, CONFIRMED] and claim.verdict == CONFIRMED
    assert means(claim) == pytest.approx([300, 300], abs=0.1)


def test_more_steps() -> None:
    claim = claims(curve("neti", SLOW) | curve("xti", FAST) | curve("textual_inversion", SLOW), 0.01).fewer_steps()
    assert verdicts(claim) == [REFUTED, UNDECIDED] and claim.verdict == REFUTED


@pytest.mark.parametrize(("without", "verdict"), [(0.6, CONFIRMED), (0.8, REFUTED), (0.7, UNDECIDED)])
def test_bypass(without: float, verdict: str) -> None:
    similarities = {Condition("neti"): (0.7, 0.2), Condition("no_bypass"): (without, 0.25)}
    claim = claims(similarities).bypass_helps()
    assert claim.verdict == verdict
    assert means(claim)[0] == pytest.approx(0.7 - without, abs=0.01)


def test_truncation_orders_and_needs_nested_dropout() -> None:
    broken: dict[int | None, tuple[float, float]] = {4: (0.1, 0.1), 16: (0.1, 0.1), 64: (0.2, 0.1), None: (0.8, 0.2)}
    claim = claims(slider("neti", ORDERED) | slider("no_nested_dropout", broken)).truncation_orders()
    assert claim.verdict == CONFIRMED
    up, down, loss = means(claim)
    assert (up, down) == pytest.approx((1, -1))
    assert loss == pytest.approx((0.8 - 0.4 / 3) - (0.8 - 0.6), abs=0.01)


def test_reversed_and_flat_truncations() -> None:
    claim = claims(slider("neti", REVERSED) | slider("no_nested_dropout", REVERSED)).truncation_orders()
    assert verdicts(claim) == [REFUTED, REFUTED, UNDECIDED]
    assert verdicts(claims(slider("neti", FLAT)).truncation_orders()) == [UNDECIDED, UNDECIDED, UNTESTED]


@pytest.mark.parametrize(
    ("point", "verdict", "above"),
    [
        ((0.5, 0.22), CONFIRMED, -0.25),  # under the curve, which has 0.75 there
        ((0.85, 0.22), REFUTED, 0.10),
        ((0.75, 0.22), UNDECIDED, 0.0),
        ((0.6, 0.40), REFUTED, 0.6 - 0.3),  # truer to the text than every truncation
    ],
)
def test_a_curve_against_points(point: tuple[float, float], verdict: str, above: float) -> None:
    similarities = slider("neti", ORDERED) | {Condition("xti"): point, WORD: (0.3, 0.35)}
    claim = claims(similarities).curve_dominates()
    assert verdicts(claim) == [verdict, UNTESTED], "Textual Inversion was not measured"
    assert means(claim)[0] == pytest.approx(above, abs=0.01)


def test_what_v_base_alone_reconstructs() -> None:
    similarities = {Condition("neti"): (0.8, 0.2), Condition("neti", bypass=False): (0.6, 0.2), WORD: (0.5, 0.3)}
    claim = claims(similarities).base_reconstructs()
    assert claim.verdict == CONFIRMED
    assert means(claim) == pytest.approx([0.1, 0.2], abs=0.01)


def test_size() -> None:
    similarities = {Condition("neti"): (0.8, 0.2), Condition("compact"): (0.7, 0.2), Condition("narrow"): (0.8, 0.2)}
    assert verdicts(claims(similarities).size_costs()) == [CONFIRMED, UNDECIDED], "the sizes that there are"


def test_places() -> None:
    similarities = {Condition("neti"): (0.8, 0.2), Condition("many_places"): (0.8, 0.3), WORD: (0.3, 0.4)}
    claim = claims(similarities).places_matter()
    assert claim.verdict == CONFIRMED and means(claim) == pytest.approx([-0.2, -0.1], abs=0.01)


@pytest.mark.parametrize(("point", "verdict"), [((0.75, 0.24), CONFIRMED), ((0.65, 0.24), REFUTED)])
def test_a_choice_that_lies_above_truncation(point: tuple[float, float], verdict: str) -> None:
    similarities = slider("neti", ORDERED) | {Condition("neti_key_lock"): point, WORD: (0.3, 0.35)}
    claim = claims(similarities).lies_above("h", "neti_key_lock", "Locked keys")
    assert verdicts(claim) == [CONFIRMED, verdict]
    assert means(claim) == pytest.approx([0.04, point[0] - 0.7], abs=0.01)


def test_perfusion() -> None:
    betas = {Condition(f"perfusion_beta{b}"): (0.8 - b / 200, 0.1 + b / 200) for b in (5, 50, 70, 100)}
    found = claims({**betas, Condition("perfusion"): (0.6, 0.3), Condition("perfusion_trained_keys"): (0.6, 0.35)})
    assert list(found.beta_trades().shows) == [f"perfusion_beta{b}" for b in (5, 50, 70, 100)], "by number"
    assert found.beta_trades().verdict == CONFIRMED and means(found.beta_trades()) == pytest.approx([-1, 1])
    assert found.lock_keeps_the_prompt().verdict == REFUTED


def test_concepts_and_seeds_that_are_not_finished_are_left_out() -> None:
    def of(value: float) -> Scored:
        return {IMAGE: np.full(3, value), TEXT: np.full(3, value)}

    neti = {"a": {0: of(0.5), 1: of(0.7)}, "b": {0: of(0.6)}, "c": {0: of(0.9)}}
    other = {"a": {0: of(0.4), 1: of(0.4)}, "b": {0: of(0.4)}, "c": {1: of(0.4)}}
    measured = Measurements({Condition("neti"): neti, Condition("no_bypass"): other})
    assert measured.concepts(Condition("neti"), Condition("no_bypass")) == ["a", "b"]
    assert [table.shape for table in measured.tables([Condition("neti")], [IMAGE])] == [(1, 1, 6), (1, 1, 3), (1, 1, 3)]
    assert means(Claims(measured, BOOTSTRAP, IMAGE).bypass_helps()) == pytest.approx([0.2])


def test_what_was_not_measured_is_not_tested() -> None:
    everything = claims({Condition("neti"): (0.8, 0.2)}).all
    assert [claim.letter for claim in everything] == list("abcdefghijk")
    assert {claim.verdict for claim in everything} == {UNTESTED}


@pytest.mark.parametrize(
    ("image", "text", "expected"),
    [(1, 0, "better"), (1, 1, "better"), (-1, 0, "worse"), (1, -1, "trades one for the other"), (0, 0, UNDECIDED)],
)
def test_reading_two_differences(image: int, text: int, expected: str) -> None:
    ends: Callable[[int], Estimate] = lambda sign: Estimate(sign, sign - 0.5, sign + 0.5)  # noqa: E731
    assert reading(ends(image), ends(text)) == expected


BOUNDS = Bounds(word_image=0.5, word_text=0.3, photos_image=0.9, photos_text=0.1)


def test_scores_lie_between_the_bounds() -> None:
    assert BOUNDS.relative(0.7, 0.15) == pytest.approx((0.5, 0.25))
    assert BOUNDS.score(0.7, 0.15) == pytest.approx(2 / (1 / 0.5 + 1 / 0.25))
    assert BOUNDS.score(0.9, 0.3) == pytest.approx(1)
    assert BOUNDS.score(0.9, 0.1) == 0, "the photos themselves: no editing"
    assert BOUNDS.score(0.4, 0.3) == pytest.approx(-0.25), "worse than the word alone"


def test_bounds_that_span_no_scale_are_left_out() -> None:
    blind = Bounds(word_image=0.5, word_text=0.1, photos_image=0.9, photos_text=0.1)
    assert blind.score(0.7, 0.9) == pytest.approx(0.5)
    assert Bounds(0.9, 0.1, 0.5, 0.3).score(0.7, 0.2) == 0


def test_the_best_pair_is_chosen_for_each_method() -> None:
    tried = [
        Candidate("neti", 1e-3, 100, 0.7, 0.2, 0.5),
        Candidate("neti", 1e-3, 200, 0.7, 0.2, 0.6),
        Candidate("neti", 4e-3, 100, 0.7, 0.2, 0.6),
        Candidate("neti", 4e-3, 200),
        Candidate("xti", 1e-2, 100),
        Candidate("textual_inversion", 1e-3, 100, 0.7, 0.2, -0.5),
    ]
    chosen = choose(tried)
    assert chosen == {"neti": Choice(4e-3, 100), "textual_inversion": Choice(1e-3, 100)}, "of equals, fewer steps"
    assert edges(tried, "neti", chosen["neti"]) == ["highest rate"]
    assert edges(tried, "neti", Choice(1e-3, 200)) == ["lowest rate", "most steps"]
    assert edges(tried, "xti", Choice(1e-2, 100)) == []
