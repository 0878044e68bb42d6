"""Rows about making images: beside the stock pipeline, by number of seeds, and by number of concepts in a queue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.utils import logging

from ....models.backbone.backbone import Backbone
from ....models.backbone.safety import SafetyChecker
from ....models.conditioning.prompts import SLOT
from ....models.generation.draw import draw
from ....models.generation.recipes import ImageRecipe
from ....models.generation.sampling import SCHEDULERS
from ....models.generation.serving.image_queue import ImageQueue
from ..timing import Ratio, Row, in_turn, seconds
from .config import BenchmarkConfig, Subject
from .training import new_method

PROMPT, PLAIN_PROMPT = f"a photo of a {SLOT} on a beach", "a photo of a dog on a beach"


def images(
    backbone: Backbone, count: int, steps: int, safety_checker: SafetyChecker | None = None
) -> Callable[[], None]:
    """Images of a new concept in one batch, from prompt to pixels."""
    method = new_method(backbone)
    recipes = [ImageRecipe(PROMPT, seed=seed, steps=steps, base_model=backbone.name) for seed in range(count)]

    def work() -> None:
        for _ in draw(backbone, recipes, {SLOT: method}, batch_size=count, safety_checker=safety_checker):
            pass

    return work


def sampling_rows(config: BenchmarkConfig, subject: Subject, backbone: Backbone) -> list[Row]:
    """All seeds of a prompt beside stock diffusers."""
    works = {
        "ours": images(backbone, config.seeds, config.sampling_steps),
        "stock": _stock(config, backbone, config.seeds),
    }
    found = in_turn(works, config.repeats, backbone.unet.device)
    return [
        Row(
            f"{config.seeds} seeds of a prompt, {config.sampling_steps} steps / StableDiffusionPipeline, plain prompt",
            str(Ratio.of(found["ours"], found["stock"])),
            counted=f"{found['ours'].flops / found['stock'].flops:.2f}",
            wanted="at most 1.05" if (subject, config.seeds) == (Subject.sd14, 8) else "",
            note=f"{seconds(found['ours'].median)} / {seconds(found['stock'].median)}",
        )
    ]


def seed_rows(config: BenchmarkConfig, backbone: Backbone) -> list[Row]:
    """Seconds for a prompt by number of seeds, which share its conditioning."""
    works = {str(count): images(backbone, count, config.sampling_steps) for count in config.seed_counts}
    found = in_turn(works, config.repeats, backbone.unet.device)
    return [
        Row(
            f"one prompt, {count} seeds, {config.sampling_steps} steps",
            f"{seconds(timing.median / int(count))} per image",
            note=f"{seconds(timing.median)} in all",
        )
        for count, timing in found.items()
    ]


def serving_rows(config: BenchmarkConfig, backbone: Backbone) -> list[Row]:
    """Requests of one image each that are all there at once: of one concept, of as many concepts as there are requests,
    and of no concept by the stock pipeline, one after the other."""
    concepts = [new_method(backbone, seed) for seed in range(config.requests)]
    recipes = [ImageRecipe(PROMPT, seed=seed, steps=config.sampling_steps) for seed in range(config.requests)]

    def served(queue: ImageQueue, count: int) -> None:
        asked = enumerate(recipes)
        for ticket in [queue.submit([recipe], {SLOT: concepts[number % count]}) for number, recipe in asked]:
            list(ticket)

    stock = _stock(config, backbone, images=1)
    with ImageQueue(backbone, max_batch=config.seeds, max_pending=config.requests) as queue:
        works = {
            "one": lambda: served(queue, 1),
            "many": lambda: served(queue, config.requests),
            "stock": lambda: [stock() for _ in recipes],
        }
        found = in_turn(works, config.repeats, backbone.unet.device, count=False)  # the queue has a thread of its own
    what = f"{config.requests} requests, {config.seeds} at a time, {config.sampling_steps} steps"
    each = {name: seconds(timing.median / config.requests) for name, timing in found.items()}
    return [
        Row(
            f"{what}: {config.requests} concepts / one concept",
            str(Ratio.of(found["many"], found["one"])),
            wanted="1 within noise",
            note=f"{each['many']} / {each['one']} per image",
        ),
        Row(
            f"{what}: {config.requests} concepts / StableDiffusionPipeline one by one, plain prompt",
            str(Ratio.of(found["many"], found["stock"])),
            note=f"{each['many']} / {each['stock']} per image",
        ),
    ]


def _stock(config: BenchmarkConfig, backbone: Backbone, images: int) -> Callable[[], None]:
    """So many images of a prompt by diffusers' own pipeline: same scheduler, steps, guidance, batch and precision."""
    logging.set_verbosity_error()  # the import complains about image processors that nothing here needs
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    recipe = ImageRecipe(PLAIN_PROMPT)
    scheduler_class, changes = SCHEDULERS[recipe.scheduler]
    own: Any = backbone.scheduler
    pipeline: Any = StableDiffusionPipeline(
        vae=backbone.vae,
        text_encoder=backbone.text_encoder,
        tokenizer=backbone.tokenizer,
        unet=backbone.unet,
        scheduler=scheduler_class.from_config(own.config, **changes),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)

    def work() -> None:
        pipeline(
            PLAIN_PROMPT,
            num_images_per_prompt=images,
            num_inference_steps=config.sampling_steps,
            guidance_scale=recipe.guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in range(images)],
        )

    return work
