"""The papers' claims, each as tests with intervals, and the verdict by a rule that is fixed before the run.

Every test is a number that the claim says is above (or below) 0, with its 95% interval over concepts and images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ....utils.statistics import Bootstrap, Estimate, Statistic, rank_correlation
from ...evaluation.scores import TEXT
from .measurements import WORD, Condition, Measurements, image_at_text, steps_to_reach
from .plan import NETI

CONFIRMED, REFUTED = "confirmed", "refuted"
UNDECIDED, UNTESTED = "undecided", "not tested"
RULE = (
    "A test is confirmed if its whole 95% interval lies on the side of 0 that the claim says, refuted if it lies on "
    "the other side, and undecided if it contains 0 or there is none, as with a single concept. A claim is confirmed "
    "if all its tests are, refuted if one is, and else undecided; a test without images leaves it undecided."
)

XTI, TI = "xti", "textual_inversion"
BASELINES = {XTI: "XTI", TI: "Textual Inversion"}
SMALL = ("compact", "narrow", "few_frequencies")  # the methods of a plan that save numbers
PERFUSION = "perfusion"
LIKENESS_ROW, TEXT_ROW = 0, 1  # of the tables


@dataclass(frozen=True)
class Finding:
    """What is measured; its estimate, None if there are no images for it; whether the claim says that it is above 0 (or
    else below)."""

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
        return CONFIRMED if (low > 0) == self.above else REFUTED


@dataclass(frozen=True)
class Claim:
    """letter: as in the table of claims; says: the claim; how: what its tests measure; shows: label -> the images that
    a reader should see."""

    letter: str
    says: str
    how: str
    tests: Sequence[Finding]
    shows: Mapping[str, Condition] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        verdicts = {test.verdict for test in self.tests}
        if REFUTED in verdicts:
            return REFUTED
        return verdicts.pop() if len(verdicts) == 1 else UNDECIDED


class Claims:
    """The claims on one set of measurements. likeness: the metric that says how like the concept an image is."""

    def __init__(self, measured: Measurements, bootstrap: Bootstrap, likeness: str) -> None:
        self.measured, self.bootstrap, self.likeness = measured, bootstrap, likeness

    @cached_property
    def all(self) -> list[Claim]:
        """In the order of their letters, those included that there are no images for; bootstrapped once."""
        return [
            self.fewer_steps(),
            self.bypass_helps(),
            self.truncation_orders(),
            self.curve_dominates(),
            self.base_reconstructs(),
            self.size_costs(),
            self.places_matter(),
            self.lies_above("h", "neti_key_lock", "Keys locked to the super category's word"),
            self.lies_above("i", "frozen_ground", "The frozen model's own ground as target outside masks"),
            self.beta_trades(),
            self.lock_keeps_the_prompt(),
        ]

    def fewer_steps(self) -> Claim:
        """(a), on the curves over training steps."""
        tests = []
        own = self.measured.steps(NETI)
        for baseline, title in BASELINES.items():
            others = self.measured.steps(baseline)

            def saved(means: np.ndarray, others: list[int] = others) -> float:
                curve, other = means[: len(own), LIKENESS_ROW], means[len(own) :, LIKENESS_ROW]
                level = min(curve.max(), other.max())
                return steps_to_reach(level, others, other) - steps_to_reach(level, own, curve)

            curves = [Condition(NETI, step) for step in own] + [Condition(baseline, step) for step in others]
            estimate = self._estimate(curves, saved) if own and others else None
            tests.append(Finding(f"steps of {title} minus steps of NeTI", estimate, digits=0))
        return Claim(
            "a",
            "NeTI reaches a given likeness in fewer steps than XTI and Textual Inversion",
            "For each concept the highest likeness that both methods reach, and how many steps each needs to reach it, "
            "by straight lines between the checkpoints. Each trains at its own learning rate.",
            tests,
            {f"{m}, {step} steps": Condition(m, step) for m in (NETI, *BASELINES) for step in (*own[:1], *own[-1:])},
        )

    def bypass_helps(self) -> Claim:
        """(b), at the chosen budgets."""
        other = Condition("no_bypass")
        return Claim(
            "b",
            "The textual bypass raises likeness",
            "Paired differences, each method at its own learning rate.",
            [Finding("likeness of NeTI minus that of NeTI without bypass", self.difference(Condition(NETI), other))],
            {"NeTI": Condition(NETI), "without bypass": other},
        )

    def truncation_orders(self) -> Claim:
        """(c), over the truncations of NeTI with and without nested dropout."""
        slider, other = self.measured.slider(NETI), self.measured.slider("no_nested_dropout")

        def extra_loss(means: np.ndarray) -> float:
            own, without = means[: len(slider), LIKENESS_ROW], means[len(slider) :, LIKENESS_ROW]
            return float((without[-1] - without[:-1].mean()) - (own[-1] - own[:-1].mean()))

        both = len(slider) > 1 and len(other) == len(slider)
        lost = self._estimate([*slider, *other], extra_loss) if both else None
        shown = {f"{_units(c)} units": c for c in reversed(slider)}
        return Claim(
            "c",
            "Truncation trades likeness for text similarity; without nested dropout it costs more likeness",
            "Spearman's rank correlation per concept over the truncations and all units: +1 if every further unit "
            "raises the similarity, -1 if every one lowers it. The loss is the mean over the truncations.",
            [
                Finding("rank correlation of units kept and likeness", self._order(slider, LIKENESS_ROW), digits=2),
                Finding("rank correlation of units kept and text similarity", self._order(slider, TEXT_ROW), False, 2),
                Finding("likeness lost by truncation without nested dropout, minus that lost with it", lost),
            ],
            shown | {f"no nested dropout, {_units(c)}": c for c in reversed(other)},
        )

    def curve_dominates(self) -> Claim:
        """(d), between NeTI's truncations and the baselines' single points."""
        return Claim(
            "d",
            "NeTI's curve dominates Textual Inversion and XTI at equal text similarity",
            "The baseline's likeness minus that of NeTI where its curve over the truncations crosses the baseline's "
            "text similarity, by straight lines. Where a baseline is truer to the text than every truncation, NeTI "
            "gets the likeness of the super-category word alone.",
            [
                Finding(f"likeness of {title} above NeTI's curve", self.above_curve(Condition(baseline)), False)
                for baseline, title in BASELINES.items()
            ],
            {title: Condition(m) for m, title in {NETI: "NeTI", **BASELINES}.items()} | {"the word alone": WORD},
        )

    def base_reconstructs(self) -> Claim:
        """(e), with the bypass switched off while drawing."""
        base, full = Condition(NETI, bypass=False), Condition(NETI)
        return Claim(
            "e",
            "v_base alone is a part of the concept; the bypass adds the rest",
            "The same trained concepts, drawn with and without their bypass.",
            [
                Finding("likeness of v_base alone minus that of the super-category word", self.difference(base, WORD)),
                Finding("likeness of NeTI minus that of v_base alone", self.difference(full, base)),
            ],
            {"NeTI": full, "v_base alone": base, "the word alone": WORD},
        )

    def size_costs(self) -> Claim:
        """(f), for every smaller mapper of the plan."""
        small = [name for name in SMALL if self.measured.has(Condition(name))] or SMALL[:1]
        return Claim(
            "f",
            "A smaller concept costs likeness",
            "Paired differences, each method at its own learning rate; the sizes stand in the table of methods.",
            [
                Finding(f"likeness of NeTI minus that of {name}", self.difference(Condition(NETI), Condition(name)))
                for name in small
            ],
            {"NeTI": Condition(NETI), **{name: Condition(name) for name in small}},
        )

    def places_matter(self) -> Claim:
        """(g): why the trade shows with some photos, and not with others."""
        one, many = Condition(NETI), Condition("many_places")
        return Claim(
            "g",
            "Photos that share a place make a concept forget its prompt; photos of many places do not",
            "Text similarity. The same concepts and settings, five photos either way.",
            [
                Finding("text similarity of NeTI minus that of the word", self.difference(one, WORD, TEXT_ROW), False),
                Finding(
                    "text similarity of NeTI minus that of NeTI from photos of many places",
                    self.difference(one, many, TEXT_ROW),
                    False,
                ),
            ],
            {"NeTI, one place": one, "NeTI, many places": many, "the word alone": WORD},
        )

    def lies_above(self, letter: str, method: str, title: str) -> Claim:
        """(h) and (i): a choice that lies above what NeTI's truncations offer."""
        own = Condition(method)
        return Claim(
            letter,
            f"{title} give{'' if letter == 'h' else 's'} text similarity back, above what truncation offers",
            "Against NeTI with all units; and its likeness minus that of NeTI's curve over the truncations at the same "
            "text similarity, as in (d).",
            [
                Finding(
                    f"text similarity of {method} minus that of NeTI",
                    self.difference(own, Condition(NETI), TEXT_ROW),
                ),
                Finding(f"likeness of {method} above NeTI's curve", self.above_curve(own)),
            ],
            {"NeTI": Condition(NETI), method: own},
        )

    def beta_trades(self) -> Claim:
        """(j), over the entries of `drawn` that are called perfusion_beta<number>, and Perfusion as it is."""
        betas = self.measured.numbered(f"{PERFUSION}_beta")
        return Claim(
            "j",
            "Perfusion's beta trades likeness for text similarity, without training again",
            "Spearman's rank correlation per concept over the betas: +1 if every higher beta raises the similarity.",
            [
                Finding("rank correlation of beta and likeness", self._order(betas, LIKENESS_ROW), False, 2),
                Finding("rank correlation of beta and text similarity", self._order(betas, TEXT_ROW), True, 2),
            ],
            {c.method: c for c in betas},
        )

    def lock_keeps_the_prompt(self) -> Claim:
        """(k), against Perfusion with trained keys."""
        own, other = Condition(PERFUSION), Condition("perfusion_trained_keys")
        return Claim(
            "k",
            "Locked keys keep Perfusion true to its prompt",
            "Paired differences between Perfusion with locked and with trained keys.",
            [
                Finding(
                    "text similarity of Perfusion minus that with trained keys", self.difference(own, other, TEXT_ROW)
                )
            ],
            {"locked keys": own, "trained keys": other},
        )

    def difference(self, first: Condition, second: Condition, row: int = LIKENESS_ROW) -> Estimate | None:
        """How much more of a similarity the first has, image by image; None unless both were measured."""
        return self._estimate([first, second], lambda means: means[0, row] - means[1, row])

    def above_curve(self, point: Condition) -> Estimate | None:
        """Likeness minus that of NeTI's curve over the truncations at the same text similarity; None as above."""
        slider = self.measured.slider(NETI)

        def gain(means: np.ndarray) -> float:
            curve, own, word = means[:-2], means[-2], means[-1]
            return float(own[LIKENESS_ROW]) - image_at_text(own[TEXT_ROW], curve, word[LIKENESS_ROW])

        return self._estimate([*slider, point, WORD], gain) if len(slider) > 1 else None

    def mean(self, condition: Condition, row: int = LIKENESS_ROW) -> Estimate | None:
        """A similarity itself; None unless it was measured."""
        return self._estimate([condition], lambda means: means[0, row])

    def _order(self, conditions: Sequence[Condition], row: int) -> Estimate | None:
        """Rank correlation of the place among the conditions and a similarity; None for less than two."""
        if len(conditions) < 2:
            return None
        return self._estimate(conditions, lambda means: rank_correlation(range(len(conditions)), means[:, row]))

    def _estimate(self, conditions: Sequence[Condition], statistic: Statistic) -> Estimate | None:
        """The statistic's mean with its interval, over the concepts that have all the conditions; None without any."""
        if not self.measured.has(*conditions):
            return None
        return self.bootstrap.over_groups(self.measured.tables(conditions, [self.likeness, TEXT]), statistic)


def reading(likeness: Estimate | None, text: Estimate | None) -> str:
    """What two differences from NeTI say together, by whether their intervals contain 0."""
    signs = {_sign(estimate) for estimate in (likeness, text)} - {0}
    if len(signs) > 1:
        return "trades one for the other"
    return {1: "better", -1: "worse"}[signs.pop()] if signs else UNDECIDED


def _sign(estimate: Estimate | None) -> int:
    if estimate is None or estimate.low is None or estimate.high is None or estimate.low <= 0 <= estimate.high:
        return 0
    return 1 if estimate.low > 0 else -1


def _units(condition: Condition) -> str:
    return "all" if condition.truncation is None else str(condition.truncation)
