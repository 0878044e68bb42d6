"""Fixtures: a tiny random backbone of real classes, with the topology of Stable Diffusion 1.x."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers import DDPMScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from neti.models.backbone.backbone import Backbone

DATA = Path(__file__).parent / "data"


def build_tiny_backbone(
    *,
    text_width: int = 32,
    attention_head_dim: int | tuple[int, ...] = 4,
    use_linear_projection: bool = False,
    prediction_type: str = "epsilon",
) -> Backbone:
    """A random backbone: 16 cross-attention layers, text width 32, T = 77, 8x8 latents, 64x64 images."""
    tokenizer = CLIPTokenizer.from_pretrained(DATA / "tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=text_width,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=77,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
        vae = AutoencoderKL(
            block_out_channels=(4, 4, 8, 8),
            norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            sample_size=64,
        )
        unet = UNet2DConditionModel(
            block_out_channels=(8, 16, 16, 16),
            norm_num_groups=4,
            attention_head_dim=attention_head_dim,
            cross_attention_dim=text_width,
            use_linear_projection=use_linear_projection,
            sample_size=8,
        )
    scheduler = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    return Backbone(
        tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, unet=unet, scheduler=scheduler, name="tiny"
    )


@pytest.fixture(scope="session")
def make_tiny_backbone() -> Callable[..., Backbone]:
    """`build_tiny_backbone`, for tests that need other shapes."""
    return build_tiny_backbone


@pytest.fixture
def tiny_backbone() -> Backbone:
    """A fresh tiny backbone (built in well under a second); the same weights every time."""
    return build_tiny_backbone()


@pytest.fixture(scope="session")
def tiny_backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny backbone as a folder in diffusers layout, for scripts that take a path. Read-only by agreement."""
    folder = tmp_path_factory.mktemp("tiny_backbone")
    tiny = build_tiny_backbone()
    StableDiffusionPipeline(
        vae=tiny.vae,
        text_encoder=tiny.text_encoder,
        tokenizer=tiny.tokenizer,
        unet=tiny.unet,
        scheduler=tiny.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder
