"""ELITE: a concept that was encoded from one picture, without optimisation (Wei et al., ICCV 2023)."""

# ruff: noqa: UP045  (pyrallis 0.3.1 knows Optional[X] but not X | None, and no postponed annotations)
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor
from typing_extensions import Self

from ....utils.config.parsing import Config
from ....utils.config.values import setting
from ....utils.errors import UserError
from ...backbone.frame import Frame
from ...conditioning.conditioning import ConceptVectors
from ..base import Generators, Method, Start
from .encoder import Encoder, matrices_digest
from .files import find_encoder, find_matrices
from .mappers import LayerMatrices
from .projection import AttentionNorm, ELITEProjection
from .vision import FEATURES


@dataclass(frozen=True)
class ELITEConfig(Config):
    """What a concept was encoded with.

    encoder: name or path of the encoder, whose matrices all its concepts share; digest, patches_digest: of the global
    and, with patches, the local mapper's. words: 1, or all 5. patches: E, or 0 for the words alone. strength: lambda.
    """

    encoder: str = ""
    digest: str = ""
    patches_digest: str = ""
    words: int = 1
    patches: int = 0
    strength: float = 0.8


@dataclass(frozen=True)
class ELITESettings(Config):
    """What a concept may be drawn with; unset: as it was encoded."""

    # lambda of the paper: 0 leaves the patches out, 1 is as in training; higher is closer to the picture
    strength: Optional[float] = setting(None, at_least=0)
    # per_sample, or batch as the official code has it
    attn_norm: AttentionNorm = AttentionNorm.per_sample
    # File or folder of the encoder, if it is not where it was when the concept was encoded
    encoder: Optional[str] = None


class ELITE(Method):
    """One encoded concept: `words` [n, D] and `patches` [E, D]. Nothing in it is trained."""

    name = "elite"
    config_class = ELITEConfig
    settings_class = ELITESettings
    config: ELITEConfig
    words: Tensor
    patches: Tensor

    def __init__(self, config: ELITEConfig, frame: Frame) -> None:
        super().__init__(config, frame)
        self.positions = config.words
        self.settings = ELITESettings()
        self.register_buffer("words", torch.zeros(config.words, frame.text_width))
        self.register_buffer("patches", torch.zeros(config.patches, frame.text_width))
        self._matrices: tuple[LayerMatrices, LayerMatrices | None] | None = None

    @classmethod
    def create(cls, config: ELITEConfig, frame: Frame, start: Start) -> Self:
        """There is nothing to train: raises UserError."""
        raise UserError(
            "model.method = elite is encoded, not trained: scripts/encode.py makes a concept of one picture"
        )

    @classmethod
    def encode(
        cls,
        encoder: Encoder,
        frame: Frame,
        pixels: Tensor,
        mask: Tensor | None = None,
        *,
        word: int | None = 0,
        strength: float = ELITEConfig.strength,
    ) -> Self:
        """The concept of one picture [3,H,W] in 0..1 and, for its patches, of its mask [1,H,W], 0 or 1.

        word: which of the five stands for it, None for all of them, one after another.
        Raises UserError for a mask without a local mapper to read it.
        """
        of_patches = None if mask is None else encoder.of_patches
        if mask is not None and of_patches is None:
            raise UserError(f"encoder {encoder.source}: has no local mapper, which reads the mask; leave the mask out")
        config = ELITEConfig(
            encoder=encoder.source,
            digest=matrices_digest(encoder.of_words),
            patches_digest="" if of_patches is None else matrices_digest(of_patches),
            words=FEATURES if word is None else 1,
            patches=0 if mask is None else encoder.vision.patches,
            strength=strength,
        )
        concept = cls(config, frame)
        words = encoder.words(pixels[None])[0]
        concept.words.copy_(words if word is None else words[word])
        if mask is not None:
            concept.patches.copy_(encoder.patches(pixels[None], mask[None])[0])
        concept._matrices = encoder.of_words, of_patches
        return concept.eval()

    def vectors(self, timesteps: Tensor, truncation: int | None = None, generator: Generators = None) -> ConceptVectors:
        """The words [1, 1, n, D] and the patches [1, E, D], the same at every timestep; see `Method.vectors`."""
        self.check_truncation(truncation)
        return ConceptVectors(self.words[None, None], image=self.patches[None] if self.config.patches else None)

    def projection(self) -> ELITEProjection:
        """The encoder's own keys and values; UserError if the encoder is not to be found, or is another one."""
        config = self.config
        if self.settings.strength is not None and not config.patches:
            raise UserError("setting strength: the concept was encoded without patches, whose strength it would be")
        if self._matrices is None:
            path = find_encoder(self.settings.encoder or config.encoder, self.folder)
            of_words = find_matrices(path, self.frame, "global", config.digest)
            of_patches = find_matrices(path, self.frame, "local", config.patches_digest) if config.patches else None
            self._matrices = of_words, of_patches
        return ELITEProjection(
            *self._matrices,
            encoder=config.digest,
            image_tokens=config.patches,
            words=config.words,
            strength=config.strength if self.settings.strength is None else self.settings.strength,
            norm=self.settings.attn_norm,
        )
