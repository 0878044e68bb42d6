"""The vision tower of the miniature's ELITE encoder: a small CLIP tower that learns to see what the text encoder reads.

Contrastive training against the miniature's frozen text encoder, on scenes that are drawn as they are needed. It is a
third tower, apart from CLIP A's and the judge's: who encodes a concept must not be who judges the pictures of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModel

from ..world import captions
from ..world.world import Scene, World, is_held_out
from . import data, loop
from .clip import augment, normalise, tokenise
from .config import HEAD_WIDTH, VisionSettings

SCENES_SEED = 41  # scenes of no other stage


def build(settings: VisionSettings, pixels: int) -> CLIPVisionModel:
    """A transformers CLIPVisionModel with heads of width HEAD_WIDTH."""
    torch.manual_seed(settings.seed)
    config = CLIPVisionConfig(
        hidden_size=settings.width,
        intermediate_size=4 * settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.width // HEAD_WIDTH,
        image_size=pixels,
        patch_size=settings.patch,
    )
    config._attn_implementation = "eager"  # as in clip.build: fast in bf16 on a CPU
    return CLIPVisionModel(config)


def draw_scenes(world: World, settings: VisionSettings, step: int) -> list[Scene]:
    """The scenes of one batch, all of one place and style or of any."""
    scenes = [world.scene(SCENES_SEED, step * settings.batch + k) for k in range(settings.batch)]
    if np.random.default_rng((settings.seed, step)).random() < settings.alike:
        alike = [replace(scene, place=scenes[0].place, style=scenes[0].style) for scene in scenes]
        scenes = [scene if is_held_out(changed) else changed for scene, changed in zip(scenes, alike, strict=True)]
    return scenes


def pictures(world: World, scenes: list[Scene], pixels: int, masked: list[bool]) -> Tensor:
    """The scenes [B,3,H,W] in -1..1, those that ``masked`` [B] names with all but the object black."""
    drawn = []
    for scene, on_black in zip(scenes, masked, strict=True):
        image, mask = world.render_with_mask(scene, pixels)
        pixel = np.asarray(image, np.float32)
        drawn.append(pixel * (np.asarray(mask, np.float32)[..., None] > 127) if on_black else pixel)
    return data.to_tensor(np.stack(drawn).astype(np.uint8))


class Contrast(nn.Module):
    """The tower and what only its training needs: both projections into the joint space, and the temperature."""

    def __init__(self, tower: CLIPVisionModel, text_width: int) -> None:
        super().__init__()
        self.tower = tower
        width = tower.config.hidden_size
        self.of_image = nn.Linear(width, width, bias=False)
        self.of_text = nn.Linear(text_width, width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(2.6))

    def forward(self, pixels: Tensor, text: Tensor) -> Tensor:
        """pixels [B,3,H,W], pooled text [B,D] -> logits [B,B], a row per text."""
        tower: Any = self.tower
        image = F.normalize(self.of_image(tower(pixel_values=pixels).pooler_output).float(), dim=-1)
        words = F.normalize(self.of_text(text).float(), dim=-1)
        return self.log_scale.exp().clamp(max=100) * words @ image.t()


def train(
    settings: VisionSettings,
    world: World,
    pixels: int,
    text: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    part: loop.Slice,
    device: torch.device = loop.CPU,
) -> CLIPVisionModel | None:
    """Symmetric InfoNCE over pictures and the captions that the frozen text encoder reads; None when time ran out."""
    encoder: Any = text.requires_grad_(False).eval()
    encoder.to(device)
    model: Any = Contrast(build(settings, pixels), text.config.hidden_size).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.05)

    def loss(step: int) -> dict[str, Tensor]:
        random = loop.generator(settings.seed, step)
        masked = (torch.rand(settings.batch, generator=random) < settings.masked).tolist()
        scenes = [
            replace(scene, place="plain", style="photo") if on_black else scene  # on black nothing tells either
            for scene, on_black in zip(draw_scenes(world, settings, step), masked, strict=True)
        ]
        images = normalise(augment(pictures(world, scenes, pixels, masked), random)).to(device)
        draws = [np.random.default_rng((settings.seed, step, k)) for k in range(len(scenes))]
        texts = [captions.caption(scene, rng) for scene, rng in zip(scenes, draws, strict=True)]
        ids = tokenise(tokenizer, texts).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                pooled = encoder(ids).pooler_output
            logits = model(images, pooled)
        target = torch.arange(len(scenes), device=device)
        value = 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target))
        return {"loss": value, "accuracy": (logits.argmax(1) == target).float().mean()}

    trained: Any = loop.run(part, model, optimizer, settings.steps, loss, ema=0.995, warmup=100)
    return None if trained is None else trained.tower
