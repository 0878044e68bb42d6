"""The paper's claims, each as tests with intervals, and the verdict by a rule that is fixed before the run.

Every test is a number that the claim says is above (or below) 0, with its 95% interval over concepts and images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ....utils.statistics import Bootstrap, Estimate, Statistic, rank_correlation
from .measurements import WORD, Condition, Measurements, image_at_text, steps_to_reach

CONFIRMED, NOT_CONFIRMED = "confirmed", "not confirmed"
UNDECIDED, UNTESTED = "not decided by these data", "not tested by this plan"
RULE = (
    "A test is confirmed if its whole 95% interval lies on the side of 0 that the claim says, not confirmed if it lies "
    "on the other side, and not decided by these data if it contains 0 or there is none, as with a single concept. A "
    "claim is confirmed if all its tests are, not confirmed if any of them is not, and else not decided; a test for "
    "which the plan has no images leaves it undecided."
)

NETI, XTI, TI = "neti", "xti", "textual_inversion"
BASELINES = {XTI: "XTI", TI: "Textual Inversion"}
SMALL = ("compact", "narrow", "few_frequencies")  # the methods of a plan that save numbers
IMAGE_ROW, TEXT_ROW = 0, 1  # of the tables


@dataclass(frozen=True)
class Finding:
    """What is measured; its estimate, None if the plan has no images for it; whether the claim says that it is above 0
    (or else below)."""

    what: str
    estimate: Estimate | None
    above: bool = True
    digits: int = 3

    @property
    def verdict(self) -> str:
        if self.estimate is None:
            return UNTESTED
        low, high = self.estimate.low, self.estimate.high
        if low is None or high is None or low <= 0 <= high:
            return UNDECIDED
        return CONFIRMED if (low > 0) == self.above else NOT_CONFIRMED


@dataclass(frozen=True)
class Claim:
    """letter: as in the table of claims; says: the claim; how: what its tests measure."""

    letter: str
    says: str
    how: str
    tests: Sequence[Finding]

    @property
    def verdict(self) -> str:
        verdicts = {test.verdict for test in self.tests}
        if NOT_CONFIRMED in verdicts:
            return NOT_CONFIRMED
        return verdicts.pop() if len(verdicts) == 1 else UNDECIDED


class Claims:
    """The six claims on one set of measurements."""

    def __init__(self, measured: Measurements, bootstrap: Bootstrap) -> None:
        self.measured, self.bootstrap = measured, bootstrap

    def all(self) -> list[Claim]:
        """In the order of their letters, those included that this plan does not test."""
        return [
            self.fewer_steps(),
            self.bypass_helps(),
            self.truncation_orders(),
            self.curve_dominates(),
            self.base_reconstructs(),
            self.size_costs(),
        ]

    def fewer_steps(self) -> Claim:
        """(a), on the curves over training steps."""
        tests = []
        own = self.measured.steps(NETI)
        for baseline, title in BASELINES.items():
            others = self.measured.steps(baseline)

            def saved(means: np.ndarray, others: list[int] = others) -> float:
                curve, other = means[: len(own), IMAGE_ROW], means[len(own) :, IMAGE_ROW]
                level = min(curve.max(), other.max())
                return steps_to_reach(level, others, other) - steps_to_reach(level, own, curve)

            curves = [Condition(NETI, step) for step in own] + [Condition(baseline, step) for step in others]
            estimate = self._estimate(curves, saved) if own and others else None
            tests.append(Finding(f"steps of {title} minus steps of NeTI", estimate, digits=0))
        return Claim(
            "a",
            "NeTI reaches a given image similarity in fewer steps than XTI and Textual Inversion",
            "For each concept the highest image similarity that both methods reach, and how many steps each needs to "
            "reach it, by straight lines between the checkpoints. Each trains at its own tuned learning rate.",
            tests,
        )

    def bypass_helps(self) -> Claim:
        """(b), at the chosen budgets."""
        estimate = self._image_difference(Condition(NETI), Condition("no_bypass"))
        return Claim(
            "b",
            "The textual bypass raises image similarity",
            "Paired differences, each method at its own tuned learning rate and step budget.",
            [Finding("image similarity of NeTI minus that of NeTI without bypass", estimate)],
        )

    def truncation_orders(self) -> Claim:
        """(c), over the truncations of NeTI with and without nested dropout."""
        slider, other = self.measured.slider(NETI), self.measured.slider("no_nested_dropout")
        order = range(len(slider))

        def correlation(row: int) -> Estimate | None:
            truncated = len(slider) > 1
            return self._estimate(slider, lambda means: rank_correlation(order, means[:, row])) if truncated else None

        def extra_loss(means: np.ndarray) -> float:
            own, without = means[: len(slider), IMAGE_ROW], means[len(slider) :, IMAGE_ROW]
            return float((without[-1] - without[:-1].mean()) - (own[-1] - own[:-1].mean()))

        both = len(slider) > 1 and len(other) == len(slider)
        lost = self._estimate([*slider, *other], extra_loss) if both else None
        return Claim(
            "c",
            "Truncation orders image and text similarity; without nested dropout it destroys the concept",
            "Spearman's rank correlation per concept over the truncations and all units: +1 if every further unit "
            "raises the similarity, -1 if every one lowers it. The loss is the mean over the truncations.",
            [
                Finding("rank correlation of units kept and image similarity", correlation(IMAGE_ROW), digits=2),
                Finding("rank correlation of units kept and text similarity", correlation(TEXT_ROW), False, digits=2),
                Finding("image similarity lost by truncation without nested dropout, minus that lost with it", lost),
            ],
        )

    def curve_dominates(self) -> Claim:
        """(d), between NeTI's truncations and the baselines' single points."""
        tests = []
        slider = self.measured.slider(NETI)

        def gain(means: np.ndarray) -> float:
            curve, point, word = means[:-2], means[-2], means[-1]
            return image_at_text(point[TEXT_ROW], curve, word[IMAGE_ROW]) - float(point[IMAGE_ROW])

        for baseline, title in BASELINES.items():
            estimate = self._estimate([*slider, Condition(baseline), WORD], gain) if len(slider) > 1 else None
            tests.append(Finding(f"image similarity of NeTI minus that of {title}, at its text similarity", estimate))
        return Claim(
            "d",
            "NeTI's curve dominates Textual Inversion and XTI at equal text similarity",
            "NeTI's image similarity where its curve over the truncations crosses the baseline's text similarity, by "
            "straight lines. Where a baseline is truer to the text than every truncation, NeTI gets the image "
            "similarity of the super-category word alone.",
            tests,
        )

    def base_reconstructs(self) -> Claim:
        """(e), with the bypass switched off while drawing."""
        base, full = Condition(NETI, bypass=False), Condition(NETI)
        return Claim(
            "e",
            "v_base alone reconstructs the concept in part; the bypass adds the rest",
            "The same trained concepts, drawn with and without their bypass.",
            [
                Finding(
                    "image similarity of v_base alone minus that of the super-category word",
                    self._image_difference(base, WORD),
                ),
                Finding("image similarity of NeTI minus that of v_base alone", self._image_difference(full, base)),
            ],
        )

    def size_costs(self) -> Claim:
        """(f), for every smaller mapper."""
        return Claim(
            "f",
            "A smaller concept costs image similarity",
            "Paired differences, each method at its own tuned learning rate and step budget; the sizes stand in the "
            "table of methods.",
            [
                Finding(
                    f"image similarity of NeTI minus that of {small}",
                    self._image_difference(Condition(NETI), Condition(small)),
                )
                for small in SMALL
            ],
        )

    def _image_difference(self, first: Condition, second: Condition) -> Estimate | None:
        return image_difference(self.measured, first, second, self.bootstrap)

    def _estimate(self, conditions: Sequence[Condition], statistic: Statistic) -> Estimate | None:
        """The statistic's mean over concepts with its interval; None unless all the conditions were measured."""
        if not self.measured.has(*conditions):
            return None
        return self.bootstrap.over_groups(self.measured.tables(conditions), statistic)


