"""How much memory a training step will take, without taking it.

The frozen models are rebuilt as fake tensors (shapes and dtypes, no storage) and run forward once; every tensor that
autograd would keep for the backward pass is counted. So the estimate follows the real code, its attention kernels and
its gradient checkpointing, on any model of the family, in a few seconds and without a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from ..conditioning.conditioning import Conditioning
from .backbone import Backbone
from .denoiser import Denoiser
from .frame import Frame
from .text import text_stack

GIB = 2**30
_TRAINED_COPIES = 4  # of every trained number: itself, its gradient, AdamW's two moments; all float32


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes: `frozen` weights of U-Net and text encoder (the VAE waits on the CPU), `trained` parameters with gradients
    and moments, `activations` kept for the backward pass of one micro-batch. Temporary working memory and the CUDA
    context come on top.
    """

    frozen: int
    trained: int
    activations: int

    @property
    def total(self) -> int:
        return self.frozen + self.trained + self.activations

    def __str__(self) -> str:
        return (
            f"about {self.total / GIB:.1f} GiB (frozen models {self.frozen / GIB:.2f}, activations "
            f"{self.activations / GIB:.2f}, trained {self.trained / GIB:.2f}) plus working memory"
        )


def estimate_memory(
    backbone: Backbone,
    *,
    trained: int,
    text_rows: int,
    dtype: torch.dtype,
    batch_size: int,
    latent_side: int,
    gradient_checkpointing: bool,
) -> MemoryEstimate:
    """Estimate one training step of a method. Only configs of the backbone's parts are used; weights may be on "meta".

    trained: numbers that are trained. text_rows: of the text encoder per sample, P where every place has words of its
        own and 1 where all share them.
    """
    kept = [backbone.unet, backbone.text_encoder, backbone.text_encoder_2]
    frozen = sum(part.numel() for module in kept if module is not None for part in module.parameters())
    return MemoryEstimate(
        frozen=frozen * dtype.itemsize,
        trained=trained * _TRAINED_COPIES * torch.float32.itemsize,
        activations=_activations(backbone, text_rows, dtype, batch_size, latent_side, gradient_checkpointing),
    )


class _Sketch(NamedTuple):
    unet: UNet2DConditionModel
    frame: Frame


def _activations(
    backbone: Backbone, text_rows: int, dtype: torch.dtype, batch: int, side: int, checkpointing: bool
) -> int:
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with FakeTensorMode():
            unet = UNet2DConditionModel.from_config(backbone.unet.config).requires_grad_(False).eval()
            first = CLIPTextModel(backbone.text_encoder.config).requires_grad_(False).eval()
            second, added = None, {}
            if backbone.text_encoder_2 is not None:
                second = CLIPTextModelWithProjection(backbone.text_encoder_2.config).requires_grad_(False).eval()
                width = int(backbone.text_encoder_2.config.projection_dim or 0)
                pooled = torch.empty(batch, width, requires_grad=True)
                added = {"text_embeds": pooled, "time_ids": torch.empty(batch, 6)}
            text = text_stack(backbone.tokenizer, first, backbone.tokenizer_2, second)
            frame = backbone.frame
            if checkpointing:
                text.enable_gradient_checkpointing()
            denoiser = Denoiser(_Sketch(unet, frame), gradient_checkpointing=checkpointing)
            counter = _SavedBytes(unet, *(tower.encoder for tower in text.towers))
            with torch.autograd.graph.saved_tensors_hooks(counter.pack, lambda saved: saved):
                embeddings = torch.empty(text_rows * batch, frame.tokens, frame.text_width, requires_grad=True)
                encoded = text.finish(text.states(embeddings)).unflatten(0, (text_rows, batch))
                encoded = encoded.expand(frame.num_places, -1, -1, -1)
                latents = torch.empty(batch, backbone.latent_channels, side, side)
                denoiser(latents, torch.zeros(batch, dtype=torch.long), Conditioning(encoded, encoded, added=added))
            return counter.total
    finally:
        torch.set_default_dtype(default)


class _SavedBytes:
    """Adds up the storages autograd saves, each once and without the models' own weights."""

    def __init__(self, *modules: nn.Module) -> None:
        self._weights = {p.untyped_storage()._cdata for module in modules for p in module.parameters()}
        self._saved: dict[int, Tensor] = {}  # keeps the tensors alive, so that no storage address is seen twice

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._weights:
            self._saved[storage._cdata] = tensor
        return tensor

    @property
    def total(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self._saved.values())
