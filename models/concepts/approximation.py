"""A concept that speaks differently to every layer and timestep, forced into ordinary embeddings; and what that costs.

A Textual Inversion embedding is one vector for all layers and timesteps. What gets lost on the way to it is measured on
the base model, in units that need no training image: how far the U-Net's noise prediction moves away from the concept's
own, where the prediction for the plain super-category word is 1 away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ...utils.errors import UserError
from ..backbone.backbone import Backbone
from ..backbone.denoiser import Denoiser
from ..conditioning.conditioning import ConceptVectors, condition, join
from ..conditioning.tokens import tokenize
from ..generation.sampling import SamplingConfig, denoise, initial_latents, prepare_conditioning
from ..methods import XTI, Method, Start, TextualInversion, WordVectorsConfig
from ..methods.neti.positional_encoding import NUM_TIMESTEPS
from .concept import Concept

TIMESTEPS = (900, 700, 500, 300, 100)  # at which predictions are compared
SEEDS = range(4)  # of the images they are compared on
NOISE_SEEDS = range(4, 8)  # of the noise added to these: other noise than they grew from
SAMPLING = SamplingConfig(steps=10)


class _HasVectors(Protocol):
    @property
    def positions(self) -> int: ...
    def vectors(self, timesteps: Tensor) -> ConceptVectors: ...


@dataclass(frozen=True)
class Loss:
    """Distance of the U-Net's prediction from the concept's, in units of the plain word's: 0 is the concept itself, 1
    no nearer than the word. by_timestep: at each of TIMESTEPS; overall: of all of them together."""

    by_timestep: dict[int, float]
    overall: float


def mean_embedding(concept: Concept, timestep: int) -> Concept:
    """The mean over the layers of a concept's words at a timestep, as a Textual Inversion concept.

    Its norm is left as it is; the text encoder normalises what it reads.
    """
    return _embedding(concept, concept.placeholder, _words(concept, timestep).mean(dim=0))


def layer_embeddings(concept: Concept, timestep: int, layer_names: Sequence[str]) -> dict[str, Concept]:
    """A concept's words at a timestep, one Textual Inversion concept per layer: `<toy>` becomes `<toy-IN01>`, ..."""
    words = _words(concept, timestep)
    words = words.expand(len(layer_names), *words.shape[1:])
    stem = concept.placeholder.removesuffix(">")
    end = concept.placeholder[len(stem) :]
    return {
        name: _embedding(concept, f"{stem}-{name}{end}", vector)
        for name, vector in zip(layer_names, words, strict=True)
    }


def what_varies(concept: Concept) -> tuple[bool, bool]:
    """Whether a concept's words differ between layers, and whether they differ between timesteps.

    Raises UserError for a concept that is more than words: no embedding can stand for what it does to the attention.
    """
    vectors = concept.method.vectors(torch.tensor([0, NUM_TIMESTEPS - 1]))
    if word := concept.method.key_word:
        raise UserError(
            f"concept {concept.placeholder}: the attention's keys come from {word!r} (key_lock), which no embedding "
            "can tell; share the concept file itself"
        )
    if concept.method.projection() is not None or vectors.key_words is not None or vectors.image is not None:
        raise UserError(
            f"concept {concept.placeholder}: a concept of method '{concept.method.name}' edits the attention layers, "
            "which no embedding can; share the concept file itself"
        )
    return vectors.words.shape[0] > 1, vectors.words.shape[1] > 1


