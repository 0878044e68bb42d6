"""The measured parts of docs/style_mixing.md and docs/several_concepts.md; the rest is written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ....utils.statistics import Bootstrap, rank_correlation
from .config import MixingConfig
from .measurements import both_found

STYLE = """\
{pairs} pairs of learned concepts, {seeds} seeds each, "{prompt}". Similarity is the mean cosine of an image's features
to those of a concept's photos, by the metric model. In brackets: 95% bootstrap intervals over pairs and seeds.

| mixing starts at t = | similarity to the geometry concept | to the appearance concept |
|---|---|---|
{rows}

Spearman's rank correlation with the start, over the {starts} starts of each pair and seed: **{geometry}** for the
similarity to the geometry concept, **{appearance}** for the similarity to the appearance concept. Pair by pair:

| geometry + appearance | to geometry | to appearance |
|---|---|---|
{correlations}

{settings}

![Style mixing](images/style_mixing.jpg)

Seed {seed} of each pair: a photo and the own image of the geometry concept, mixtures by start, own image and photo of
the appearance concept.
"""

SEVERAL = """\
{pairs} pairs of concepts of different kinds. "Both kinds" asks for a thing of each super category, "both concepts" for
the two learned concepts themselves. In brackets: 95% bootstrap intervals over pairs and images.

| "{prompt}" | images | both kinds | both concepts |
|---|---|---|---|
{ways}

The detectors behind this table, on pictures of which the answer is known (no detector was learned from them):

| picture | images | both kinds found | both concepts found |
|---|---|---|---|
{checks}

Each detector is linear, on the metric model's features of the picture and of its four corner windows, learned from
{renders} real renders of one or two things. The first line is the share of true pairs it finds, the others are false
alarms.
"with sides" is the prompt "{sides}".

{settings}

![Several concepts](images/several_concepts.jpg)

A photo of each concept, then the first seed (of the words and the plain concepts, the first two) of every line above.
"""

CHECKS = {
    "both": "real renders of both",
    "one": "real renders of one of the two",
    "twice": "real renders of one of the two, twice",
    "generated alone": "generated images of one of the two concepts alone",
}


def style_section(measured: Mapping[str, Any], config: MixingConfig, settings: str) -> str:
    """The measured part of docs/style_mixing.md."""
    roles = ("geometry", "appearance")
    rows = []
    for title, of_pair in [
        ("geometry concept alone", lambda one: one["own"]["geometry"]),
        *((str(start), lambda one, k=k: one["mixed"][k]) for k, start in _rising(config.mixing_start)),
        ("appearance concept alone", lambda one: one["own"]["appearance"]),
    ]:
        cells = [_estimate([np.array(of_pair(one)[role]) for one in measured.values()]) for role in roles]
        rows.append(f"| {title} | {' | '.join(cells)} |")
    correlations = {
        role: {pair: seed_correlations(one["mixed"], config.mixing_start, role) for pair, one in measured.items()}
        for role in roles
    }
    by_pair = [
        f"| {pair} | {' | '.join(f'{correlations[role][pair].mean():+.2f}' for role in roles)} |" for pair in measured
    ]
    overall = {role: _estimate(list(correlations[role].values()), signed=True) for role in roles}
    return STYLE.format(
        pairs=len(measured),
        seeds=len(config.style_seeds),
        starts=len(config.mixing_start),
        prompt=config.style_prompt,
        seed=config.style_seeds[0],
        rows="\n".join(rows),
        correlations="\n".join(by_pair),
        settings=settings,
        **overall,
    )


def seed_correlations(mixed: Sequence[Mapping[str, Sequence[float]]], starts: Sequence[int], role: str) -> np.ndarray:
    """For each seed, the rank correlation of start and similarity to the concept of that role."""
    by_seed = np.array([at_start[role] for at_start in mixed]).T
    return np.array([rank_correlation(starts, one.tolist()) for one in by_seed])


def several_section(measured: Mapping[str, Any], kinds: Mapping[str, str], config: MixingConfig, settings: str) -> str:
    """The measured part of docs/several_concepts.md. kinds: concept -> super category."""
    tables = {
        table: "\n".join(_rate_row(titles.get(name, name), found, kinds) for name, found in measured[table].items())
        for table, titles in (("ways", {}), ("checks", CHECKS))
    }
    return SEVERAL.format(
        pairs=len(config.both_pairs),
        prompt=config.both_prompt,
        sides=config.sides_prompt,
        renders=config.renders,
        settings=settings,
        **tables,
    )


def _rising(starts: Sequence[int]) -> list[tuple[int, int]]:
    """(position, start), the smallest start first: least of the appearance concept on top."""
    return sorted(enumerate(starts), key=lambda place: place[1])


def _rate_row(title: str, found: Mapping[str, Sequence[Any]], kinds: Mapping[str, str]) -> str:
    both = both_found(found, kinds)
    cells = [_estimate(both[level], percent=True) for level in ("categories", "concepts")]
    return f"| {title} | {sum(map(len, found.values()))} | {' | '.join(cells)} |"


def _estimate(groups: Sequence[np.ndarray], percent: bool = False, signed: bool = False) -> str:
    """Mean over groups and its interval; a single group (pair) resamples its own values."""
    one = Bootstrap().over_groups(groups) if len(groups) > 1 else Bootstrap().estimate(groups[0])
    return one.shown("{:.0%}" if percent else "{:+.2f}" if signed else "{:.3f}")
