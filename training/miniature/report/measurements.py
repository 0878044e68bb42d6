"""The measurements behind the report's table, each a JSON value of raw numbers that is kept once it is measured."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ....models.conditioning.prompts import SLOT
from ....models.generation.draw import draw
from ....models.generation.recipes import ImageRecipe
from ....utils.devices import describe_machine
from ....utils.hashing import json_hash, pixels_hash
from ...studies.study import LearnedConcept, Study
from ..pretraining import data, vae
from ..world.captions import caption, full_caption
from ..world.concepts import PHOTOS, render_concept
from ..world.world import Scene, World
from .config import ReportConfig
from .zero_shot import QUESTIONS, answers, choices, nearest_concept, retrieval_rates, truth

CAPTION_SEED = 9
SPEED_STEPS = (25, 50)
SPEED_GUIDANCE = 7.5
SPEED_REPEATS = 3
FRESH_PHOTOS = 8  # photos of each concept beyond the shipped ones: what the metric model makes of the truth itself


class HeldOut:
    """Held-out scenes as pictures and as words; drawn when they are first asked for."""

    def __init__(self, world: World, scenes: Sequence[Scene], pixels: int) -> None:
        self.scenes, self._world, self._pixels = scenes, world, pixels
        self.captions = [full_caption(scene) for scene in scenes]

    @cached_property
    def renders(self) -> list[Image.Image]:
        """The scenes as they really are."""
        return [self._world.render(scene, self._pixels) for scene in tqdm(self.scenes, "held-out scenes", disable=None)]

    @cached_property
    def digest(self) -> str:
        """Of pictures and captions: of the world's code as far as it matters here."""
        return json_hash([self.captions, pixels_hash(self.renders)])


class Measurements:
    """whole: scenes of all kinds of things; known: of the kinds that the U-Net learned, for what it generates."""

    def __init__(self, study: Study, config: ReportConfig) -> None:
        self.study, self.config = study, config
        world, pixels = study.world, study.backbone.image_size
        share = len(study.categories) / len(world.categories)
        scenes = data.scenes(world, math.ceil(2 * config.captions / share), held_out=True)
        known = [scene for scene in scenes if scene.look.category in study.categories]
        self.whole = HeldOut(world, scenes[: config.captions], pixels)
        self.known = HeldOut(world, known[: config.captions], pixels)

    @cached_property
    def generated(self) -> list[Image.Image]:
        """One image for every caption of `known`; caption k is drawn from seed k."""
        recipes = [self.study.recipe(text, seed) for seed, text in enumerate(self.known.captions)]
        return self.study.draw(recipes, {}, [])

    def reconstruction(self) -> dict[str, Any]:
        """psnr: dB per held-out scene."""

        def measure() -> dict[str, Any]:
            pixels = np.stack([np.asarray(image) for image in self.whole.renders])
            return {"psnr": list(vae.psnr(self.study.backbone.vae, pixels))}

        return self.study.result("vae", {"model": self.study.model, "data": self.whole.digest}, measure)

    def retrieval(self) -> dict[str, Any]:
        """random, full: per held-out scene, how often the metric model picks its own caption among the pool, for
        captions as in training (each fact named half of the time, so that several may fit) and for those that name all.
        """
        loose = [caption(scene, np.random.default_rng((CAPTION_SEED, k))) for k, scene in enumerate(self.whole.scenes)]
        model, pool = self.study.metric_model, self.config.retrieval_pool

        def measure() -> dict[str, Any]:
            images = model.image_features(self.whole.renders)
            return {
                name: retrieval_rates(images, model.text_features(texts), texts, pool=pool)
                for name, texts in (("random", loose), ("full", self.whole.captions))
            }

        inputs = {"metric model": model.digest, "data": self.whole.digest, "captions": json_hash(loose), "pool": pool}
        return self.study.result("retrieval", inputs, measure)

    def text_to_image(self) -> dict[str, Any]:
        """truth: question -> right answers; real, generated: the metric model's answers, and the similarity to the
        caption."""
        model, scenes, categories = self.study.metric_model, self.known.scenes, list(self.study.world.categories)

        def measure() -> dict[str, Any]:
            texts = model.text_features(self.known.captions)

            def judged(images: Sequence[Image.Image]) -> dict[str, Any]:
                features = model.image_features(images)
                found = answers(model.text_features, features, scenes, categories)
                return {"answers": found, "similarity": (features * texts).sum(1).tolist()}

            truths = [truth(scene) for scene in scenes]
            return {
                "captions": self.known.captions,
                "truth": {question: [right[question] for right in truths] for question in QUESTIONS},
                "real": judged(self.known.renders),
                "generated": judged(self.generated),
            }

        asked = json_hash([choices(scene, question, categories) for scene in scenes for question in QUESTIONS])
        return self.study.result("text_to_image", self.study.inputs(data=self.known.digest, choices=asked), measure)

    def concepts(self, learned: Sequence[LearnedConcept]) -> dict[str, Any]:
        """categories: concept -> super category; neti, word, photos: concept -> the nearest concept of each image.

        neti: images of the concept prompt filled with the learned concept (those that were learned); word: filled with
        the super category; photos: fresh renders of the concept itself. Nearest among the photos of all concepts.
        """
        study, prompt, seeds = self.study, self.config.concept_prompt, range(self.config.concept_images)
        everyone = study.photos.values()

        def measure() -> dict[str, Any]:
            photos = {one.name: study.metric_model.image_features(one.photos()) for one in everyone}

            def nearest(images: Sequence[Image.Image], photos: dict[str, Tensor] = photos) -> list[str]:
                return nearest_concept(study.metric_model.image_features(images), photos)

            def fresh(name: str) -> list[Image.Image]:
                return render_concept(study.world, name, study.backbone.image_size, FRESH_PHOTOS, start=PHOTOS)

            return {
                "categories": {one.name: one.super_category for one in everyone},
                "photos": {one.name: nearest(fresh(one.name)) for one in everyone},
                "word": {
                    one.name: nearest(study.draw_words(prompt.replace(SLOT, one.super_category), seeds))
                    for one in tqdm(everyone, "words alone", disable=None)
                },
                "neti": {
                    one.photos.name: nearest(study.draw_concept(one, prompt, seeds))
                    for one in tqdm(learned, "learned concepts", disable=None)
                },
            }

        inputs = study.inputs(
            photos=json_hash([[one.name, pixels_hash(one.photos())] for one in everyone]),
            learned=[[one.photos.name, one.digest] for one in learned],
            prompt=prompt,
            images=len(seeds),
        )
        return study.result("concepts", inputs, measure)

    def speed(self) -> dict[str, Any]:
        """seconds: steps -> seconds of each repeat for one image, prompt to pixels; machine: what it was measured on,
        and load: how many processes wanted its cores meanwhile (1-minute average; None where it is not known)."""
        machine = describe_machine()

        def one_image(steps: int, seed: int = 0) -> float:
            recipe = ImageRecipe(self.known.captions[0], seed=seed, steps=steps, guidance_scale=SPEED_GUIDANCE)
            began = time.perf_counter()
            list(draw(self.study.backbone, [recipe], {}))
            return time.perf_counter() - began

        def measure() -> dict[str, Any]:
            one_image(2)  # warms up: first calls allocate
            seconds = {str(steps): [one_image(steps, seed) for seed in range(SPEED_REPEATS)] for steps in SPEED_STEPS}
            load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
            return {"seconds": seconds, "machine": machine, "load": load}

        return self.study.result("speed", {"model": self.study.model, "machine": machine}, measure)