@torch.no_grad()
def measure_losses(backbone: Backbone, concept: Concept, timestep: int, one_vector: bool) -> dict[str, Loss]:
    """What each step of the approximation costs, the earlier steps included, in the order they are taken.

    The steps: dropping the textual bypass, holding the timestep, and with `one_vector` the mean over the layers; those
    that change nothing for this concept are left out. Compared on the concept's own images (four seeds, "A photo of
    a ..."), noised to TIMESTEPS; without guidance, which would scale all distances alike. Deterministic.
    Raises UserError if the concept does not fit the base model.
    """
    concept.check_fits(backbone)
    method = concept.method
    over_layers, over_time = what_varies(concept)
    held = XTI(WordVectorsConfig(method.positions), method.frame)
    held.words.copy_(_words(concept, timestep)[:, None])
    steps: dict[str, _HasVectors] = {}
    if method.vectors(torch.tensor([timestep])).bypass is not None:
        steps["without the textual bypass"] = _WithoutBypass(method)
    if over_time:
        steps[f"held at timestep {timestep}"] = held
    if over_layers and one_vector:
        steps["one vector for all layers"] = mean_embedding(concept, timestep).method
    if not steps:
        return {}

    prompt = f"A photo of a {concept.placeholder}"
    conditioning = prepare_conditioning(backbone, prompt, {concept.placeholder: method}, SAMPLING)
    latents = denoise(backbone, conditioning, initial_latents(backbone, SEEDS, SAMPLING), SAMPLING)
    noise = initial_latents(backbone, NOISE_SEEDS, SAMPLING)
    own = _predictions(backbone, latents, noise, prompt, {concept.placeholder: method})
    word = _predictions(backbone, latents, noise, f"A photo of a {concept.super_category}", {})
    return {
        name: _loss(_predictions(backbone, latents, noise, prompt, {concept.placeholder: approximation}), own, word)
        for name, approximation in steps.items()
    }


@dataclass(frozen=True)
class _WithoutBypass:
    method: Method

    @property
    def positions(self) -> int:
        return self.method.positions

    def vectors(self, timesteps: Tensor) -> ConceptVectors:
        return replace(self.method.vectors(timesteps), bypass=None)


def _predictions(
    backbone: Backbone, latents: Tensor, noise: Tensor, prompt: str, concepts: Mapping[str, _HasVectors]
) -> Tensor:
    """The U-Net's predictions for latents [S,C,h,w] noised to each of TIMESTEPS, [len(TIMESTEPS),S,C,h,w]."""
    tokens = tokenize(backbone.tokenizer, [prompt], {name: each.positions for name, each in concepts.items()})
    denoiser, predictions = Denoiser(backbone), []
    for timestep in TIMESTEPS:
        t = torch.tensor([timestep], device=latents.device)
        vectors = {name: each.vectors(t) for name, each in concepts.items()}
        size = (backbone.image_size, backbone.image_size)
        conditioning = condition(backbone.text, tokens, vectors, backbone.frame, image_size=size)
        noised = backbone.scheduler.add_noise(latents, noise, t.expand(len(latents)))
        predictions.append(denoiser(noised, t, join([conditioning] * len(latents))))
    return torch.stack(predictions)


def _loss(predictions: Tensor, own: Tensor, word: Tensor) -> Loss:
    far, unit = (predictions - own).flatten(1).norm(dim=1), (word - own).flatten(1).norm(dim=1)
    ratios = far / unit
    return Loss(dict(zip(TIMESTEPS, ratios.tolist(), strict=True)), (far.norm() / unit.norm()).item())


@torch.no_grad()
def _words(concept: Concept, timestep: int) -> Tensor:
    """The concept's words at a timestep [P|1, D], or [P|1, n, D]; UserError for one that is not there."""
    if not 0 <= timestep < NUM_TIMESTEPS:
        raise UserError(f"timestep {timestep}: must lie in 0..{NUM_TIMESTEPS - 1}; noise is at {NUM_TIMESTEPS - 1}")
    return concept.method.vectors(torch.tensor([timestep])).words[:, 0]


def _embedding(concept: Concept, placeholder: str, vector: Tensor) -> Concept:
    config = WordVectorsConfig(concept.method.positions)
    method = TextualInversion.create(config, concept.method.frame, Start(vector))
    return Concept(method.eval(), placeholder, concept.super_category, dict(concept.metadata))
