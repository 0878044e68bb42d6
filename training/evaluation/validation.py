"""Grids of images made during training, by the sampling loop that inference uses."""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image

from ...models.backbone.backbone import Backbone
from ...models.conditioning.prompts import fill
from ...models.generation.sampling import SamplingConfig, decode, denoise, initial_latents, prepare_conditioning
from ...models.methods import Method
from ...utils.grid import labelled_grid
from ..config.run import EvalConfig

IMAGES_AT_ONCE = 4  # bounds memory; an image does not depend on its batch


def validation_grids(
    backbone: Backbone, method: Method, placeholder: str, config: EvalConfig, step: int
) -> Iterator[tuple[int | None, Image.Image]]:
    """Yield (truncation, grid) for each of `config.validation_truncations`: prompts down, seeds across.

    Every image draws from its own generator and the method comes back as it was, so training is not disturbed.
    Without prompts there are no grids. Raises NaNImageError instead of showing black images.
    """
    prompts = config.validation_prompts or ()
    for truncation in config.validation_truncations if prompts else ():
        rows = [_images(backbone, method, placeholder, prompt, config, truncation) for prompt in prompts]
        units = "" if truncation is None else f", the first {truncation} hidden units"
        yield (
            truncation,
            labelled_grid(
                rows,
                row_labels=prompts,
                column_labels=[f"seed {seed}" for seed in config.seeds],
                title=f"{placeholder} after {step} steps{units}",
            ),
        )


def _images(
    backbone: Backbone, method: Method, placeholder: str, prompt: str, config: EvalConfig, truncation: int | None
) -> list[Image.Image]:
    """One image per seed; the conditioning is computed once for all of them."""
    sampling = SamplingConfig(steps=config.num_denoising_steps)
    conditioning = prepare_conditioning(
        backbone, fill(prompt, placeholder), {placeholder: method}, sampling, truncation=truncation
    )
    images: list[Image.Image] = []
    for start in range(0, len(config.seeds), IMAGES_AT_ONCE):
        latents = initial_latents(backbone, config.seeds[start : start + IMAGES_AT_ONCE], sampling)
        images += decode(backbone, denoise(backbone, conditioning, latents, sampling))
    return images
