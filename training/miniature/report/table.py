"""From raw numbers to the rows of the report: value, bootstrap interval, goal, met or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....utils.statistics import Bootstrap
from .zero_shot import QUESTIONS

BOOTSTRAP = Bootstrap(samples=2000)
GOALS = {
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
    """One line of the table. met None: there is no goal, or nothing was measured."""

    what: str
    goal: str
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
            f"{GOALS['psnr']:.0f} dB",
            estimate.shown("{:.2f} dB", "{:.2f}"),
            estimate.mean >= GOALS["psnr"],
            worst,
        )
    ]


def retrieval_rows(measured: Mapping[str, Any], pool: int) -> list[Row]:
    full = _percent(measured["full"])
    return [
        Row(
            f"metric model: own caption found among {pool} random ones",
            f"{100 * GOALS['retrieval']:.0f}%",
            _percent(measured["random"]),
            float(np.mean(measured["random"])) >= GOALS["retrieval"],
            f"captions as in training, each fact left out half of the time; with captions that tell all: {full}",
        )
    ]


def text_to_image_rows(measured: Mapping[str, Any]) -> list[Row]:
    rows = []
    for question in QUESTIONS:
        truth = measured["truth"][question]
        generated = rights(measured["generated"]["answers"][question], truth)
        real = _percent(rights(measured["real"]["answers"][question], truth))
        goal, note = GOALS[question], f"over {len(generated)} captions; real renders of them: {real}"
        met = float(np.mean(generated)) >= goal
        rows.append(Row(f"text to image: {question} right", f"{100 * goal:.0f}%", _percent(generated), met, note))
    pairs = np.array([measured["generated"]["similarity"], measured["real"]["similarity"]])
    ratio, goal = BOOTSTRAP.estimate(pairs, lambda means: means[0] / means[1]), GOALS["similarity"]
    note = "mean cosine {:.3f} over {:.3f}".format(*pairs.mean(axis=1))
    rows.append(Row("text similarity, generated over real", f"{goal:.2f}", ratio.shown(), ratio.mean >= goal, note))
    return rows


def own_share(nearest: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Concept -> share of its images whose nearest concept is itself."""
    return {name: float(np.mean([answer == name for answer in answers])) for name, answers in nearest.items()}


def concept_rows(measured: Mapping[str, Any]) -> list[Row]:
    """The interval is over concepts, not over images: images of one concept succeed and fail together."""
    shares = {kind: own_share(measured[kind]) for kind in ("neti", "word", "photos")}
    everyone, goal = len(measured["categories"]), GOALS["neti"]
    learned = list(shares["neti"].values())
    if learned:
        worst = min(shares["neti"], key=shares["neti"].__getitem__)
        value, met = _percent(learned), float(np.mean(learned)) >= goal
        note = (
            f"{len(learned)} of {everyone} concepts learned; {sum(share >= goal for share in learned)} reach the goal "
            f"by themselves, the worst is {worst} ({100 * shares['neti'][worst]:.0f}%)"
        )
    else:
        value, met, note = "not measured", None, "no concept was learned"
    fresh = _percent(list(shares["photos"].values()))
    return [
        Row("NeTI: nearest concept is its own", f"{100 * goal:.0f}%", value, met, note),
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
        value, goal = float(np.median(seconds)), GOALS["seconds"]
        each = ", ".join(f"{one:.2f}" for one in seconds)
        title = f"seconds per image, {steps} steps of DPM-Solver++"
        rows.append(Row(title, f"under {goal} s", f"{value:.2f} s", value < goal, f"median of {each}; guidance 7.5"))
    return rows


def table_rows(measured: Mapping[str, Any], pool: int) -> list[Row]:
    """All rows, from results by the names of `Measurements`."""
    return [
        *reconstruction_rows(measured["vae"]),
        *retrieval_rows(measured["retrieval"], pool),
        *text_to_image_rows(measured["text_to_image"]),
        *concept_rows(measured["concepts"]),
        *speed_rows(measured["speed"]),
    ]
