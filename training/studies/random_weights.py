"""Stable Diffusion's architectures with random weights: what speed and memory depend on, without a download."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from diffusers.schedulers import DDPMScheduler
from transformers import CLIPConfig, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ...models.backbone.backbone import Backbone
from ...models.backbone.files.quiet import without_warnings
from ...models.backbone.files.single_file import FAMILIES, TOKENIZER
from ...models.backbone.loading import BUNDLED, CLASSES
from ...models.backbone.safety import SafetyChecker


def sd14(device: str | torch.device, dtype: torch.dtype) -> Backbone:
    """The model on a device, or on "meta" without any weights.

    Texts are split by the miniature's tokenizer, whose ids all lie in SD's vocabulary, into SD's 77 tokens.
    """
    tokenizer = CLIPTokenizer.from_pretrained(BUNDLED["miniature"] / "tokenizer")
    tokenizer.model_max_length = 77
    with _born(device, dtype):
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
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    return Backbone(
        tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, unet=unet, scheduler=scheduler, name="sd14"
    )


def sdxl(device: str | torch.device, dtype: torch.dtype) -> Backbone:
    """Stable Diffusion XL, likewise, of the settings that come with the project."""
    folder = FAMILIES / "stable-diffusion-xl"
    tokenizers = [CLIPTokenizer.from_pretrained(TOKENIZER, pad_token=pad) for pad in ("<|endoftext|>", "!")]
    parts: dict[str, Any] = {}
    with _born(device, dtype):
        for name, model_class in CLASSES.items():
            if name.startswith("text_encoder"):
                parts[name] = model_class(CLIPTextConfig.from_pretrained(folder / name))
            else:
                parts[name] = model_class.from_config(model_class.load_config(folder / name))
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    return Backbone(tokenizer=tokenizers[0], tokenizer_2=tokenizers[1], scheduler=scheduler, name="sdxl", **parts)


def safety_checker(device: str | torch.device, dtype: torch.dtype) -> SafetyChecker:
    """The checker that comes with the model, a CLIP ViT-L/14, likewise."""
    with without_warnings():  # imported here: takes seconds, and few need it
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
        from transformers import CLIPImageProcessor

    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    config = CLIPConfig(vision_config={**vision, "patch_size": 14, "projection_dim": 768}, projection_dim=768)
    with _born(device, dtype):
        checker = StableDiffusionSafetyChecker(config)
    return SafetyChecker(checker.eval().requires_grad_(False), CLIPImageProcessor())


@contextmanager
def _born(device: str | torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Modules that are made here are on the device and in the precision at once, never in float32 first."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(usual)
