"""Grids of images made during training, by the function that all pictures are made by."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from PIL import Image

from ...models.backbone.backbone import Backbone
from ...models.conditioning.prompts import SLOT
from ...models.generation.draw import draw
from ...models.generation.recipes import ImageRecipe
from ...models.methods import Method
from ...utils.grid import labelled_grid
from ..config.run import EvalConfig


def validation_grids(
    backbone: Backbone,
    method: Method,
    placeholder: str,
    config: EvalConfig,
    step: int,
    on_step: Callable[[int], object] | None = None,
) -> Iterator[tuple[int | None, Image.Image]]:
    """Yield (truncation, grid) for each of `config.validation_truncations`: prompts down, seeds across.

    Every image draws from its own generator and the method comes back as it was, so training is not disturbed.
    Without prompts there are no grids. on_step(n): called after every denoising step of n images.
    Raises UserError instead of showing black images.
    """
    prompts = config.validation_prompts or ()
    for truncation in config.validation_truncations if prompts else ():
        recipes = [
            ImageRecipe(
                prompt, seed=seed, truncation=truncation, steps=config.num_denoising_steps, placeholder=placeholder
            )
            for prompt in prompts
            for seed in config.seeds
        ]
        images = [drawn.image for drawn in draw(backbone, recipes, {SLOT: method}, on_step=on_step)]
        units = "" if truncation is None else f", the first {truncation} hidden units"
        rows = [images[start : start + len(config.seeds)] for start in range(0, len(images), len(config.seeds))]
        yield (
            truncation,
            labelled_grid(
                rows,
                row_labels=prompts,
                column_labels=[f"seed {seed}" for seed in config.seeds],
                title=f"{placeholder} after {step} steps{units}",
            ),
        )
