"""The measurements behind the report's table, each a JSON value of raw numbers that is kept once it is measured."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ....models.backbone.backbone import Backbone
from ....models.concepts.concept import Concept
from ....models.conditioning.prompts import SLOT
from ....models.generation.sampling import SamplingConfig, decode, denoise, initial_latents, prepare_conditioning
from ....models.judging.metric_model import CLIPMetricModel
from ....utils.devices import describe_machine
from ....utils.hashing import json_hash, pixels_hash
from ..pretraining import vae
from ..world.captions import caption, full_caption
from ..world.concepts import PHOTOS, ConceptPhotos, render_concept
from ..world.world import Scene, World
from .workbench import Painter, Results
from .zero_shot import QUESTIONS, answers, choices, nearest_concept, retrieval_rates, truth

CAPTION_SEED = 9
SPEED_STEPS = (25, 50)
SPEED_GUIDANCE = 7.5
SPEED_REPEATS = 3
FRESH_PHOTOS = 8  # photos of each concept beyond the shipped ones: what the judge makes of the truth itself


@dataclass(frozen=True)
class LearnedConcept:
    """A held-out concept with what NeTI learned of it; `file_digest` tells two trainings apart."""

    photos: ConceptPhotos
    concept: Concept
    file_digest: str


@dataclass(frozen=True)
class HeldOut:
    """Held-out scenes as pictures and as words; drawn when they are first asked for."""

    world: World
    scenes: Sequence[Scene]
    pixels: int

    @cached_property
    def renders(self) -> list[Image.Image]:
        """The scenes as they really are."""
        scenes = tqdm(self.scenes, desc="held-out scenes", disable=None)
        return [self.world.render(scene, self.pixels) for scene in scenes]

    @cached_property
    def captions(self) -> list[str]:
        """The full caption of every scene."""
        return [full_caption(scene) for scene in self.scenes]

    @cached_property
    def digest(self) -> str:
        """Digest of pictures and captions: of the world's code as far as it matters here."""
        return json_hash([self.captions, pixels_hash(self.renders)])


@dataclass(frozen=True)
class Bench:
    """All that the measurements need. `model` and `judge_model` are digests of the two models' files.

    whole: scenes of all kinds of things; known: of the kinds that the U-Net learned, for what it generates.
    """

    world: World
    whole: HeldOut
    known: HeldOut
    backbone: Backbone
    model: str
    judge: CLIPMetricModel
    judge_model: str
    results: Results
    painter: Painter

    @cached_property
    def generated(self) -> list[Image.Image]:
        """One image for every caption of `known`; caption k is painted from seed k."""
        numbered = tqdm(list(enumerate(self.known.captions)), desc="captions", disable=None)
        return [self.painter.paint(text, [seed])[0] for seed, text in numbered]

    @property
    def sampling(self) -> list[Any]:
        """The sampler's settings, as inputs of a measurement."""
        config = self.painter.sampling
        return [config.steps, config.guidance_scale, config.scheduler]


def reconstruction(bench: Bench) -> dict[str, Any]:
    """psnr: dB per held-out scene."""

    def measure() -> dict[str, Any]:
        pixels = np.stack([np.asarray(image) for image in bench.whole.renders])
        return {"psnr": list(vae.psnr(bench.backbone.vae, pixels))}

    return bench.results.get("vae", {"model": bench.model, "data": bench.whole.digest}, measure)


def retrieval(bench: Bench, pool: int) -> dict[str, Any]:
    """random, full: per held-out scene, how often the judge picks its own caption among `pool`, for captions as in
    training (each fact told half of the time, so that several may fit) and for captions that tell all."""
    loose = [caption(scene, np.random.default_rng((CAPTION_SEED, k))) for k, scene in enumerate(bench.whole.scenes)]

    def measure() -> dict[str, Any]:
        images = bench.judge.image_features(bench.whole.renders)
        return {
            name: retrieval_rates(images, bench.judge.text_features(texts), texts, pool=pool)
            for name, texts in (("random", loose), ("full", bench.whole.captions))
        }

    inputs = {"judge": bench.judge_model, "data": bench.whole.digest, "captions": json_hash(loose), "pool": pool}
    return bench.results.get("retrieval", inputs, measure)


