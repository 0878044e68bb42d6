"""The only caller of a U-Net: latents, timesteps and a conditioning in, a prediction out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from diffusers.models import UNet2DConditionModel
from torch import Tensor, nn

from ..attention.processor import PlacedAttnProcessor
from ..attention.projection import KeyValueProjection
from ..conditioning.conditioning import Conditioning
from .frame import Frame


class HasUNet(Protocol):
    """A `Backbone`, as far as it is needed here."""

    @property
    def unet(self) -> UNet2DConditionModel: ...

    @property
    def frame(self) -> Frame: ...


class Denoiser:
    """Predicts the noise (or the velocity) in noisy latents, given a conditioning.

    It works on a VIEW of the backbone's U-Net: the same parameters, hooks and settings, in modules of its own, whose
    cross-attention layers read a packed conditioning. The U-Net itself is never touched. So any number of denoisers,
    with different projections and in different threads, and stock pipelines beside them, share one U-Net.

    gradient_checkpointing: recompute activations in the backward pass. compile_backend: of `torch.compile`; the
    prediction is compiled as one graph or not at all.
    """

    def __init__(
        self,
        backbone: HasUNet,
        projection: KeyValueProjection | None = None,
        *,
        gradient_checkpointing: bool = False,
        compile_backend: str | Callable[..., Any] | None = None,
    ) -> None:
        self.frame = backbone.frame
        self.projection = projection or KeyValueProjection()
        unet: Any = view_of(backbone.unet, {})
        for layer in self.frame.layers:
            unet.get_submodule(layer.path).set_processor(PlacedAttnProcessor(layer, self.frame, self.projection))
        if gradient_checkpointing:
            unet.enable_gradient_checkpointing()

        def predict(noisy: Tensor, timesteps: Tensor, packed: Tensor, added: dict[str, Tensor] | None) -> Tensor:
            return unet(noisy, timesteps, encoder_hidden_states=packed, added_cond_kwargs=added).sample

        self._predict: Callable[..., Tensor] = predict
        if compile_backend is not None:
            self._predict = torch.compile(predict, fullgraph=True, backend=compile_backend)
        self._weight = unet.conv_in.weight  # `unet.dtype` walks through all its modules, too slow for every step

    def __call__(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """latents [B,C,h,w], timesteps [] or [B] -> prediction [B,C,h,w] in float32, whatever the U-Net's dtype."""
        dtype = self._weight.dtype
        added = {name: tensor.to(dtype) for name, tensor in conditioning.added.items()}
        return self._predict(latents.to(dtype), timesteps, conditioning.packed().to(dtype), added or None).float()


def view_of(module: nn.Module, seen: dict[nn.Module, nn.Module]) -> nn.Module:
    """Modules of their own around the same parameters and buffers; a later `.to()` of either is seen by both."""
    if module not in seen:
        view = seen[module] = module.__class__.__new__(module.__class__)
        view.__dict__.update(module.__dict__)  # the dicts of parameters, buffers and hooks are shared
        children = module._modules
        view.__dict__["_modules"] = {
            name: None if child is None else view_of(child, seen) for name, child in children.items()
        }
    return seen[module]
