"""The frozen text-to-image model: its parts, how to load them, and the sizes everything else is derived from."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from diffusers.schedulers import DDPMScheduler
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerBase

from ...utils.devices import pick_device
from ..attention.layers import cross_attention_layers
from .frame import Frame
from .loading import WEIGHTS, load_parts
from .text import TextStack, text_stack


@dataclass
class Backbone:
    """A model of the Stable Diffusion family: 1.x, 2.x or XL. Every part is frozen and in eval mode.

    name: what it was loaded by (a hub repository, a folder, or "miniature").
    scheduler: the model's own; samplers and the training noise are built from its config.
    text_encoder_2, tokenizer_2: of SDXL, with the pooled text. zeros_for_empty_prompt: what its U-Net was trained on in
        the place of an empty prompt.
    """

    tokenizer: PreTrainedTokenizerBase
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: DDPMScheduler
    name: str
    text_encoder_2: CLIPTextModelWithProjection | None = None
    tokenizer_2: PreTrainedTokenizerBase | None = None
    zeros_for_empty_prompt: bool = False

    def __post_init__(self) -> None:
        for part in self._modules():
            part.requires_grad_(False).eval()
        # some folders leave this unset; the position table is what really bounds a prompt
        positions = self.text_encoder.config.max_position_embeddings
        self.tokenizer.model_max_length = min(self.tokenizer.model_max_length, positions)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        *,
        revision: str | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        components: Collection[str] = tuple(WEIGHTS),
    ) -> Backbone:
        """Load a diffusers-format model: a hub repository, a local folder, or "miniature" (bundled).

        components: the parts whose WEIGHTS are wanted, of "text_encoder", "vae", "unet". The others are built from
            their config alone, on torch's "meta" device: sizes and layers are known, no weights are read or fetched.
        Raises UserError (one line: what was tried, what to do) for a missing or incomplete folder, no network and
        nothing cached, and a device this machine does not have.
        """
        place = pick_device(str(device))  # a device that is not there is reported before anything is read
        parts = load_parts(name_or_path, revision=revision, dtype=dtype, weights=components)
        return cls(name=name_or_path, **parts).to(place)

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> Backbone:
        """Move (and cast) every part that has weights; returns itself."""
        for part in self._modules():
            if not next(part.parameters()).is_meta:
                part.to(device)
                if dtype is not None:
                    part.to(dtype)
        return self

    def _modules(self) -> tuple[nn.Module, ...]:
        encoders = (self.text_encoder, self.text_encoder_2)
        return (*(encoder for encoder in encoders if encoder is not None), self.vae, self.unet)

    @cached_property
    def frame(self) -> Frame:
        """Its layers and sizes: what a concept is made for."""
        return Frame(cross_attention_layers(self.unet), self.text.widths, self.tokenizer.model_max_length)

    @property
    def text(self) -> TextStack:
        """The text encoders, in the stages that a concept needs."""
        return text_stack(self.tokenizer, self.text_encoder, self.tokenizer_2, self.text_encoder_2)

    @property
    def latent_channels(self) -> int:
        """Channels of a latent (4)."""
        return self.unet.config["in_channels"]

    @property
    def latent_size(self) -> int:
        """Side of the latents the U-Net was trained on (64 on SD 1.x)."""
        return self.unet.config["sample_size"]

    @property
    def vae_scale_factor(self) -> int:
        """Image side divided by latent side (8 on SD 1.x)."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def image_size(self) -> int:
        """Side in pixels of the images the model was trained on (512 on SD 1.x)."""
        return self.latent_size * self.vae_scale_factor

    def word_embedding(self, word: str, rule: Literal["single", "mean"] = "single") -> Tensor:
        """The token embedding [D] (float32) of a super-category word; see `TextStack.word_embedding`."""
        return self.text.word_embedding(word, rule)
