"""Images on the GPU: as on the CPU with every sampler, through pipelines that move their parts, and never black."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from frames import created

from neti.models.backbone.backbone import Backbone
from neti.models.generation.draw import draw
from neti.models.generation.recipes import ImageRecipe
from neti.models.generation.sampling import SCHEDULERS
from neti.models.methods import NeTI, NeTIConfig
from neti.models.pipelines.attach import attach
from neti.utils.errors import UserError


def new_concept(backbone: Backbone) -> NeTI:
    embedding = torch.ones(backbone.frame.text_width) / backbone.frame.text_width**0.5
    concept = created(NeTI, NeTIConfig(), backbone.frame.num_places, embedding, torch.Generator().manual_seed(0))
    return concept.to(backbone.unet.device).eval()


@pytest.fixture(scope="module")
def miniatures(device: torch.device) -> list[Backbone]:
    """On the CPU and on the device."""
    return [Backbone.from_pretrained("miniature", device=place) for place in ("cpu", device)]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_sampler_draws_what_it_draws_on_a_cpu(miniatures: list[Backbone], scheduler: str) -> None:
    recipe = ImageRecipe("a photo of a cat", seed=3, steps=8, guidance_scale=4, scheduler=scheduler)
    images = [np.asarray(drawn.image, dtype=float) for backbone in miniatures for drawn in draw(backbone, [recipe], {})]
    assert images[0].std() > 5, "there is something in the picture"
    apart = np.abs(images[0] - images[1]).mean()
    print(f"{scheduler}: {apart:.3f} of 255")
    assert apart < 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_draws(make_backbone: Callable[..., Backbone], dtype: torch.dtype) -> None:
    backbone = make_backbone(dtype)
    recipes = [ImageRecipe("a {}", seed=seed, steps=2) for seed in range(2)]
    images = [drawn.image for drawn in draw(backbone, recipes, {"{}": new_concept(backbone)}, batch_size=2)]
    assert {image.size for image in images} == {(backbone.image_size, backbone.image_size)}


def test_a_black_image_is_an_error_that_says_why(make_backbone: Callable[..., Backbone]) -> None:
    backbone = make_backbone(torch.bfloat16)
    concept = new_concept(backbone)
    with torch.no_grad():
        next(concept.mapper.output_layer.parameters()).fill_(math.nan)
    with pytest.raises(UserError, match="the concept itself holds NaN"):
        list(draw(backbone, [ImageRecipe("a {}", steps=1, torch_dtype="bf16")], {"{}": concept}))


def test_concepts_in_a_pipeline_that_moves_its_parts(
    make_backbone: Callable[..., Backbone], device: torch.device
) -> None:
    """The same image with all parts on the device, and with each only while it works."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    backbone = make_backbone(torch.float32)
    pipe = StableDiffusionPipeline(
        vae=backbone.vae,
        text_encoder=backbone.text_encoder,
        tokenizer=backbone.tokenizer,
        unet=backbone.unet,
        scheduler=backbone.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)

    def image() -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        with attach(pipe, {"<toy>": new_concept(backbone)}):
            made = pipe("a <toy>", num_inference_steps=2, generator=generator, output_type="np").images[0]
        return np.asarray(made, dtype=float)

    before = image()
    pipe.enable_model_cpu_offload(device=device)
    assert np.abs(image() - before).max() < 1e-2
