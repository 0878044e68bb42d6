"""What is minimised: the denoising error, conditioned on the concept at each sample's own timestep (paper, Eq. 1).

Shapes: B batch, T tokens, D text width; latents are [B, C, h, w].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import Tensor, nn

from ..models.backbone import Backbone
from ..models.conditioning import ConceptVectors, Tokens, condition
from ..models.methods.base import Method
from ..models.unet_layers import install_space_time_attention
from ..utils.errors import UserError

TARGETS = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class Batch:
    """One micro-batch, with every random number the objective will use.

    latents, noise: [B, C, h, w] float32; timesteps: [B] long; tokens: the B tokenised prompts;
    generators: one CPU generator per sample, for the method's own randomness (nested dropout).
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    tokens: Tokens
    generators: Sequence[torch.Generator]


class Objective(nn.Module):
    """Batch -> scalar loss, differentiable in the method's parameters and in nothing else.

    The method is the only registered submodule, so `parameters()` is exactly what is trained, and wrapping this module
    in DistributedDataParallel synchronises exactly that. The frozen backbone is reached through a plain object.

    Installs the space-time attention processors in the backbone's U-Net.
    Errors: UserError when the backbone predicts something other than noise or velocity.
    """

    def __init__(self, method: Method, backbone: Backbone, placeholder: str) -> None:
        super().__init__()
        self.method = method
        self.backbone = backbone
        self.placeholder = placeholder
        # The folder's own sampler may be any class (PNDM in SD 1.4); the forward process is DDPM's in all of them.
        self.diffusion = DDPMScheduler.from_config(backbone.scheduler.config)
        self.target = self.diffusion.config["prediction_type"]
        if self.target not in TARGETS:
            raise UserError(
                f"model.pretrained_model_name_or_path={backbone.name}: its scheduler predicts {self.target!r}; "
                f"training supports {' and '.join(TARGETS)}"
            )
        install_space_time_attention(backbone.unet)

    @property
    def num_train_timesteps(self) -> int:
        """Timesteps run over 0 .. this - 1."""
        return int(self.diffusion.config["num_train_timesteps"])

    def forward(self, batch: Batch) -> Tensor:
        """The mean squared error over the micro-batch, a float32 scalar.

        The method and the loss are float32; the frozen parts run in their own dtype. Autocast stays off so that no
        layer's precision depends on where it is called from.
        """
        unet = self.backbone.unet
        noisy = self.diffusion.add_noise(batch.latents, batch.noise, batch.timesteps)
        with torch.autocast(noisy.device.type, enabled=False):
            vectors = self._vectors(batch)
            conditioning = condition(
                self.backbone.text_encoder, batch.tokens, {self.placeholder: vectors}, self.backbone.num_layers
            )
            predicted = unet(
                noisy.to(unet.dtype), batch.timesteps, encoder_hidden_states=conditioning.packed().to(unet.dtype)
            ).sample
            return F.mse_loss(predicted.float(), self._target(batch).float())

    def _target(self, batch: Batch) -> Tensor:
        if self.target == "epsilon":
            return batch.noise
        return self.diffusion.get_velocity(batch.latents, batch.noise, batch.timesteps)

    def _vectors(self, batch: Batch) -> ConceptVectors:
        """The concept's vectors at each sample's timestep, one call per sample.

        Differs from the reference: its nested dropout tosses one coin per micro-batch and layer, here every sample has
        its own. The chances for a sample are the same, and the trained concept does not depend on how the samples of
        one optimizer step are cut into micro-batches and processes.
        """
        each = [
            self.method.vectors(timestep[None], generator=generator)
            for timestep, generator in zip(batch.timesteps, batch.generators, strict=True)
        ]
        words = torch.cat([vectors.words for vectors in each], dim=1)
        bypass = [vectors.bypass for vectors in each if vectors.bypass is not None]
        return ConceptVectors(
            words=words, bypass=torch.cat(bypass, dim=1) if bypass else None, bypass_alpha=each[0].bypass_alpha
        )
