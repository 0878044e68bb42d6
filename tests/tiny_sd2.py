"""Stable Diffusion 2.1 (768 pixels) as it is published, with tiny random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.models import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers import DDIMScheduler
from tiny_backbone import NOISE, TOKENIZER, tiny_vae
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


def make_tiny_sd2(folder: Path) -> Path:
    """OpenCLIP's text encoder, velocities, 96x96 latents, padding with "!", attention cast up, linear projections.

    Text width 32 for 1024, one head where there are five: all else is the original's, each oddity of its JSON included.
    """
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=128,
                num_hidden_layers=3,
                num_attention_heads=2,
                max_position_embeddings=77,
                hidden_act="gelu",
                projection_dim=16,
            )
        )
        vae = tiny_vae(768)
        unet = UNet2DConditionModel(
            block_out_channels=(8, 16, 32, 32),
            norm_num_groups=4,
            attention_head_dim=(1, 2, 4, 4),
            cross_attention_dim=32,
            use_linear_projection=True,
            upcast_attention=True,
            sample_size=96,
        )
    scheduler = DDIMScheduler(
        **NOISE,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )
    parts: dict[str, Any] = {"vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer, "unet": unet}
    nothing = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionPipeline(scheduler=scheduler, **parts, **nothing).save_pretrained(folder)
    change(folder / "text_encoder" / "config.json", bos_token_id=0, eos_token_id=2, pad_token_id=1, dtype="float16")
    for path in (folder / "tokenizer").iterdir():
        path.unlink()
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / "tokenizer" / name).write_bytes((TOKENIZER / name).read_bytes())
    change(folder / "tokenizer" / "special_tokens_map.json", pad_token="!")  # its tokenizer_config.json says otherwise
    schedule = folder / "scheduler" / "scheduler_config.json"
    saved = json.loads(schedule.read_text()) | {"skip_prk_steps": True}
    gone = ("timestep_spacing", "thresholding", "rescale_betas_zero_snr", "sample_max_value", "clip_sample_range")
    gone += ("dynamic_thresholding_ratio",)
    schedule.write_text(json.dumps({key: value for key, value in saved.items() if key not in gone}))
    return folder


def change(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
