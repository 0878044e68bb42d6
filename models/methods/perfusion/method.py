"""Perfusion: keys locked to a super category, values learned as a gated rank-one edit (Tewel et al., SIGGRAPH 2023)."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ....utils.errors import UserError
from ...attention.layers import Layer
from ...backbone.frame import Frame
from ...conditioning.conditioning import ConceptVectors, Conditioning, condition
from ...conditioning.prompts import SHORT_TEMPLATES, SLOT
from ...conditioning.tokens import tokenize
from ..base import Generators, Method, Start
from .config import GLOBAL, LOCAL, TRAINED, GateMode, Lock, PerfusionConfig, PerfusionOptions, PerfusionSettings
from .covariance import Covariance, covariance_for, find_covariance
from .edit import running_mean
from .projection import PerfusionProjection, Side

if TYPE_CHECKING:
    from ...backbone.backbone import Backbone


class Perfusion(Method):
    """One concept of Perfusion: the paper's v*, i*, o*_K and o*_V, and nothing else; see `edit`.

    word [D]: v*, the concept's token embedding; trained. key [D]: i*, the running mean of the concept's own encodings,
    one for all layers. value_targets: o*_V of all layers one after another (12,480 numbers on SD 1.x); trained.
    key_targets: o*_K likewise, W_K e of the super category's encoding e; trained only if `lock` is "trained".
    """

    name = "perfusion"
    config_class = PerfusionConfig
    settings_class = PerfusionSettings
    config: PerfusionConfig
    settings: PerfusionSettings
    key: Tensor

    def __init__(self, config: PerfusionConfig, frame: Frame) -> None:
        super().__init__(config, frame)
        widths = [layer.width for layer in frame.layers]
        self.word = nn.Parameter(torch.zeros(frame.text_width))
        self.register_buffer("key", torch.zeros(frame.text_width))
        self.value_targets = nn.Parameter(torch.zeros(sum(widths)))
        self.key_targets: Tensor
        if config.lock == TRAINED:
            self.key_targets = nn.Parameter(torch.zeros(sum(widths)))
        else:
            self.register_buffer("key_targets", torch.zeros(sum(widths)))
        self._widths = widths
        self._covariance: Covariance | None = None

    @classmethod
    def create(cls, options: PerfusionOptions, frame: Frame, start: Start) -> Self:
        """See `Method.create`: starts as the super-category word, read in the short templates; nothing is drawn.

        i* is the mean of the word's encodings, o*_K and o*_V what the layers make of it (zeros where the edit is added
        to that, in gate mode "explicit"). Raises UserError if there is no covariance of this text encoder.
        Differs from the public implementations, which take the first batch: here it is the same for every seed and in
        every process.
        """
        backbone = start.backbone
        if backbone is None:
            raise ValueError("Perfusion starts from the model's own encodings and layers: give the backbone")
        config, covariance = PerfusionConfig(**asdict(options), super_category=start.word), None
        if config.gate_mode is not GateMode.explicit:
            covariance = covariance_for(backbone.text, config.covariance, backbone.name)
            config = replace(config, covariance_digest=covariance.digest)
        concept = cls(config, frame)
        concept._covariance = covariance
        with torch.no_grad():
            concept.word.copy_(start.embedding)
            encoding = _encoding(backbone, start.embedding)
            concept.key.copy_(encoding)
            if config.gate_mode is not GateMode.explicit:
                concept.key_targets.copy_(_outputs(backbone, encoding, "key"))
                concept.value_targets.copy_(_outputs(backbone, encoding, "value"))
        return concept

    def vectors(self, timesteps: Tensor, truncation: int | None = None, generator: Generators = None) -> ConceptVectors:
        """The word [1, 1, D], and with the global lock the super-category word for the keys; see `Method.vectors`."""
        self.check_truncation(truncation)
        key_words = self.config.super_category if self.lock == GLOBAL else None
        return ConceptVectors(words=self.word[None, None], key_words=key_words)

    def projection(self) -> PerfusionProjection:
        """The edit; made in train mode it follows the key, in eval mode it is fixed. See `PerfusionProjection`."""
        return PerfusionProjection({1: self})

    @torch.no_grad()
    def observe(self, conditioning: Conditioning) -> None:
        """One step of the running mean i*, over all places of the concept in the micro-batches of all processes."""
        assert conditioning.slots is not None, "there is a concept in every training prompt"
        here = (conditioning.slots == 1).float()  # [B, T]; a weighted sum: looking the places up would make a GPU wait
        summed = torch.einsum("bt,btd->d", here, conditioning.keys[0].float())  # the word is the same at all places
        found = torch.cat([summed, here.sum()[None]])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(found)
        self.key.copy_(running_mean(self.key, found[:-1] / found[-1], self.config.key_decay))

    def drawn_with(self, **settings: Any) -> Self:
        """See `Method.drawn_with`. Also raises UserError for a lock that the concept's keys were not trained for."""
        view = super().drawn_with(**settings)
        locks = (TRAINED, GLOBAL) if self.config.lock == TRAINED else (LOCAL, GLOBAL)
        if view.settings.lock not in (None, *locks):
            raise UserError(
                f"lock {view.settings.lock}: the concept was trained with lock {self.config.lock}; it can be drawn "
                f"with {' or '.join(locks)}"
            )
        return view

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Values (and keys, if trained) and the word, each at its own rate."""
        targets = [self.value_targets, *([self.key_targets] if isinstance(self.key_targets, nn.Parameter) else [])]
        return [
            {"params": targets, "lr_scale": self.config.value_lr_scale},
            {"params": [self.word], "lr_scale": self.config.word_lr_scale},
        ]

    def target(self, side: Side, layer: Layer) -> Tensor:
        """o*_K or o*_V [width] of a layer."""
        targets = self.key_targets if side == "key" else self.value_targets
        return targets.split(self._widths)[layer.index]

    @property
    def covariance(self) -> Covariance | None:
        """The C it was trained with; None in gate mode "explicit". UserError if it is not to be found."""
        if self._covariance is None and self.config.gate_mode is not GateMode.explicit:
            self._covariance = find_covariance(self.config.covariance_digest, self.folder or Path())
        return self._covariance

    @property
    def lock(self) -> Lock:
        """How the keys are locked now: training knows no global lock."""
        if self.training:
            return LOCAL if self.config.lock == GLOBAL else self.config.lock
        return self.settings.lock or self.config.lock

    @property
    def beta(self) -> float:
        """Where the gate is half open now."""
        if self.training:
            return self.config.beta
        return self.config.inference_beta if self.settings.beta is None else self.settings.beta

    @property
    def tau(self) -> float:
        """How softly the gate opens now."""
        if self.training:
            return self.config.tau
        return self.config.inference_tau if self.settings.tau is None else self.settings.tau

    @property
    def edits_keys(self) -> bool:
        """Whether keys are edited now; with the global lock they are the super category's own as they are."""
        explicit = self.config.gate_mode is GateMode.explicit
        return self.lock == TRAINED or (self.lock == LOCAL and not explicit)


@torch.no_grad()
def _encoding(backbone: Backbone, embedding: Tensor) -> Tensor:
    """The mean encoding [D] of a word in the short templates, float32 on the CPU."""
    tokens = tokenize(backbone.tokenizer, SHORT_TEMPLATES, {SLOT: 1})
    words = ConceptVectors(embedding[None, None].to(backbone.text.device))
    size = (backbone.image_size, backbone.image_size)
    conditioning = condition(backbone.text, tokens, {SLOT: words}, backbone.frame, image_size=size)
    assert conditioning.slots is not None
    return conditioning.keys[0][conditioning.slots == 1].float().mean(dim=0).cpu()


def _outputs(backbone: Backbone, encoding: Tensor, side: Side) -> Tensor:
    """W e of all layers one after another, float32 on the CPU; zeros where the weights were not loaded (dry runs)."""
    outputs = []
    for layer in backbone.frame.layers:
        attention: Any = backbone.unet.get_submodule(layer.path)
        weight: Tensor = (attention.to_k if side == "key" else attention.to_v).weight
        outputs.append(torch.zeros(layer.width) if weight.is_meta else weight.float().cpu() @ encoding)
    return torch.cat(outputs)
