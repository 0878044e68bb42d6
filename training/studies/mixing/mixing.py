"""Two questions about several concepts, put to the miniature: does style mixing mix, and do both concepts appear?"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ....models.conditioning.composition import AnyConcept, Mixture, Rule, style_mixture
from ....models.conditioning.prompts import SLOT
from ....models.methods import Method, NeTI
from .config import FIRST, SECOND, pair_of
from .lab import MixingLab
from .pair_scenes import concept_look, random_renders, render_looks
from .presence import Presence

LEARN_SEED, TEST_SEED = 21, 22
QUIETER = 0.5  # factor on the bypass, where less of it is tried


def style_mixing(lab: MixingLab) -> dict[str, dict[str, Any]]:
    """Pair -> similarity of its images to the photos of the geometry and of the appearance concept.

    mixed: [start][seed] of {"geometry", "appearance"}; own: concept's own images, the same by role.
    """
    return {pair: _style_pair(lab, pair) for pair in tqdm(lab.config.style_pairs, desc="style mixing", disable=None)}


def _style_pair(lab: MixingLab, pair: str) -> dict[str, Any]:
    config = lab.config
    names = dict(zip(("geometry", "appearance"), pair_of(pair), strict=True))

    def similarities(images: Sequence[Image.Image]) -> dict[str, list[float]]:
        features = lab.judge.image_features(images)
        photos = {role: lab.judge.image_features(lab.learned[name].photos.photos()) for role, name in names.items()}
        return {role: (features @ one.t()).mean(1).tolist() for role, one in photos.items()}

    def measure() -> dict[str, Any]:
        own = {
            role: similarities(lab.paint_alone(name, config.style_prompt, config.style_seeds))
            for role, name in names.items()
        }
        return {
            "own": own,
            "mixed": [similarities(style_images(lab, pair, start)) for start in config.mixing_start],
        }

    inputs = lab.inputs(
        list(names.values()),
        prompt=config.style_prompt,
        starts=list(config.mixing_start),
        seeds=list(config.style_seeds),
    )
    return lab.results.get(f"style-{'-'.join(names.values())}", inputs, measure)


def style_images(lab: MixingLab, pair: str, start: int) -> list[Image.Image]:
    """The mixture of a pair from `start` on, one image per seed."""
    geometry, appearance = (lab.learned[name] for name in pair_of(pair))
    mixture = style_mixture(geometry.concept.method, appearance.concept.method, lab.layers, start)
    about = ["style mixing", geometry.file_digest, appearance.file_digest, start]
    return lab.paint(lab.config.style_prompt, {SLOT: mixture}, about, lab.config.style_seeds)


@dataclass(frozen=True)
class Way:
    """One way to ask for two concepts. change: "words" puts the super-category words there; "truncation", "bypass"
    and "" are about the concepts."""

    title: str
    prompt: str
    seeds: tuple[int, ...]
    change: str = ""


def ways(lab: MixingLab) -> list[Way]:
    """The words alone, the concepts as they are, and what may help; a bypass can be made quieter where there is one."""
    config = lab.config
    some = config.both_seeds[: config.help_seeds]
    found = [
        Way("words alone", config.both_prompt, config.both_seeds, "words"),
        Way("concepts", config.both_prompt, config.both_seeds),
        Way("said with sides", config.sides_prompt, some),
    ]
    methods = [one.concept.method for one in lab.learned.values()]
    if all(method.truncation_width > config.help_truncation for method in methods):
        found.append(Way(f"{config.help_truncation} hidden units each", config.both_prompt, some, "truncation"))
    if all(isinstance(method, NeTI) and method.config.output_bypass for method in methods):
        found.append(Way(f"bypass x {QUIETER:g}", config.both_prompt, some, "bypass"))
    return found


def several_images(lab: MixingLab, pair: str, way: Way) -> list[Image.Image]:
    """Images of a pair asked for in one way, one per seed."""
    ones = dict(zip((FIRST, SECOND), (lab.learned[name] for name in pair_of(pair)), strict=True))
    if way.change == "words":
        prompt = way.prompt
        for slot, one in ones.items():
            prompt = prompt.replace(slot, one.photos.super_category)
        return lab.paint(prompt, {}, [], way.seeds)
    voices = {slot: _changed(one.concept.method, way.change, lab.config.help_truncation) for slot, one in ones.items()}
    about = [way.title if way.change else "", *(one.file_digest for one in ones.values())]
    return lab.paint(way.prompt, voices, about, way.seeds)


def _changed(method: Method, change: str, truncation: int) -> AnyConcept:
    if change == "truncation":
        return Mixture([Rule(method, truncation=truncation)])
    if change == "bypass":
        quieter = copy.copy(method)  # the same weights under another setting
        quieter.config = replace(method.config, bypass_alpha=method.config.bypass_alpha * QUIETER)
        return quieter
    return method


def several_concepts(lab: MixingLab) -> dict[str, Any]:
    """ways: title -> pair -> what the detectors find in each image; checks: the same of pictures with a known answer.

    checks: "both": renders of both things; "one": of one of them; "twice": of one, twice; "generated alone": images of
    one learned concept, prompted alone.
    """
    config = lab.config
    names = list(lab.learned)
    detectors = {"renders": config.renders, "categories": list(config.categories)}

    def measure() -> dict[str, Any]:
        pixels = lab.backbone.image_size
        renders = random_renders(lab.world, names, config.categories, pixels, config.renders, LEARN_SEED)
        presence = Presence.learn(lab.judge, renders, names, config.categories)
        found: dict[str, dict[str, Any]] = {way.title: {} for way in ways(lab)}
        checks: dict[str, dict[str, Any]] = {}
        for number, pair in enumerate(tqdm(config.both_pairs, desc="several concepts", disable=None)):
            for way in ways(lab):
                found[way.title][pair] = presence.found(several_images(lab, pair, way))
            for title, shown in _known(lab, pair, number).items():
                checks.setdefault(title, {})[pair] = presence.found(shown)
        return {"ways": found, "checks": checks}

    asked = [[way.title, way.prompt, list(way.seeds)] for way in ways(lab)]
    inputs = lab.inputs(names, pairs=list(config.both_pairs), ways=asked, detectors=detectors)
    return lab.results.get("several", inputs, measure)


def _known(lab: MixingLab, pair: str, number: int) -> dict[str, list[Image.Image]]:
    """Pictures of which it is known what they show."""
    looks = [concept_look(name) for name in pair_of(pair)]
    config, pixels = lab.config, lab.backbone.image_size
    chosen = {"both": lambda k: looks, "one": lambda k: [looks[k % 2]], "twice": lambda k: [looks[k % 2]] * 2}
    shown = {
        title: [
            render_looks(lab.world, of_number(k), pixels, np.random.default_rng((TEST_SEED, kind, number, k))).image
            for k in range(len(config.both_seeds))
        ]
        for kind, (title, of_number) in enumerate(chosen.items())
    }
    some = config.both_seeds[: config.help_seeds]
    alone = [image for name in pair_of(pair) for image in lab.paint_alone(name, config.style_prompt, some)]
    return {**shown, "generated alone": alone}


def both_found(
    found: Mapping[str, Sequence[Mapping[str, Any]]], kinds: Mapping[str, str]
) -> dict[str, list[np.ndarray]]:
    """For "concepts" and for "categories": per pair, image by image, 1.0 where both are found.

    kinds: concept -> its category.
    """
    rows: dict[str, list[np.ndarray]] = {"concepts": [], "categories": []}
    for pair, images in found.items():
        names = set(pair_of(pair))
        wanted = {"concepts": names, "categories": {kinds[name] for name in names}}
        for level, both in wanted.items():
            rows[level].append(np.array([float(both <= set(image[level])) for image in images]))
    return rows
