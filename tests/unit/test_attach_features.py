"""What people use beside a concept in a stock pipeline: against the same embedding, loaded the stock way.

A Textual Inversion vector goes two roads to the same picture: through `attach`, and through diffusers' own
`load_textual_inversion`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from frames import created
from torch import Tensor

from neti.models.backbone.backbone import Backbone
from neti.models.methods import TextualInversion, WordVectorsConfig
from neti.models.pipelines.attach import attach

SCHEDULERS = (
    *("DDIMScheduler", "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler"),
    *("DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler"),
    *("EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler"),
    *("LCMScheduler", "LMSDiscreteScheduler", "PNDMScheduler", "SASolverScheduler", "UniPCMultistepScheduler"),
)


@pytest.fixture
def pipe(tiny_backbone: Backbone) -> StableDiffusionPipeline:
    parts = {name: getattr(tiny_backbone, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    nothing: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipe = StableDiffusionPipeline(**parts, **nothing)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def set_scheduler(name: str) -> Callable[[Any], None]:
    def change(pipe: Any) -> None:
        pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, skip_prk_steps=True)

    change.__name__ = name
    return change


def free_u(pipe: Any) -> None:
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)


def tiles(pipe: Any) -> None:
    pipe.vae.enable_tiling()
    pipe.vae.enable_slicing()


def lora(pipe: Any) -> None:
    """Of the U-Net, with numbers that matter in the layers that read the concept too."""
    peft = pytest.importorskip("peft")
    pipe.unet.add_adapter(peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in pipe.unet.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter.data, std=0.3, generator=generator)


def attention_slices(pipe: Any) -> None:
    pipe.enable_attention_slicing(1)


@pytest.mark.parametrize("change", [free_u, tiles, lora, attention_slices, *map(set_scheduler, SCHEDULERS)])
def test_a_concept_is_drawn_as_the_same_embedding(pipe: StableDiffusionPipeline, change: Callable[[Any], None]) -> None:
    vector = torch.randn(32, generator=torch.Generator().manual_seed(1))
    change(pipe)
    before = drawn(pipe, "a photo of a teddy")
    with attach(pipe, {"<toy>": created(TextualInversion, WordVectorsConfig(), 16, vector).eval()}):
        ours = drawn(pipe, "a photo of a <toy>")
        assert torch.equal(drawn(pipe, "a photo of a teddy"), before)
    pipe.load_textual_inversion({"<toy>": vector})
    torch.testing.assert_close(ours, drawn(pipe, "a photo of a <toy>"), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours, before, atol=1e-4)


def drawn(pipe: Any, prompt: str) -> Tensor:
    """Pixels of one picture, 0..1."""
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt, num_inference_steps=3, generator=generator, output_type="pt").images