def text_to_image(bench: Bench) -> dict[str, Any]:
    """truth: question -> right answers; real, generated: the judge's answers and the similarity to the caption."""
    categories = list(bench.world.categories)

    def measure() -> dict[str, Any]:
        texts = bench.judge.text_features(bench.known.captions)

        def judged(images: Sequence[Image.Image]) -> dict[str, Any]:
            features = bench.judge.image_features(images)
            return {
                "answers": answers(bench.judge.text_features, features, bench.known.scenes, categories),
                "similarity": (features * texts).sum(1).tolist(),
            }

        truths = [truth(scene) for scene in bench.known.scenes]
        return {
            "captions": bench.known.captions,
            "truth": {question: [right[question] for right in truths] for question in QUESTIONS},
            "real": judged(bench.known.renders),
            "generated": judged(bench.generated),
        }

    inputs = {
        "model": bench.model,
        "judge": bench.judge_model,
        "data": bench.known.digest,
        "sampling": bench.sampling,
        "choices": json_hash([choices(scene, q, categories) for scene in bench.known.scenes for q in QUESTIONS]),
    }
    return bench.results.get("text_to_image", inputs, measure)


def concepts(
    bench: Bench, everyone: Sequence[ConceptPhotos], learned: Sequence[LearnedConcept], prompt: str, images: int
) -> dict[str, Any]:
    """categories: concept -> super category; neti, word, photos: concept -> the nearest concept of each image.

    neti: images of `prompt` filled with the learned concept (those that were learned); word: filled with the super
    category; photos: fresh renders of the concept itself. Nearest among the photos of `everyone`.
    """
    seeds = range(images)

    def answer(shown: Sequence[Image.Image], photos: dict[str, Tensor]) -> list[str]:
        return nearest_concept(bench.judge.image_features(shown), photos)

    def measure() -> dict[str, Any]:
        photos = {one.name: bench.judge.image_features(one.photos()) for one in everyone}
        result: dict[str, Any] = {"categories": {one.name: one.super_category for one in everyone}}
        result["photos"], result["word"], result["neti"] = {}, {}, {}
        for one in tqdm(everyone, desc="words alone", disable=None):
            pixels = bench.backbone.image_size
            fresh = render_concept(bench.world, one.name, pixels, FRESH_PHOTOS, start=PHOTOS)
            result["photos"][one.name] = answer(fresh, photos)
            alone = bench.painter.paint(prompt.replace(SLOT, one.super_category), seeds)
            result["word"][one.name] = answer(alone, photos)
        for other in tqdm(learned, desc="learned concepts", disable=None):
            shown = bench.painter.paint(prompt, seeds, other.concept, other.file_digest)
            result["neti"][other.photos.name] = answer(shown, photos)
        return result

    inputs = {
        "model": bench.model,
        "judge": bench.judge_model,
        "photos": json_hash([[one.name, pixels_hash(one.photos())] for one in everyone]),
        "learned": [[other.photos.name, other.file_digest] for other in learned],
        "prompt": prompt,
        "images": images,
        "sampling": bench.sampling,
    }
    return bench.results.get("concepts", inputs, measure)


def speed(bench: Bench) -> dict[str, Any]:
    """seconds: steps -> seconds of each repeat for one image, prompt to pixels; machine: what it was measured on, and
    load: how many processes wanted its cores meanwhile (1-minute average; None where it is not known)."""
    machine = describe_machine()

    def one_image(config: SamplingConfig, seed: int) -> float:
        began = time.perf_counter()
        conditioning = prepare_conditioning(bench.backbone, bench.known.captions[0], {}, config)
        noise = initial_latents(bench.backbone, [seed], config)
        decode(bench.backbone, denoise(bench.backbone, conditioning, noise, config))
        return time.perf_counter() - began

    @torch.inference_mode()
    def measure() -> dict[str, Any]:
        one_image(SamplingConfig(steps=2, guidance_scale=SPEED_GUIDANCE), 0)  # warms up: first calls allocate
        seconds = {
            str(steps): [one_image(SamplingConfig(steps, SPEED_GUIDANCE), seed) for seed in range(SPEED_REPEATS)]
            for steps in SPEED_STEPS
        }
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        return {"seconds": seconds, "machine": machine, "load": load}

    return bench.results.get("speed", {"model": bench.model, "machine": machine}, measure)
