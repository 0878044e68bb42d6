"""The miniature's autoencoder: AutoencoderKL with 4 latent channels and 16 x 16 latents."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models import AutoencoderKL
from torch import Tensor, nn

from . import data, loop
from .config import VAE_NORM_GROUPS, VAEConfig


def build(config: VAEConfig, pixels: int) -> AutoencoderKL:
    """A small AutoencoderKL without attention; its posterior starts almost without noise (log-variance -8)."""
    levels = len(config.channels)
    torch.manual_seed(config.seed)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.channels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=VAE_NORM_GROUPS,
        sample_size=pixels,
        mid_block_add_attention=False,
    )
    with torch.no_grad():
        assert vae.quant_conv is not None and vae.quant_conv.bias is not None
        vae.quant_conv.bias[4:].fill_(-8.0)
        vae.quant_conv.weight[4:].mul_(0.1)
    return vae


def _gradient_l1(a: Tensor, b: Tensor) -> Tensor:
    """L1 distance of horizontal and vertical differences: keeps outlines sharp."""
    return F.l1_loss(a.diff(dim=-1), b.diff(dim=-1)) + F.l1_loss(a.diff(dim=-2), b.diff(dim=-2))


def train(
    config: VAEConfig, images: np.ndarray, part: loop.Slice, device: torch.device = loop.CPU
) -> AutoencoderKL | None:
    """Train encoder and decoder on uint8 images [count,H,W,3]; None when the time slice ended first."""
    vae = build(config, images.shape[1]).to(device)
    return _optimise(vae, list(vae.parameters()), config.steps, config, images, part)


def refine_decoder(
    vae: AutoencoderKL, config: VAEConfig, images: np.ndarray, part: loop.Slice, device: torch.device = loop.CPU
) -> AutoencoderKL | None:
    """Train the decoder alone for ``decoder_steps`` more: latents, and whoever learned on them, stay as they are."""
    assert vae.post_quant_conv is not None
    parameters = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    later = replace(config, seed=config.seed + 1, learning_rate=0.5 * config.learning_rate)
    return _optimise(vae.to(device), parameters, config.decoder_steps, later, images, part)


def _optimise(
    vae: AutoencoderKL,
    parameters: list[nn.Parameter],
    steps: int,
    config: VAEConfig,
    images: np.ndarray,
    part: loop.Slice,
) -> AutoencoderKL | None:
    """AdamW on ``parameters``; loss: MSE + L1 + gradient L1 + KL."""
    device = vae.device
    vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=1e-4)

    def loss(step: int) -> dict[str, Tensor]:
        random = loop.generator(config.seed, step)
        chosen = torch.randint(len(images), (config.batch,), generator=random).sort().values.numpy()
        pixels = data.to_tensor(images[chosen]).to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=random).to(device)
            output = vae.decode(posterior.mean + posterior.std * noise).sample.float()
        mse = F.mse_loss(output, pixels)
        kl = posterior.kl().float().mean() / posterior.mean[0].numel()
        value = 4 * mse + 0.3 * F.l1_loss(output, pixels) + 0.3 * _gradient_l1(output, pixels) + config.kl_weight * kl
        return {"loss": value, "psnr": 10 * torch.log10(4 / mse.detach()), "kl": kl.detach()}

    trained: Any = loop.run(part, vae, optimizer, steps, loss, ema=0.999)
    return trained


@torch.no_grad()
def encode_all(
    vae: AutoencoderKL, images: np.ndarray, path: Path, device: torch.device = loop.CPU, batch: int = 128
) -> Tensor:
    """Posterior moments of all images, half precision [count, 2, 4, h, w] (mean, log-variance); computed once."""
    if not path.exists():
        moments = []
        for start in range(0, len(images), batch):
            pixels = data.to_tensor(images[start : start + batch]).to(device)
            posterior = vae.encode(pixels).latent_dist
            moments.append(torch.stack([posterior.mean, posterior.logvar], 1).half().cpu())
        loop.save(torch.cat(moments), path)
    return torch.load(path, weights_only=True)


def scaling_factor(moments: Tensor) -> float:
    """1 / standard deviation of the latents, as SD defines ``vae.config.scaling_factor``."""
    return float(1 / moments[:, 0].float().std())


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: np.ndarray, batch: int = 64) -> Sequence[float]:
    """Reconstruction PSNR in dB per image (posterior mean, output clipped to the valid range)."""
    values: list[float] = []
    for start in range(0, len(images), batch):
        pixels = data.to_tensor(images[start : start + batch])
        output = vae.decode(vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
        mse = (output - pixels).pow(2).flatten(1).mean(1).clamp_min(1e-8)
        values += (10 * torch.log10(4 / mse)).tolist()
    return values
