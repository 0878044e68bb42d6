"""Encodings of a point (t, l): denoising timestep and U-Net layer (NeTI, section 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NUM_TIMESTEPS = 1000  # of every Stable Diffusion noise schedule
NUM_FREQUENCIES = 1024  # the paper's


class TimeLayerEncoding(nn.Module):
    """Random Fourier features of (t, l): [sin(w x); cos(w x)] / sqrt(F) with x = (t, l), of norm 1.

    F = `num_frequencies`, 1024 in the paper. The frequencies w [F,2] are drawn once (`draw`), never trained, and saved
    with the concept as a buffer. Their scales sigma_t and sigma_l say how far in t and l two points still look alike:
    <PE(x), PE(y)> is close to exp(-(sigma_t dt)^2 / 2) * exp(-(sigma_l dl)^2 / 2).
    """

    frequencies: Tensor

    def __init__(self, num_frequencies: int = NUM_FREQUENCIES) -> None:
        super().__init__()
        self.width = 2 * num_frequencies
        self.register_buffer("frequencies", torch.zeros(num_frequencies, 2))

    def draw(self, sigma_t: float, sigma_l: float, generator: torch.Generator | None = None) -> None:
        """Draw w: column 0 ~ N(0, sigma_t^2) for t, column 1 ~ N(0, sigma_l^2) for l."""
        sigmas = torch.tensor([sigma_t, sigma_l])
        self.frequencies.copy_(torch.randn(self.frequencies.shape, generator=generator) * sigmas)

    def forward(self, t: Tensor, l: Tensor) -> Tensor:  # noqa: E741  (the paper's symbol)
        """t, l: raw values, broadcastable to [...]. Returns [..., 2F] in float32.

        Float32 whatever the compute dtype: w*t reaches about 30 rad, where half precision is off by 0.01-0.03 rad.
        """
        w = self.frequencies.float()
        phase = t.float()[..., None] * w[:, 0] + l.float()[..., None] * w[:, 1]
        return torch.cat([phase.sin(), phase.cos()], dim=-1) / len(w) ** 0.5

    def anchors(self, num_time_anchors: int, num_layers: int) -> Tensor:
        """Encodings of a grid of anchors, [num_time_anchors * L, 2F]; t is the outer loop, l the inner one.

        They are the initial weight of the mapper's first layer, whose output then starts as the similarity of (t, l) to
        each anchor.
        """
        t = torch.arange(0, NUM_TIMESTEPS, NUM_TIMESTEPS // num_time_anchors)[:num_time_anchors]
        return self(t[:, None], torch.arange(num_layers)).flatten(0, 1)


class NormalizedEncoding(nn.Module):
    """The ablation without positional encoding: t and l, each scaled linearly to [-1, 1]."""

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.width = 2
        self.num_layers = num_layers

    def forward(self, t: Tensor, l: Tensor) -> Tensor:  # noqa: E741  (the paper's symbol)
        """t in 0..999, l in 0..L-1, broadcastable to [...]. Returns [..., 2] in float32."""
        t, layer = torch.broadcast_tensors(t.float(), l.float())
        return torch.stack([2 * t / (NUM_TIMESTEPS - 1) - 1, 2 * layer / max(self.num_layers - 1, 1) - 1], dim=-1)