def image_difference(
    measured: Measurements, first: Condition, second: Condition, bootstrap: Bootstrap
) -> Estimate | None:
    """How much more image similarity the first has, image by image; None unless both were measured."""
    if not measured.has(first, second):
        return None
    tables = measured.tables([first, second])
    return bootstrap.over_groups(tables, lambda means: means[0, IMAGE_ROW] - means[1, IMAGE_ROW])


def against(measured: Measurements, method: str, bootstrap: Bootstrap) -> tuple[Estimate, Estimate]:
    """Image and text similarity of a method minus NeTI's, at the chosen budgets."""
    tables = measured.tables([Condition(method), Condition(NETI)])
    image = bootstrap.over_groups(tables, lambda means: means[0, IMAGE_ROW] - means[1, IMAGE_ROW])
    text = bootstrap.over_groups(tables, lambda means: means[0, TEXT_ROW] - means[1, TEXT_ROW])
    return image, text


def reading(image: Estimate, text: Estimate) -> str:
    """What two differences from NeTI say together, by whether their intervals contain 0."""
    signs = {_sign(estimate) for estimate in (image, text)} - {0}
    if len(signs) > 1:
        return "trades one for the other"
    return {1: "better", -1: "worse"}[signs.pop()] if signs else "not decided"


def _sign(estimate: Estimate) -> int:
    if estimate.low is None or estimate.high is None or estimate.low <= 0 <= estimate.high:
        return 0
    return 1 if estimate.low > 0 else -1
