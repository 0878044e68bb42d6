"""Two small CLIP models, trained contrastively on the world: A conditions the U-Net, B is only ever the judge."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, CLIPVisionModel

from . import data, loop
from .config import HEAD_WIDTH, CLIPSettings
from .tokenizer import MAX_LENGTH

Captions = Callable[[np.ndarray, int], list[str]]  # (scene indices, step) -> one caption each


def build(settings: CLIPSettings, tokenizer: CLIPTokenizer, pixels: int) -> CLIPModel:
    """A transformers CLIPModel with heads of width HEAD_WIDTH and a joint space as wide as the text tower."""
    torch.manual_seed(settings.seed)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": settings.text_width,
        "intermediate_size": 4 * settings.text_width,
        "num_hidden_layers": settings.text_layers,
        "num_attention_heads": settings.text_width // HEAD_WIDTH,
        "max_position_embeddings": MAX_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "projection_dim": settings.text_width,
    }
    vision = {
        "hidden_size": settings.image_width,
        "intermediate_size": 4 * settings.image_width,
        "num_hidden_layers": settings.image_layers,
        "num_attention_heads": settings.image_width // HEAD_WIDTH,
        "image_size": pixels,
        "patch_size": settings.patch,
        "projection_dim": settings.text_width,
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=settings.text_width)
    config._attn_implementation = "eager"  # PyTorch's fused CPU kernel is ten times slower in a bf16 backward pass
    model = CLIPModel(config)
    with torch.no_grad():  # CLIP's own 0.02 suits width 512; token vectors of unit scale let a small tower start faster
        model.text_model.embeddings.token_embedding.weight.mul_(5.0)
    return model


def normalise(pixels: Tensor) -> Tensor:
    """Images in -1..1 to CLIP's input statistics (mean 0.5, standard deviation 0.25 in 0..1)."""
    return pixels * 2.0


def preprocessing(model: CLIPModel | CLIPVisionModel) -> dict[str, object]:
    """``normalise`` as the CLIPImageProcessor config that belongs beside the weights."""
    vision: Any = getattr(model.config, "vision_config", model.config)
    side = vision.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": 1,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.25] * 3,
    }


def augment(pixels: Tensor, random: torch.Generator) -> Tensor:
    """Small shifts, blur and noise, so that a judge does not mind the softness of generated images."""
    shift = torch.randint(-4, 5, (2,), generator=random).tolist()
    pixels = torch.roll(F.pad(pixels, (4, 4, 4, 4), mode="replicate"), shift, dims=(2, 3))[..., 4:-4, 4:-4]
    if torch.rand((), generator=random) < 0.4:
        pixels = F.interpolate(F.avg_pool2d(pixels, 2), scale_factor=2.0, mode="bilinear")
    level = 0.12 * float(torch.rand((), generator=random))
    return pixels + level * torch.randn(pixels.shape, generator=random).to(pixels)


def tokenise(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids [B, MAX_LENGTH]."""
    batch = tokenizer(captions, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt")
    return batch["input_ids"]


def draw(
    alike: tuple[data.Grouping, data.Grouping], count: int, settings: CLIPSettings, random: torch.Generator
) -> np.ndarray:
    """The scenes of one batch, sorted: any of ``count``, or (hard negatives) any of one group of a grouping."""
    anywhere = torch.randint(count, (settings.batch,), generator=random)
    at = float(torch.rand((), generator=random))
    if at >= sum(settings.alike):
        return anywhere.sort().values.numpy()
    groups = alike[0] if at < settings.alike[0] else alike[1]
    group = groups[int(torch.randint(len(groups), (), generator=random))]
    return np.sort(group[(anywhere % len(group)).numpy()])


def train(
    settings: CLIPSettings,
    tokenizer: CLIPTokenizer,
    images: np.ndarray,
    captions: Captions,
    alike: tuple[data.Grouping, data.Grouping],
    part: loop.Slice,
    device: torch.device = loop.CPU,
) -> CLIPModel | None:
    """Symmetric InfoNCE over image and caption batches; None when the time slice ended first.

    images: uint8 [count,H,W,3]; alike: the groupings that hard negatives come from (``data.alike``).
    """
    model: Any = build(settings, tokenizer, images.shape[1])
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.05)

    def loss(step: int) -> dict[str, Tensor]:
        random = loop.generator(settings.seed, step)
        chosen = draw(alike, len(images), settings, random)
        pixels = normalise(augment(data.to_tensor(images[chosen]), random)).to(device)
        ids = tokenise(tokenizer, captions(chosen, step)).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            output = model(input_ids=ids, pixel_values=pixels)
        logits = output.logits_per_text.float()
        target = torch.arange(len(chosen), device=device)
        value = 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target))
        return {"loss": value, "accuracy": (logits.argmax(1) == target).float().mean()}

    trained: Any = loop.run(part, model, optimizer, settings.steps, loss, ema=0.995, warmup=100)
    return trained
