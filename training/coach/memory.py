"""How much memory a training step will take, without taking it.

The frozen models are rebuilt as fake tensors (shapes and dtypes, no storage) and run forward once; every tensor that
autograd would keep for the backward pass is counted. So the estimate follows the real code, its attention kernels and
its gradient checkpointing, on any model of the family, in a few seconds and without a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import CLIPTextModel

from ...models.attention.layers import install_space_time_attention
from ...models.backbone.backbone import Backbone
from ...models.backbone.text import final_norm, transformer_states
from ...models.conditioning.conditioning import SpaceTimeConditioning
from ...models.methods import Method

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
    method: Method,
    *,
    dtype: torch.dtype,
    batch_size: int,
    latent_side: int,
    gradient_checkpointing: bool,
) -> MemoryEstimate:
    """Estimate one training step. Only the configs of the backbone's parts are used; its weights may be on "meta"."""
    frozen = sum(part.numel() for module in (backbone.unet, backbone.text_encoder) for part in module.parameters())
    trained = sum(parameter.numel() for parameter in method.parameters())
    with torch.no_grad():
        layers = len(method.vectors(torch.zeros(1, dtype=torch.long)).words)  # 1: all layers share their text rows
    return MemoryEstimate(
        frozen=frozen * dtype.itemsize,
        trained=trained * _TRAINED_COPIES * torch.float32.itemsize,
        activations=_activations(backbone, layers, dtype, batch_size, latent_side, gradient_checkpointing),
    )


def enable_gradient_checkpointing(text_encoder: Any, unet: Any) -> None:
    """Recompute activations in the backward pass instead of keeping them."""
    unet.enable_gradient_checkpointing()
    text_encoder.activation_checkpointing_enable({"use_reentrant": False})
    text_encoder.train()  # transformers checkpoints in train mode only; CLIP has no dropout that this could switch on


def _activations(
    backbone: Backbone, layers: int, dtype: torch.dtype, batch: int, side: int, checkpointing: bool
) -> int:
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with FakeTensorMode():
            unet = UNet2DConditionModel.from_config(backbone.unet.config).requires_grad_(False).eval()
            text_encoder = CLIPTextModel(backbone.text_encoder.config).requires_grad_(False).eval()
            install_space_time_attention(unet)
            if checkpointing:
                enable_gradient_checkpointing(text_encoder, unet)
            counter = _SavedBytes(unet, text_encoder)
            with torch.autograd.graph.saved_tensors_hooks(counter.pack, lambda saved: saved):
                tokens = backbone.tokenizer.model_max_length
                embeddings = torch.empty(layers * batch, tokens, backbone.text_width, requires_grad=True)
                states = transformer_states(text_encoder, embeddings)
                encoded = final_norm(text_encoder, states).unflatten(0, (layers, batch))
                encoded = encoded.expand(backbone.num_layers, -1, -1, -1)
                packed = SpaceTimeConditioning(encoded, encoded).packed()
                latents = torch.empty(batch, backbone.latent_channels, side, side)
                unet(latents, torch.zeros(batch, dtype=torch.long), encoder_hidden_states=packed)
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
