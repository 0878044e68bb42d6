"""What is minimised: the denoising error, conditioned on the concept at each sample's own timestep (paper, Eq. 1).

Shapes: B batch, T tokens, D text width; latents are [B, C, h, w].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import Tensor, nn

from ...models.backbone.backbone import Backbone
from ...models.backbone.denoiser import Denoiser
from ...models.conditioning.conditioning import condition, plain_condition
from ...models.conditioning.prompts import SLOT
from ...models.conditioning.tokens import Tokens
from ...models.methods.base import Method
from ...utils.devices import allow_tf32
from ...utils.errors import UserError

TARGETS = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class Batch:
    """One micro-batch, with every random number the objective will use.

    latents, noise: [B, C, h, w] float32; timesteps: [B] long; tokens: the B tokenised prompts;
    generators: one CPU generator per sample, for the method's own randomness (nested dropout).
    weights: soft masks [B, 1, h, w] of where the concept is, none of them empty; None: it may be everywhere.
    plain: the prompts with the super category in the concept's place; with them, what is learned outside the masks is
    what the frozen model predicts for them.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    tokens: Tokens
    generators: Sequence[torch.Generator]
    weights: Tensor | None = None
    plain: Sequence[str] | None = None


class Objective(nn.Module):
    """Batch -> scalar loss, differentiable in the method's parameters and in nothing else.

    The method is the only registered submodule, so `parameters()` is exactly what is trained, and wrapping this module
    in DistributedDataParallel synchronises exactly that. The frozen backbone is reached through plain objects.
    compile_backend: compile the U-Net's training pass with this backend of `torch.compile`, as one graph or not at all.
    allow_tf32: in the frozen parts, forward and backward; the method computes in float32 itself.
    outside_weight: weight of the loss where a batch's masks are 0, beside 1 where they are 1.
    Errors: UserError when the backbone predicts something other than noise or velocity.
    """

    def __init__(
        self,
        method: Method,
        backbone: Backbone,
        *,
        gradient_checkpointing: bool = False,
        compile_backend: str | Callable[..., Any] | None = None,
        allow_tf32: bool = False,
        outside_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.method = method
        self.outside_weight = outside_weight
        self.backbone = backbone
        self.allow_tf32 = allow_tf32
        # The folder's own sampler may be any class (PNDM in SD 1.4); the forward process is DDPM's in all of them.
        self.diffusion = DDPMScheduler.from_config(backbone.scheduler.config)
        self.target = self.diffusion.config["prediction_type"]
        if self.target not in TARGETS:
            raise UserError(
                f"model.pretrained_model_name_or_path={backbone.name}: its scheduler predicts {self.target!r}; "
                f"training supports {' and '.join(TARGETS)}"
            )
        if gradient_checkpointing:
            backbone.text.enable_gradient_checkpointing()
        self.denoiser = Denoiser(
            backbone,
            method.projection(),
            gradient_checkpointing=gradient_checkpointing,
            compile_backend=compile_backend,
        )

        self.frozen = Denoiser(backbone)

    @property
    def num_train_timesteps(self) -> int:
        """Timesteps run over 0 .. this - 1."""
        return int(self.diffusion.config["num_train_timesteps"])

    def forward(self, batch: Batch) -> Tensor:
        """The mean squared error over the micro-batch, a float32 scalar.

        One call of the method serves the batch. Differs from the reference: its nested dropout tosses one coin per
        micro-batch and layer, here every sample has its own, from its own generator. The chances for a sample are the
        same, and the trained concept does not depend on how the samples of one optimizer step are cut into
        micro-batches and processes.

        The method and the loss are float32; the frozen parts run in their own dtype. Autocast stays off so that no
        layer's precision depends on where it is called from.
        """
        noisy = self.diffusion.add_noise(batch.latents, batch.noise, batch.timesteps)
        with torch.autocast(noisy.device.type, enabled=False):
            allow_tf32(False)
            vectors = self.method.vectors(batch.timesteps, generator=batch.generators)
            if self.allow_tf32:
                allow_tf32(True)  # until the gradients arrive back at the method
                if vectors.words.requires_grad:
                    vectors.words.register_hook(lambda _: allow_tf32(False))
            conditioning = condition(
                self.backbone.text,
                batch.tokens,
                {SLOT: vectors},
                self.backbone.frame,
                image_size=self._image_size(noisy),
            )
            if self.training:
                self.method.observe(conditioning)
            predicted = self.denoiser(noisy, batch.timesteps, conditioning)
            target = self._target(batch).float()
            if batch.weights is None:
                return F.mse_loss(predicted, target)
            if batch.plain is not None:
                target = torch.lerp(self._frozen(noisy, batch.timesteps, batch.plain), target, batch.weights)
            weights = batch.weights + (1 - batch.weights) * self.outside_weight
            return weighted_error(predicted, target, weights)

    @torch.no_grad()
    def _frozen(self, noisy: Tensor, timesteps: Tensor, prompts: Sequence[str]) -> Tensor:
        """What the frozen model predicts for prompts without a concept, [B, C, h, w]."""
        conditioning = plain_condition(self.backbone.text, prompts, self.backbone.frame, self._image_size(noisy))
        return self.frozen(noisy, timesteps, conditioning)

    def _image_size(self, latents: Tensor) -> tuple[int, int]:
        factor = self.backbone.vae_scale_factor
        return latents.shape[-2] * factor, latents.shape[-1] * factor

    def _target(self, batch: Batch) -> Tensor:
        if self.target == "epsilon":
            return batch.noise
        return self.diffusion.get_velocity(batch.latents, batch.noise, batch.timesteps)


def weighted_error(predicted: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """The mean over images of each one's mean squared error under its weights [B, 1, h, w], of which none is all zero.

    Normalised per image: a small mask counts as much as a large one, and weights of 1 give the plain mean.
    """
    per_pixel = (predicted - target).square().mean(dim=1, keepdim=True)
    return ((weights * per_pixel).sum(dim=(1, 2, 3)) / weights.sum(dim=(1, 2, 3))).mean()
