"""Rows about making images: beside the stock pipeline, and by number of seeds."""

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
from .config import BenchmarkConfig, Subject
from .timing import Ratio, Row, in_turn, seconds
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
        "stock": _stock(config, backbone),
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


def _stock(config: BenchmarkConfig, backbone: Backbone) -> Callable[[], None]:
    """The same number of images by diffusers' own pipeline: same scheduler, steps, guidance, batch and precision."""
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
            num_images_per_prompt=config.seeds,
            num_inference_steps=config.sampling_steps,
            guidance_scale=recipe.guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in range(config.seeds)],
        )

    return work
