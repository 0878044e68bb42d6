"""Images on the GPU: as on the CPU with every sampler, through pipelines that move their parts, and never black."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from frames import created
from tiny_backbone import stock_pipeline

from neti.models.backbone.backbone import Backbone
from neti.models.generation.draw import draw
from neti.models.generation.recipes import ImageRecipe
from neti.models.generation.sampling import SCHEDULERS
from neti.models.generation.serving.image_queue import ImageQueue
from neti.models.methods import NeTI, NeTIConfig
from neti.models.pipelines.attach import attach
from neti.utils.errors import UserError


def new_concept(backbone: Backbone, seed: int = 0) -> NeTI:
    embedding = torch.ones(backbone.frame.text_width) / backbone.frame.text_width**0.5
    concept = created(NeTI, NeTIConfig(), backbone.frame.num_places, embedding, torch.Generator().manual_seed(seed))
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
    backbone = make_backbone(torch.float32)
    pipe = stock_pipeline(backbone)

    def image() -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        with attach(pipe, {"<toy>": new_concept(backbone)}):
            made = pipe("a <toy>", num_inference_steps=2, generator=generator, output_type="np").images[0]
        return np.asarray(made, dtype=float)

    before = image()
    pipe.enable_model_cpu_offload(device=device)
    assert np.abs(image() - before).max() < 1e-2


def test_concepts_share_a_batch(miniatures: list[Backbone]) -> None:
    """Three requests in a queue on the device: what each is alone on the CPU."""
    recipes = [ImageRecipe("a {}", seed=seed, steps=8 + seed, guidance_scale=4) for seed in range(3)]
    with ImageQueue(miniatures[1]) as queue:
        tickets = [queue.submit([recipe], {"{}": new_concept(miniatures[1], recipe.seed)}) for recipe in recipes]
        images = [made.image for ticket in tickets for made in ticket]
    for recipe, image in zip(recipes, images, strict=True):
        [alone] = draw(miniatures[0], [recipe], {"{}": new_concept(miniatures[0], recipe.seed)})
        assert np.abs(np.asarray(image, dtype=float) - np.asarray(alone.image, dtype=float)).mean() < 2


@pytest.mark.cuda_only
def test_a_queue_that_runs_out_of_memory_goes_on(
    make_backbone: Callable[..., Backbone], device: torch.device, caplog: pytest.LogCaptureFixture
) -> None:
    """3 GB beside the model: too little for 128 images at a time, enough for some, and for decoding one."""
    backbone = make_backbone(torch.float16)
    limit = torch.cuda.memory_reserved() + 3 * 10**9
    torch.cuda.set_per_process_memory_fraction(min(limit / torch.cuda.get_device_properties(device).total_memory, 1.0))
    try:
        with ImageQueue(backbone, max_batch=128, max_pending=128) as queue:
            recipes = [ImageRecipe("a {}", seed=seed, steps=1) for seed in range(128)]
            assert len(list(queue.submit(recipes, {"{}": new_concept(backbone)}))) == 128
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory with" in caplog.text
