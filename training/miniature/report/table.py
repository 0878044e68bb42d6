"""From raw numbers to the rows of the report: value, bootstrap interval, bar, met or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .judge import QUESTIONS

RESAMPLES = 2000
BARS = {
    "psnr": 26.0,
    "retrieval": 0.90,
    "place": 0.90,
    "style": 0.85,
    "category": 0.80,
    "similarity": 0.90,
    "neti": 0.90,
    "seconds": 1.5,
}


@dataclass(frozen=True)
class Row:
    """One line of the table. met None: there is no bar, or nothing was measured."""

    what: str
    bar: str
    value: str
    met: bool | None
    note: str = ""


def mean(values: np.ndarray) -> float:
    """The mean of all rows."""
    return float(values.mean())


def ratio_of_sums(pairs: np.ndarray) -> float:
    """Sum of the first column over sum of the second."""
    return float(pairs[:, 0].sum() / pairs[:, 1].sum())


def bootstrap(
    values: Sequence[float] | np.ndarray, statistic: Callable[[np.ndarray], float] = mean, seed: int = 0
) -> tuple[float, float, float]:
    """The statistic of `values` [n] or [n,k] and its 95% percentile-bootstrap interval, rows drawn with replacement."""
    array = np.asarray(values, np.float64)
    if len(array) == 0:
        raise ValueError("no values to draw from")
    random = np.random.default_rng(seed)
    drawn = [statistic(array[random.integers(len(array), size=len(array))]) for _ in range(RESAMPLES)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return statistic(array), float(low), float(high)


def rights(answers: Sequence[str], truth: Sequence[str]) -> list[float]:
    """1.0 per right and 0.0 per wrong answer, over the images that have a truth."""
    return [float(answer == right) for answer, right in zip(answers, truth, strict=True) if right]


def _percent(values: Sequence[float]) -> str:
    value, low, high = bootstrap(values)
    return f"{100 * value:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"


def reconstruction_rows(measured: Mapping[str, Any]) -> list[Row]:
    value, low, high = bootstrap(measured["psnr"])
    shown = f"{value:.2f} dB [{low:.2f}, {high:.2f}]"
    worst = f"mean over {len(measured['psnr'])} scenes, the worst {min(measured['psnr']):.1f} dB"
    return [Row("VAE reconstruction PSNR", f"{BARS['psnr']:.0f} dB", shown, value >= BARS["psnr"], worst)]


def retrieval_rows(measured: Mapping[str, Any], pool: int) -> list[Row]:
    full = _percent(measured["full"])
    return [
        Row(
            f"judge: own caption found among {pool} random ones",
            f"{100 * BARS['retrieval']:.0f}%",
            _percent(measured["random"]),
            mean(np.array(measured["random"])) >= BARS["retrieval"],
            f"captions as in training, each fact left out half of the time; with captions that tell all: {full}",
        )
    ]


def text_to_image_rows(measured: Mapping[str, Any]) -> list[Row]:
    rows = []
    for question in QUESTIONS:
        truth = measured["truth"][question]
        generated = rights(measured["generated"]["answers"][question], truth)
        real = _percent(rights(measured["real"]["answers"][question], truth))
        bar, note = BARS[question], f"over {len(generated)} captions; real renders of them: {real}"
        met = mean(np.array(generated)) >= bar
        rows.append(Row(f"text to image: {question} right", f"{100 * bar:.0f}%", _percent(generated), met, note))
    pairs = np.stack([measured["generated"]["similarity"], measured["real"]["similarity"]], 1)
    value, low, high = bootstrap(pairs, ratio_of_sums)
    shown, bar = f"{value:.3f} [{low:.3f}, {high:.3f}]", BARS["similarity"]
    note = f"mean cosine {pairs[:, 0].mean():.3f} over {pairs[:, 1].mean():.3f}"
    rows.append(Row("text similarity, generated over real", f"{bar:.2f}", shown, value >= bar, note))
    return rows


def own_share(nearest: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Concept -> share of its images whose nearest concept is itself."""
    return {name: mean(np.array([answer == name for answer in answers])) for name, answers in nearest.items()}


def concept_rows(measured: Mapping[str, Any]) -> list[Row]:
    """The interval is over concepts, not over images: images of one concept succeed and fail together."""
    shares = {kind: own_share(measured[kind]) for kind in ("neti", "word", "photos")}
    everyone, bar = len(measured["categories"]), BARS["neti"]
    learned = list(shares["neti"].values())
    if learned:
        worst = min(shares["neti"], key=shares["neti"].__getitem__)
        value, met = _percent(learned), mean(np.array(learned)) >= bar
        note = (
            f"{len(learned)} of {everyone} concepts learned; {sum(share >= bar for share in learned)} reach the bar by "
            f"themselves, the worst is {worst} ({100 * shares['neti'][worst]:.0f}%)"
        )
    else:
        value, met, note = "not measured", None, "no concept was learned"
    fresh = _percent(list(shares["photos"].values()))
    return [
        Row("NeTI: nearest concept is its own", f"{100 * bar:.0f}%", value, met, note),
        Row(
            "the same, super-category word alone",
            "clearly lower",
            _percent(list(shares["word"].values())),
            None,
            f"all {everyone} concepts; fresh photos of the concepts themselves: {fresh}",
        ),
    ]


def speed_rows(measured: Mapping[str, Any]) -> list[Row]:
    rows = []
    for steps, seconds in measured["seconds"].items():
        value, bar = float(np.median(seconds)), BARS["seconds"]
        each = ", ".join(f"{one:.2f}" for one in seconds)
        title = f"seconds per image, {steps} steps of DPM-Solver++"
        rows.append(Row(title, f"under {bar} s", f"{value:.2f} s", value < bar, f"median of {each}; guidance 7.5"))
    return rows


def table_rows(measured: Mapping[str, Any], pool: int) -> list[Row]:
    """All rows, from the results of `rows` by their names."""
    return [
        *reconstruction_rows(measured["vae"]),
        *retrieval_rows(measured["retrieval"], pool),
        *text_to_image_rows(measured["text_to_image"]),
        *concept_rows(measured["concepts"]),
        *speed_rows(measured["speed"]),
    ]


def confusion(nearest: Mapping[str, Sequence[str]], names: Sequence[str]) -> dict[str, list[int]]:
    """Concept -> how many of its images lie nearest to each of `names`."""
    counts = {name: Counter(answers) for name, answers in nearest.items()}
    return {name: [counts[name][other] for other in names] for name in counts}
