"""Tiny random judges of real classes, and folders of pictures for them to judge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from neti.models.generation.gallery import Gallery
from neti.models.generation.recipes import ImageRecipe

TOKENIZER = Path(__file__).parent / "data" / "tokenizer"
SIDE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def save_clip(folder: Path, seed: int = 0) -> Path:
    """A transformers CLIP folder: 32 px, features of width 8, mean 0.5 and standard deviation 0.25."""
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    text = {
        **SIDE,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 77,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = CLIPConfig(text_config=text, vision_config={**SIDE, "image_size": 32, "patch_size": 8}, projection_dim=8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.25] * 3
    )
    processor.save_pretrained(folder)
    return folder


def save_vit(folder: Path) -> Path:
    """A transformers ViT folder: 32 px, features of width 16."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ViTModel(ViTConfig(**SIDE, image_size=32, patch_size=8), add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def picture(seed: int, width: int = 40, height: int = 40) -> Image.Image:
    """Random colours on a coarse grid, the same for the same seed."""
    grid = np.random.default_rng(seed).integers(0, 256, size=(5, 5, 3), dtype=np.uint8)
    return Image.fromarray(grid).resize((width, height), Image.Resampling.NEAREST)


def recipe(**changes: object) -> ImageRecipe:
    """A recipe as scripts/inference.py makes it."""
    entries: dict = {
        "prompt": "A photo of a {}",
        "negative_prompt": "",
        "seed": 0,
        "truncation": None,
        "steps": 50,
        "guidance_scale": 7.5,
        "scheduler": "dpmsolver++",
        "base_model": "tiny",
        "base_revision": None,
        "concept": "sha256:00",
        "placeholder": "<toy>",
        "torch_dtype": "fp32",
        "safety_checker": False,
    }
    return ImageRecipe(**{**entries, **changes})


def generate(folder: Path, recipes: list[ImageRecipe], first: int = 0, **circumstances: object) -> Path:
    """Write a picture for each recipe, numbered from `first`, and the grids, as scripts/inference.py would."""
    gallery = Gallery(folder)
    for number, entry in enumerate(recipes):
        gallery.add(picture(first + number), entry, circumstances)
    for prompt in dict.fromkeys(entry.prompt for entry in recipes):
        gallery.write_grids([entry for entry in recipes if entry.prompt == prompt])
    return folder


def photos(folder: Path, seeds: range) -> Path:
    """Training images: pictures under plain names."""
    folder.mkdir(parents=True)
    for seed in seeds:
        picture(seed, 48, 40).save(folder / f"{seed}.png")
    return folder
