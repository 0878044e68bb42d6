"""From raw numbers to the rows of the report: value, bootstrap interval, bar, met or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....utils.statistics import Bootstrap
from .zero_shot import QUESTIONS

BOOTSTRAP = Bootstrap(samples=2000)
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


def rights(answers: Sequence[str], truth: Sequence[str]) -> list[float]:
    """1.0 per right and 0.0 per wrong answer, over the images that have a truth."""
    return [float(answer == right) for answer, right in zip(answers, truth, strict=True) if right]


def _percent(values: Sequence[float]) -> str:
    return BOOTSTRAP.estimate(100 * np.asarray(values)).shown("{:.1f}%", "{:.1f}")


def reconstruction_rows(measured: Mapping[str, Any]) -> list[Row]:
    estimate = BOOTSTRAP.estimate(measured["psnr"])
    worst = f"mean over {len(measured['psnr'])} scenes, the worst {min(measured['psnr']):.1f} dB"
    return [
        Row(
            "VAE reconstruction PSNR",
            f"{BARS['psnr']:.0f} dB",
            estimate.shown("{:.2f} dB", "{:.2f}"),
            estimate.mean >= BARS["psnr"],
            worst,
        )
    ]


def retrieval_rows(measured: Mapping[str, Any], pool: int) -> list[Row]:
    full = _percent(measured["full"])
    return [
        Row(
            f"judge: own caption found among {pool} random ones",
            f"{100 * BARS['retrieval']:.0f}%",
            _percent(measured["random"]),
            float(np.mean(measured["random"])) >= BARS["retrieval"],
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
        met = float(np.mean(generated)) >= bar
        rows.append(Row(f"text to image: {question} right", f"{100 * bar:.0f}%", _percent(generated), met, note))
    pairs = np.array([measured["generated"]["similarity"], measured["real"]["similarity"]])
    ratio, bar = BOOTSTRAP.estimate(pairs, lambda means: means[0] / means[1]), BARS["similarity"]
    note = "mean cosine {:.3f} over {:.3f}".format(*pairs.mean(axis=1))
    rows.append(Row("text similarity, generated over real", f"{bar:.2f}", ratio.shown(), ratio.mean >= bar, note))
    return rows


def own_share(nearest: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Concept -> share of its images whose nearest concept is itself."""
    return {name: float(np.mean([answer == name for answer in answers])) for name, answers in nearest.items()}


def concept_rows(measured: Mapping[str, Any]) -> list[Row]:
    """The interval is over concepts, not over images: images of one concept succeed and fail together."""
    shares = {kind: own_share(measured[kind]) for kind in ("neti", "word", "photos")}
    everyone, bar = len(measured["categories"]), BARS["neti"]
    learned = list(shares["neti"].values())
    if learned:
        worst = min(shares["neti"], key=shares["neti"].__getitem__)
        value, met = _percent(learned), float(np.mean(learned)) >= bar
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
