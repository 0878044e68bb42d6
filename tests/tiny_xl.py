"""A tiny random Stable Diffusion XL of real classes: two text towers, three and more blocks in a place, time ids."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models import UNet2DConditionModel
from diffusers.schedulers import DDPMScheduler
from tiny_backbone import NOISE, TOKENIZER, tiny_vae
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from neti.models.backbone.backbone import Backbone

WIDTHS, POOLED, TIME = (32, 48), 40, 8
BLOCKS = (1, 2, 3)  # transformer blocks per place on each level; SDXL has (0, 2, 10)


def build_tiny_xl() -> Backbone:
    """L = 2*2 + 2*3 + 3 + 3*3 + 3*2 = 28 layers in P = 11 places, text widths 32 and 48, 8x8 latents, 64x64 images."""
    first = CLIPTokenizer.from_pretrained(TOKENIZER)
    second = CLIPTokenizer.from_pretrained(TOKENIZER, pad_token="!")
    shared = {"vocab_size": len(first), "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    ends = {"bos_token_id": first.bos_token_id, "eos_token_id": first.eos_token_id, "max_position_embeddings": 77}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text_encoder = CLIPTextModel(CLIPTextConfig(hidden_size=WIDTHS[0], **shared, **ends))
        config = CLIPTextConfig(hidden_size=WIDTHS[1], projection_dim=POOLED, **shared, **ends)
        text_encoder_2 = CLIPTextModelWithProjection(config)
        vae = tiny_vae(64, scaling_factor=0.13025)
        unet = UNet2DConditionModel(
            block_out_channels=(8, 16, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=BLOCKS,
            norm_num_groups=4,
            attention_head_dim=(2, 4, 4),
            cross_attention_dim=sum(WIDTHS),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=TIME,
            projection_class_embeddings_input_dim=POOLED + 6 * TIME,
            sample_size=8,
        )
    scheduler = DDPMScheduler(**NOISE, steps_offset=1)
    return Backbone(
        tokenizer=first,
        text_encoder=text_encoder,
        vae=vae,
        unet=unet,
        scheduler=scheduler,
        name="tiny-xl",
        text_encoder_2=text_encoder_2,
        tokenizer_2=second,
        zeros_for_empty_prompt=True,
    )


def parts_of(backbone: Backbone) -> dict[str, Any]:
    """What a stock pipeline is made of."""
    return {
        "vae": backbone.vae,
        "text_encoder": backbone.text_encoder,
        "text_encoder_2": backbone.text_encoder_2,
        "tokenizer": backbone.tokenizer,
        "tokenizer_2": backbone.tokenizer_2,
        "unet": backbone.unet,
        "scheduler": backbone.scheduler,
    }
