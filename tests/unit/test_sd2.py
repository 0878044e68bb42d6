"""Stable Diffusion 2.x on a faithful tiny copy: its tokens, its pictures, concepts in it, half precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from tiny_sd2 import make_tiny_sd2
from torch import Tensor

from neti.models.backbone.backbone import Backbone
from neti.models.conditioning.prompts import SLOT
from neti.models.conditioning.tokens import tokenize
from neti.models.generation.sampling import SCHEDULERS, SamplingConfig, denoise, initial_latents, prepare_conditioning
from neti.models.methods import METHODS, Method, Start
from neti.models.pipelines.attach import attach
from neti.training.coach.objective import Batch, Objective

SIZE = {"height": 128, "width": 64}
PROMPT, NEGATIVE = "A photo of a teddy!", "a painting, ugly!!"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_sd2(tmp_path_factory.mktemp("sd2") / "model")


@pytest.fixture(scope="module")
def sd2(folder: Path) -> Backbone:
    return Backbone.from_pretrained(str(folder))


def stock(folder: Path, scheduler: str, dtype: torch.dtype = torch.float32) -> Any:
    pipe: Any = StableDiffusionPipeline.from_pretrained(folder, dtype=dtype)
    scheduler_class, changes = SCHEDULERS[scheduler]
    pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config, **changes)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe: Any, prompt: str, latents: Tensor, config: SamplingConfig, **options: Any) -> Tensor:
    return pipe(
        prompt,
        latents=latents.to(pipe.unet.dtype),
        num_inference_steps=config.steps,
        guidance_scale=config.guidance_scale,
        output_type="latent",
        **SIZE,
        **options,
    ).images


def create(name: str, backbone: Backbone) -> Method:
    method_class = METHODS[name]
    start = Start(backbone.word_embedding("teddy"), torch.Generator().manual_seed(0), "teddy", backbone)
    return method_class.create(method_class.config_class(), backbone.frame, start)


def test_it_is_loaded_as_it_is(sd2: Backbone) -> None:
    assert (sd2.frame.num_places, sd2.frame.text_widths, sd2.image_size) == (16, (32,), 768)
    tokenizer = sd2.tokenizer
    ids = tokenizer("a photo", padding="max_length", max_length=8).input_ids
    assert ids[3] == tokenizer.eos_token_id and set(ids[4:]) == {tokenizer.convert_tokens_to_ids("!")}
    assert sd2.scheduler.config["prediction_type"] == "v_prediction"
    assert sd2.unet.config["upcast_attention"] is True


@pytest.mark.parametrize("scheduler", [name for name in SCHEDULERS if name not in ("euler_a", "lcm")])
def test_plain_prompts_equal_the_stock_pipeline(sd2: Backbone, folder: Path, scheduler: str) -> None:
    config = SamplingConfig(steps=6, guidance_scale=5.0, scheduler=scheduler, **SIZE)
    latents = initial_latents(sd2, [3], config)
    theirs = drawn(stock(folder, scheduler), PROMPT, latents.clone(), config, negative_prompt=NEGATIVE)
    conditioning = prepare_conditioning(sd2, PROMPT, {}, config, negative_prompt=NEGATIVE)
    torch.testing.assert_close(denoise(sd2, conditioning, latents, config), theirs, rtol=1e-4, atol=1e-4)


def test_an_attached_concept_equals_our_own_sampler(sd2: Backbone, folder: Path) -> None:
    config = SamplingConfig(steps=4, guidance_scale=5.0, **SIZE)
    method, latents = create("neti", sd2).eval(), initial_latents(sd2, [3], config)
    pipe = stock(folder, config.scheduler)
    with attach(pipe, {"<toy>": method}):
        theirs = drawn(pipe, "a photo of a <toy>!", latents.clone(), config)
    ours = denoise(sd2, prepare_conditioning(sd2, "a photo of a {}!", {SLOT: method}, config), latents, config)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    plain = denoise(sd2, prepare_conditioning(sd2, "a photo of a teddy!", {}, config), latents, config)
    assert (ours - plain).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_draws_the_same(sd2: Backbone, folder: Path, dtype: torch.dtype) -> None:
    config = SamplingConfig(steps=3, guidance_scale=5.0, **SIZE)
    latents = initial_latents(sd2, [3], config)
    whole = denoise(sd2, prepare_conditioning(sd2, PROMPT, {}, config), latents, config)
    half = Backbone.from_pretrained(str(folder), dtype=dtype)
    ours = denoise(half, prepare_conditioning(half, PROMPT, {}, config), latents, config)
    assert torch.nn.functional.cosine_similarity(ours.flatten(), whole.flatten(), dim=0) > 0.998


def test_attention_scores_beyond_half_precision_are_no_nan(sd2: Backbone, folder: Path) -> None:
    """Why its settings say upcast_attention: scores of real weights pass 65504, the largest number of float16."""
    config = SamplingConfig(steps=2, guidance_scale=5.0, **SIZE)
    half = Backbone.from_pretrained(str(folder), dtype=torch.float16)
    for module in half.unet.modules():
        if isinstance(module, Attention):
            module.to_q.weight.mul_(500)
            module.to_k.weight.mul_(500)
    latents = initial_latents(half, [3], config)
    assert denoise(half, prepare_conditioning(half, PROMPT, {}, config), latents, config).isfinite().all()


@pytest.mark.parametrize("name", ["neti", "xti", "textual_inversion"])
def test_every_method_learns_velocities(sd2: Backbone, name: str) -> None:
    method = create(name, sd2)
    generator = torch.Generator().manual_seed(1)
    batch = Batch(
        latents=torch.randn(2, 4, 8, 8, generator=generator),
        noise=torch.randn(2, 4, 8, 8, generator=generator),
        timesteps=torch.tensor([10, 900]),
        tokens=tokenize(sd2.tokenizer, ["a photo of a {}!", "{} on a {}"], [SLOT]),
        generators=[torch.Generator().manual_seed(i) for i in range(2)],
    )
    Objective(method, sd2).train()(batch).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())
