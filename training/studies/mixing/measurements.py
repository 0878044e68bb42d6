"""Two questions about several concepts, put to a miniature: does style mixing mix, and do both concepts appear?"""

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
from ..study import LearnedConcept, Study
from .config import FIRST, SECOND, MixingConfig, pair_of
from .pair_scenes import concept_look, random_renders, render_looks
from .presence import Presence

LEARN_SEED, TEST_SEED = 21, 22
QUIETER = 0.5  # factor on the bypass, where less of it is tried
LOCKS = ("local", "global")  # of Perfusion's keys


@dataclass(frozen=True)
class Way:
    """One way to ask for two concepts. change: "words" puts the super-category words there; "truncation", "bypass",
    "key lock" and "" are about the concepts, Perfusion's locks about those of Perfusion."""

    title: str
    prompt: str
    seeds: tuple[int, ...]
    change: str = ""


class Measurements:
    """learned: the concepts of all pairs by name; perfusion: the same learned by Perfusion, or none."""

    def __init__(
        self,
        study: Study,
        config: MixingConfig,
        learned: Mapping[str, LearnedConcept],
        perfusion: Mapping[str, LearnedConcept],
    ) -> None:
        self.study, self.config, self.learned, self.perfusion = study, config, learned, perfusion

    def style_mixing(self) -> dict[str, dict[str, Any]]:
        """Pair -> similarity of its images to the photos of the geometry and of the appearance concept.

        mixed: [start][seed] of {"geometry", "appearance"}; own: concept's own images, the same by role.
        """
        return {pair: self._style_pair(pair) for pair in tqdm(self.config.style_pairs, "style mixing", disable=None)}

    def style_images(self, pair: str, start: int) -> list[Image.Image]:
        """The mixture of a pair from `start` on, one image per seed."""
        geometry, appearance = (self.learned[name] for name in pair_of(pair))
        layers = self.study.backbone.frame.layers
        mixture = style_mixture(geometry.concept.method, appearance.concept.method, layers, start)
        recipes = [self.study.recipe(self.config.style_prompt, seed) for seed in self.config.style_seeds]
        return self.study.draw(recipes, {SLOT: mixture}, ["style mixing", geometry.digest, appearance.digest, start])

    def several_concepts(self) -> dict[str, Any]:
        """ways: title -> pair -> what the detectors find in each image; checks: the same of pictures with a known
        answer.

        checks: "both": renders of both things; "one": of one of them; "twice": of one, twice; "generated alone": images
        of one learned concept, prompted alone.
        """
        config, study, names = self.config, self.study, list(self.learned)

        def measure() -> dict[str, Any]:
            pixels = study.backbone.image_size
            renders = random_renders(study.world, names, config.categories, pixels, config.renders, LEARN_SEED)
            presence = Presence.learn(study.metric_model, renders, names, config.categories)
            found: dict[str, dict[str, Any]] = {way.title: {} for way in self.ways()}
            checks: dict[str, dict[str, Any]] = {}
            for number, pair in enumerate(tqdm(config.both_pairs, "several concepts", disable=None)):
                for way in self.ways():
                    found[way.title][pair] = presence.found(self.several_images(pair, way))
                for title, shown in self._known(pair, number).items():
                    checks.setdefault(title, {})[pair] = presence.found(shown)
            return {"ways": found, "checks": checks}

        inputs = self._inputs(
            names,
            pairs=list(config.both_pairs),
            ways=[[way.title, way.prompt, list(way.seeds)] for way in self.ways()],
            detectors={"renders": config.renders, "categories": list(config.categories)},
            **({"perfusion": [[name, one.digest] for name, one in self.perfusion.items()]} if self.perfusion else {}),
        )
        return study.result("several", inputs, measure)

    def ways(self) -> list[Way]:
        """The words alone, the concepts as they are, and what may help; a bypass can be made quieter where there is
        one."""
        config = self.config
        some = config.both_seeds[: config.help_seeds]
        found = [
            Way("words alone", config.both_prompt, config.both_seeds, "words"),
            Way("concepts", config.both_prompt, config.both_seeds),
            Way("with sides", config.sides_prompt, some),
        ]
        methods = [one.concept.method for one in self.learned.values()]
        if all(method.truncation_width > config.help_truncation for method in methods):
            found.append(Way(f"{config.help_truncation} hidden units each", config.both_prompt, some, "truncation"))
        if all(isinstance(method, NeTI) and method.config.output_bypass for method in methods):
            found.append(Way(f"bypass x {QUIETER:g}", config.both_prompt, some, "bypass"))
        if self.perfusion:
            found.append(Way("keys of the words (key lock)", config.both_prompt, config.both_seeds, "key lock"))
            found += [Way(f"Perfusion, {lock} lock", config.both_prompt, config.both_seeds, lock) for lock in LOCKS]
        return found

    def several_images(self, pair: str, way: Way) -> list[Image.Image]:
        """Images of a pair asked for in one way, one per seed."""
        source = self.perfusion if way.change in LOCKS else self.learned
        ones = dict(zip((FIRST, SECOND), (source[name] for name in pair_of(pair)), strict=True))
        if way.change == "words":
            prompt = way.prompt
            for slot, one in ones.items():
                prompt = prompt.replace(slot, one.photos.super_category)
            return self.study.draw_words(prompt, way.seeds)
        concepts = {slot[1:-1]: self._changed(one.concept.method, way.change) for slot, one in ones.items()}
        about = [way.title if way.change else "", *(one.digest for one in ones.values())]
        return self.study.draw([self.study.recipe(way.prompt, seed) for seed in way.seeds], concepts, about)

    def own_images(self, name: str, seeds: Sequence[int]) -> list[Image.Image]:
        """Of one concept alone, one per seed."""
        return self.study.draw_concept(self.learned[name], self.config.style_prompt, seeds)

    def _style_pair(self, pair: str) -> dict[str, Any]:
        config, model = self.config, self.study.metric_model
        names = dict(zip(("geometry", "appearance"), pair_of(pair), strict=True))

        def measure() -> dict[str, Any]:
            photos = {role: model.image_features(self.learned[name].photos.photos()) for role, name in names.items()}

            def similarities(images: Sequence[Image.Image]) -> dict[str, list[float]]:
                features = model.image_features(images)
                return {role: (features @ one.t()).mean(1).tolist() for role, one in photos.items()}

            return {
                "own": {role: similarities(self.own_images(name, config.style_seeds)) for role, name in names.items()},
                "mixed": [similarities(self.style_images(pair, start)) for start in config.mixing_start],
            }

        inputs = self._inputs(
            list(names.values()),
            prompt=config.style_prompt,
            starts=list(config.mixing_start),
            seeds=list(config.style_seeds),
        )
        return self.study.result(f"style-{'-'.join(names.values())}", inputs, measure)

    def _changed(self, method: Method, change: str) -> AnyConcept:
        if change == "truncation":
            return Mixture([Rule(method, truncation=self.config.help_truncation)])
        if change == "bypass":
            quieter = copy.copy(method)  # the same weights under another setting
            quieter.config = replace(method.config, bypass_alpha=method.config.bypass_alpha * QUIETER)
            return quieter
        if change == "key lock":
            return method.drawn_with(key_lock=True)
        return method.drawn_with(lock=change) if change in LOCKS else method

    def _known(self, pair: str, number: int) -> dict[str, list[Image.Image]]:
        """Pictures of which it is known what they show."""
        looks = [concept_look(name) for name in pair_of(pair)]
        config, pixels = self.config, self.study.backbone.image_size
        chosen = {"both": lambda k: looks, "one": lambda k: [looks[k % 2]], "twice": lambda k: [looks[k % 2]] * 2}
        shown = {}
        for kind, (title, of_number) in enumerate(chosen.items()):
            random = [np.random.default_rng((TEST_SEED, kind, number, k)) for k in range(len(config.both_seeds))]
            renders = [render_looks(self.study.world, of_number(k), pixels, rng) for k, rng in enumerate(random)]
            shown[title] = [render.image for render in renders]
        some = config.both_seeds[: config.help_seeds]
        shown["generated alone"] = [image for name in pair_of(pair) for image in self.own_images(name, some)]
        return shown

    def _inputs(self, names: Sequence[str], **others: Any) -> dict[str, Any]:
        return self.study.inputs(concepts=[[name, self.learned[name].digest] for name in names], **others)


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
