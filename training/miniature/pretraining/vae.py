"""The miniature's autoencoder: AutoencoderKL with 4 latent channels and 16 x 16 latents."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ....utils.config.parsing import Config
from . import data, loop


@dataclass(frozen=True)
class VAEConfig(Config):
    """Widths per level (one level more than there are halvings), and how long to train."""

    channels: tuple[int, ...] = (32, 48, 64)
    steps: int = 2800
    decoder_steps: int = 600
    batch: int = 8
    learning_rate: float = 1.5e-3
    kl_weight: float = 1e-4
    seed: int = 11


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
        norm_num_groups=8,
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


def train(config: VAEConfig, images: np.ndarray, part: loop.Slice, device: str = "cpu") -> AutoencoderKL | None:
    """Train encoder and decoder on uint8 images [count,H,W,3]; None when the time slice ended first."""
    vae = build(config, images.shape[1]).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters = list(vae.parameters())
    return _optimise(vae, parameters, config.steps, config.learning_rate, config, images, part)


def refine_decoder(
    vae: AutoencoderKL, config: VAEConfig, images: np.ndarray, part: loop.Slice, device: str = "cpu"
) -> AutoencoderKL | None:
    """Train the decoder alone for ``decoder_steps`` more: latents, and whoever learned on them, stay as they are."""
    vae.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert vae.post_quant_conv is not None
    parameters = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    later = replace(config, seed=config.seed + 1)
    return _optimise(vae, parameters, config.decoder_steps, 0.5 * config.learning_rate, later, images, part)


def _optimise(
    vae: AutoencoderKL,
    parameters: list[nn.Parameter],
    steps: int,
    peak: float,
    config: VAEConfig,
    images: np.ndarray,
    part: loop.Slice,
) -> AutoencoderKL | None:
    """AdamW on ``parameters``; loss: MSE + L1 + gradient L1 + KL. The averaged model, None when the slice ended."""
    device = vae.device
    optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.98), weight_decay=1e-4)
    average = loop.EMA(vae, 0.999)

    def step(number: int) -> dict[str, float]:
        random = loop.generator(config.seed, number)
        chosen = torch.randint(len(images), (config.batch,), generator=random).sort().values.numpy()
        pixels = data.to_tensor(images[chosen]).to(device, memory_format=torch.channels_last)
        for group in optimizer.param_groups:
            group["lr"] = loop.learning_rate(number, steps, peak)
        with torch.autocast(device.type, torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=random).to(device)
            output = vae.decode(posterior.mean + posterior.std * noise).sample.float()
        mse = F.mse_loss(output, pixels)
        kl = posterior.kl().float().mean() / posterior.mean[0].numel()
        loss = 4 * mse + 0.3 * F.l1_loss(output, pixels) + 0.3 * _gradient_l1(output, pixels) + config.kl_weight * kl
        vae.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.update(number)
        return {"loss": loss.item(), "psnr": float(10 * torch.log10(4 / mse.detach())), "kl": kl.item()}

    if not loop.run(part, {"model": vae, "optimizer": optimizer, "ema": average}, steps, step):
        return None
    vae.load_state_dict(average.state_dict())
    return vae.eval()


@torch.no_grad()
def encode_all(vae: AutoencoderKL, images: np.ndarray, path: Path, device: str = "cpu", batch: int = 128) -> Tensor:
    """Posterior moments of all images, half precision [count, 2, 4, h, w] (mean, log-variance); computed once."""
    if not path.exists():
        moments = []
        for start in range(0, len(images), batch):
            pixels = data.to_tensor(images[start : start + batch]).to(device)
            posterior = vae.encode(pixels).latent_dist
            moments.append(torch.stack([posterior.mean, posterior.logvar], 1).half().cpu())
        loop.save_atomically(torch.cat(moments), path)
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
