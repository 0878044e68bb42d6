"""A tiny random backbone of real classes, with the topology of Stable Diffusion 1.x."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers import DDPMScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from neti.models.backbone.backbone import Backbone

TOKENIZER = Path(__file__).parent / "data" / "tokenizer"
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


def tiny_vae(image_size: int, **settings: Any) -> AutoencoderKL:
    """Four levels as the original's, which make 8 pixels a latent."""
    return AutoencoderKL(
        block_out_channels=(4, 4, 8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        sample_size=image_size,
        **settings,
    )


def build_tiny_backbone(
    *,
    text_width: int = 32,
    attention_head_dim: int | tuple[int, ...] = 4,
    use_linear_projection: bool = False,
    prediction_type: str = "epsilon",
) -> Backbone:
    """A random backbone: 16 cross-attention layers, text width 32, T = 77, 8x8 latents, 64x64 images."""
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
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
        vae = tiny_vae(64)
        unet = UNet2DConditionModel(
            block_out_channels=(8, 16, 16, 16),
            norm_num_groups=4,
            attention_head_dim=attention_head_dim,
            cross_attention_dim=text_width,
            use_linear_projection=use_linear_projection,
            sample_size=8,
        )
    scheduler = DDPMScheduler(**NOISE, steps_offset=1, prediction_type=prediction_type)
    return Backbone(
        tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, unet=unet, scheduler=scheduler, name="tiny"
    )


def stock_pipeline(backbone: Backbone, scheduler: Any = None) -> Any:
    """Diffusers' own pipeline around the same parts, with the backbone's scheduler unless another is given."""
    pipeline: Any = StableDiffusionPipeline(
        vae=backbone.vae,
        text_encoder=backbone.text_encoder,
        tokenizer=backbone.tokenizer,
        unet=backbone.unet,
        scheduler=scheduler or backbone.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
