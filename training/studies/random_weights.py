"""Stable Diffusion v1.4's architecture with random weights: what speed and memory depend on, without a download."""

from __future__ import annotations

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from diffusers.schedulers import DDPMScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ...models.backbone.backbone import Backbone
from ...models.backbone.loading import BUNDLED


def sd14(device: str | torch.device, dtype: torch.dtype) -> Backbone:
    """The model on a device, or on "meta" without any weights.

    Texts are split by the miniature's tokenizer, whose ids all lie in SD's vocabulary, into SD's 77 tokens.
    """
    tokenizer = CLIPTokenizer.from_pretrained(BUNDLED["miniature"] / "tokenizer")
    tokenizer.model_max_length = 77
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # never held in float32 first
    try:
        with torch.device(device):
            text_encoder = CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=49408,
                    hidden_size=768,
                    intermediate_size=3072,
                    num_hidden_layers=12,
                    num_attention_heads=12,
                    max_position_embeddings=77,
                    hidden_act="quick_gelu",
                )
            )
            vae = AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
                latent_channels=4,
                sample_size=512,
            )
            unet = UNet2DConditionModel(
                block_out_channels=(320, 640, 1280, 1280),
                attention_head_dim=8,
                cross_attention_dim=768,
                layers_per_block=2,
                sample_size=64,
            )
    finally:
        torch.set_default_dtype(usual)
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    return Backbone(
        tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, unet=unet, scheduler=scheduler, name="sd14"
    )
