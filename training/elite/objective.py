"""What is minimised: the denoising error with a concept that was encoded from one picture, and a small regulariser.

Shapes: B batch, E patches, D text width; latents are [B, C, h, w].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import Tensor, nn

from ...models.backbone.backbone import Backbone
from ...models.backbone.denoiser import Denoiser
from ...models.conditioning.conditioning import ConceptVectors, Conditioning, condition, plain_condition
from ...models.conditioning.prompts import SLOT
from ...models.conditioning.tokens import tokenize
from ...models.methods.elite.encoder import Encoder, patch_mask
from ...models.methods.elite.mappers import GlobalMapper, LocalMapper
from ...models.methods.elite.projection import ELITEProjection
from ...utils.errors import UserError
from ..coach.objective import TARGETS
from .config import GLOBAL, LOCAL, Stage
from .samples import Collated


@dataclass(frozen=True)
class Noised:
    """A micro-batch with every random number the objective uses: latents, noise [B,C,h,w] float32, timesteps [B]."""

    samples: Collated
    latents: Tensor
    noise: Tensor
    timesteps: Tensor


class EncoderObjective(nn.Module):
    """Micro-batch -> scalar loss, differentiable in the mapper of its stage (and the vision tower, if that is trained).

    Only what is trained is registered as a submodule, so that `parameters()` is exactly that.
    regularisation: the regulariser's weight. noise_emphasis: a sample's loss weighs snr ** -noise_emphasis (mean 1).
    name_target, name_states: see `training.elite.config`; they need samples whose nouns are known.
    """

    def __init__(
        self,
        encoder: Encoder,
        backbone: Backbone,
        stage: Stage,
        *,
        regularisation: float,
        noise_emphasis: float = 0.0,
        name_target: float = 0.0,
        name_states: float = 0.0,
        train_vision: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.stage, self.regularisation = stage, regularisation
        self.name_target, self.name_states = name_target, name_states
        self.encoder, self.backbone = encoder, backbone  # plain objects: not registered
        self.mapper: GlobalMapper | LocalMapper = encoder.of_words
        if stage is LOCAL:
            assert encoder.of_patches is not None
            self.mapper = encoder.of_patches
        self.mapper.requires_grad_(True)
        self.vision = encoder.vision if train_vision else None
        self.diffusion = DDPMScheduler.from_config(backbone.scheduler.config)
        if (target := self.diffusion.config["prediction_type"]) not in TARGETS:
            raise UserError(
                f"model.pretrained_model_name_or_path = {backbone.name}: its scheduler predicts {target!r}; training "
                f"supports {' and '.join(TARGETS)}"
            )
        snr = self.diffusion.alphas_cumprod / (1 - self.diffusion.alphas_cumprod)
        weights = snr**-noise_emphasis
        self.weights: Tensor
        self.register_buffer("weights", weights / weights.mean(), persistent=False)
        self.projection = ELITEProjection(
            encoder.of_words,
            encoder.of_patches if stage is LOCAL else None,
            image_tokens=encoder.vision.patches,
        )
        if gradient_checkpointing:
            backbone.text.enable_gradient_checkpointing()
        self.denoiser = Denoiser(backbone, self.projection, gradient_checkpointing=gradient_checkpointing)
        self.frozen = Denoiser(backbone)

    @property
    def num_train_timesteps(self) -> int:
        """Timesteps run over 0 .. this - 1."""
        return int(self.diffusion.config["num_train_timesteps"])

    def forward(self, batch: Noised) -> Tensor:
        """The weighted mean squared error where the target is a picture, plus the regulariser; a float32 scalar.

        What is trained, and the loss, are float32, and the frozen models run in their own dtype: autocast stays off.
        """
        with torch.autocast(batch.latents.device.type, enabled=False):
            return self._loss(batch)

    def _loss(self, batch: Noised) -> Tensor:
        backbone, samples = self.backbone, batch.samples
        words, patches = self._encode(samples)
        tokens = tokenize(backbone.tokenizer, samples.texts, {SLOT: samples.words})
        concept = ConceptVectors(words[None, :, : samples.words], image=patches)
        conditioning = condition(backbone.text, tokens, {SLOT: concept}, backbone.frame)
        self.projection.words = samples.words
        noisy = self.diffusion.add_noise(batch.latents, batch.noise, batch.timesteps)
        predicted = self.denoiser(noisy, batch.timesteps, conditioning)
        target = self._target(batch)
        if self.name_target or self.name_states:
            named = self._named(samples)
        if self.name_target:
            with torch.no_grad():
                target = torch.lerp(target, self.frozen(noisy, batch.timesteps, named), self.name_target)
        error = F.mse_loss(predicted, target, reduction="none")
        valid = F.interpolate(samples.valid, error.shape[-2:], mode="area")
        weights = self.weights[batch.timesteps][:, None, None, None]
        if self.stage is GLOBAL:
            loss = (weights * error).mean() + self.regularisation * words.abs().mean()
            if self.name_states and samples.words == 1:
                ids = [backbone.tokenizer(noun, add_special_tokens=False).input_ids for noun in samples.nouns]
                lengths = torch.tensor([len(each) for each in ids])
                slots = tokens.slots[SLOT].long().argmax(1)
                loss = loss + self.name_states * states_distance(conditioning.keys[0], named.keys[0], slots, lengths)
            return loss
        # as in the official code the error is summed over the channels, which its regulariser's weight is made for
        loss = (weights * error * valid).sum() / valid.sum().clamp_min(1)
        assert patches is not None
        values = [self.mapper.project(layer, "v", patches).abs().mean() for layer in backbone.frame.layers]
        return loss + self.regularisation * torch.stack(values).mean()

    def _encode(self, samples: Collated) -> tuple[Tensor, Tensor | None]:
        """words [B,5,D], and patches [B,E,D] in stage local."""
        encoder = self.encoder
        with torch.set_grad_enabled(self.vision is not None):
            features = encoder.vision(samples.image)
        if encoder.of_patches is None or self.stage is GLOBAL:
            return encoder.of_words(features), None
        with torch.no_grad():
            words = encoder.of_words(features)
            of_object = encoder.vision(samples.object)
        return words, encoder.of_patches(of_object, patch_mask(samples.mask, encoder.vision.grid))

    @torch.no_grad()
    def _named(self, samples: Collated) -> Conditioning:
        """The prompts with the objects' names in the place of the concept."""
        texts = [text.replace(SLOT, noun) for text, noun in zip(samples.texts, samples.nouns, strict=True)]
        return plain_condition(self.backbone.text, texts, self.backbone.frame)

    def _target(self, batch: Noised) -> Tensor:
        if self.diffusion.config["prediction_type"] == "epsilon":
            return batch.noise
        return self.diffusion.get_velocity(batch.latents, batch.noise, batch.timesteps)


def states_distance(own: Tensor, named: Tensor, start: Tensor, lengths: Tensor) -> Tensor:
    """1 - cosine of text states [B,T,D]: of w0 with the last token of the name, plus the mean over the tokens behind.

    start [B]: where w0, or the name, begins; lengths [B]: of the names in tokens. What a name says with several tokens
    w0 has to say with one; the tokens behind w0 stand that many positions earlier than those behind the name.
    """
    start, longer = start.to(own.device)[:, None], lengths.to(own.device)[:, None] - 1
    position = torch.arange(own.shape[1], device=own.device)[None]
    partner = (position + longer).clamp_max(own.shape[1] - 1)
    distance = 1 - F.cosine_similarity(own, named.gather(1, partner[..., None].expand_as(named)), dim=-1)
    behind = (position > start) & (position + longer < own.shape[1])
    return distance.gather(1, start).mean() + distance[behind].mean()
