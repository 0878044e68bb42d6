"""Perfusion inside stock pipelines: only what a prompt names edits the attention, as in `draw`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from frames import created
from perfusion_concepts import make_perfusion
from torch import Tensor

from neti.models.backbone.backbone import Backbone
from neti.models.generation.sampling import (
    SamplingConfig,
    denoise,
    initial_latents,
    make_scheduler,
    prepare_conditioning,
)
from neti.models.methods import Method, NeTI, NeTIConfig
from neti.models.pipelines.attach import attach
from neti.utils.errors import UserError

PAIR = "a <mug> next to a <cat>"


@pytest.fixture
def pipe(tiny_backbone: Backbone) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline(
        vae=tiny_backbone.vae,
        text_encoder=tiny_backbone.text_encoder,
        tokenizer=tiny_backbone.tokenizer,
        unet=tiny_backbone.unet,
        scheduler=tiny_backbone.scheduler,
        safety_checker=None,
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def concepts(tiny_backbone: Backbone) -> dict[str, Method]:
    neti = created(NeTI, NeTIConfig(), 16, torch.ones(32), torch.Generator().manual_seed(0)).eval()
    made: dict[str, Method] = {"<mug>": make_perfusion(tiny_backbone), "<cat>": make_perfusion(tiny_backbone, "cat")}
    for method in made.values():
        with torch.no_grad():
            for tensor in method.state_dict().values():
                tensor += 0.3 * tensor.std() * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(2))
    return {**{name: method.eval() for name, method in made.items()}, "<neti>": neti}


def draw(pipe: Any, prompt: str | list[str], **options: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt, num_inference_steps=2, generator=generator, output_type="latent", **options).images


def named(concepts: dict[str, Method], prompt: str) -> dict[str, Method]:
    return {name: method for name, method in concepts.items() if name in prompt}


@pytest.mark.parametrize("prompt", ["a <mug>", PAIR, "a <neti> and a <cat>", "a <mug>, a <cat> and a <neti>"])
def test_only_the_concepts_of_the_prompt_edit_it(
    pipe: StableDiffusionPipeline, concepts: dict[str, Method], prompt: str
) -> None:
    with attach(pipe, named(concepts, prompt)):
        alone = draw(pipe, prompt)
    with attach(pipe, concepts):
        draw(pipe, "a <cat>")  # another choice before it leaves nothing behind
        torch.testing.assert_close(draw(pipe, prompt), alone, atol=1e-5, rtol=0)


def test_a_pipeline_draws_what_draw_draws(
    tiny_backbone: Backbone, pipe: StableDiffusionPipeline, concepts: dict[str, Method]
) -> None:
    config = SamplingConfig(steps=2, scheduler="ddim")
    latents = initial_latents(tiny_backbone, [0], config)
    own = prepare_conditioning(tiny_backbone, PAIR, named(concepts, PAIR), config)
    expected = denoise(tiny_backbone, own, latents, config)
    pipe.scheduler = make_scheduler(tiny_backbone, config)
    with attach(pipe, concepts):
        torch.testing.assert_close(draw(pipe, PAIR, latents=latents), expected, atol=1e-4, rtol=0)


def test_prompts_of_one_call_name_the_same_edits(pipe: StableDiffusionPipeline, concepts: dict[str, Method]) -> None:
    with attach(pipe, concepts):
        together = draw(pipe, ["a <mug>", "a <neti> with a <mug>"])
        assert together.isfinite().all()
        with pytest.raises(UserError, match=r"edit the attention \(<cat>; <mug>\); call the pipeline once for each"):
            draw(pipe, ["a <mug>", "a <cat>"])
        with pytest.raises(UserError, match=r"\(<mug>; none\)"):
            draw(pipe, ["a <mug>", "a dog"])
        draw(pipe, ["a <neti>", "a dog"])


def test_concepts_that_do_not_go_together_are_refused_at_once(
    tiny_backbone: Backbone, pipe: StableDiffusionPipeline, concepts: dict[str, Method]
) -> None:
    residual = make_perfusion(tiny_backbone, "cat", gate_mode="residual").eval()
    with pytest.raises(UserError, match="differ in gate_mode"):
        attach(pipe, {"<mug>": concepts["<mug>"], "<cat>": residual})
    with pytest.raises(UserError, match="the same key"):
        attach(pipe, {"<mug>": concepts["<mug>"], "<cup>": concepts["<mug>"]})
