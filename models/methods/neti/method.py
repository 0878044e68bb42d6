"""NeTI: the concept is a neural mapper of timestep and layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import Self

from ....utils.devices import to_device
from ....utils.errors import UserError
from ...backbone.frame import Frame
from ...conditioning.conditioning import ConceptVectors
from ..base import Generators, Method, Start
from .mapper import NeTIMapper, NormRule
from .nested_dropout import draw_kept
from .positional_encoding import NUM_FREQUENCIES, NUM_TIMESTEPS


@dataclass(frozen=True)
class NeTIConfig:
    """The mapper's settings; the defaults are the public code's.

    target_norm: norm of the output; None takes that of the initial embedding (see `Method.create`). target_norm_2: the
        same for the second text encoder of SDXL.
    use_time, use_layer: False holds t (or l) at 0, the paper's ablations "space only" and "time only".
    key_lock: attention keys are read from the super-category word, values from the concept, as Perfusion does.
    """

    hidden_dim: int = 128
    use_positional_encoding: bool = True
    sigma_t: float = 0.03
    sigma_l: float = 2.0
    num_frequencies: int = NUM_FREQUENCIES
    num_time_anchors: int = 10
    output_bypass: bool = True
    bypass_alpha: float = 0.2
    use_nested_dropout: bool = True
    nested_dropout_prob: float = 0.5
    normalize_output: bool = True
    norm_rule: NormRule = NormRule.joint
    target_norm: float | None = None
    target_norm_2: float | None = None
    use_time: bool = True
    use_layer: bool = True
    key_lock: bool = False

    def __post_init__(self) -> None:
        if self.norm_rule not in list(NormRule):
            raise UserError(f"norm_rule {self.norm_rule!r}: must be one of {', '.join(NormRule)}")
        object.__setattr__(self, "norm_rule", NormRule(self.norm_rule))  # a word read from JSON becomes the choice
        for name, low, high in [
            ("hidden_dim", 1, 2**20),
            ("num_frequencies", 1, 2**20),
            ("num_time_anchors", 1, NUM_TIMESTEPS),
            ("nested_dropout_prob", 0, 1),
            ("bypass_alpha", 0, 1e6),
            ("target_norm", 1e-6, 1e6),
            ("target_norm_2", 1e-6, 1e6),
        ]:
            if getattr(self, name) is not None and not low <= getattr(self, name) <= high:
                raise UserError(f"{name} {getattr(self, name)!r}: must lie in {low}..{high}")
        if not (self.use_time or self.use_layer):
            raise UserError("use_time and use_layer are both false: the concept would depend on nothing")


class NeTI(Method):
    """One concept of NeTI. `truncation` keeps the leading units of the mapper's last hidden layer."""

    name = "neti"
    config_class = NeTIConfig
    config: NeTIConfig

    def __init__(self, config: NeTIConfig, frame: Frame) -> None:
        super().__init__(config, frame)
        self.truncation_width = config.hidden_dim
        self.is_ordered = config.use_nested_dropout
        self.mapper = NeTIMapper(
            num_layers=frame.num_places,
            widths=frame.text_widths,
            hidden_dim=config.hidden_dim,
            num_frequencies=config.num_frequencies,
            num_time_anchors=config.num_time_anchors,
            use_positional_encoding=config.use_positional_encoding,
            output_bypass=config.output_bypass,
            target_norms=self._target_norms() if config.normalize_output else None,
            norm_rule=config.norm_rule,
        )

    def _target_norms(self) -> tuple[float, ...]:
        norms = (self.config.target_norm, self.config.target_norm_2)[: len(self.frame.text_widths)]
        if len(norms) < len(self.frame.text_widths) or None in norms:
            raise ValueError("target_norm is not known: NeTI.create takes it from the initial embedding")
        return tuple(float(norm) for norm in norms if norm is not None)

    @classmethod
    def create(cls, config: NeTIConfig, frame: Frame, start: Start) -> Self:
        """See `Method.create`; of the initial embedding only the norm is used, unless it is an encoded one.

        That becomes v_base, at every timestep and layer, through the output layer's bias: there is no other place
        for it, since the mapper never reads the super category's word.
        """
        if config.normalize_output:
            norms = [part.float().norm().item() for part in start.embedding.split(list(frame.text_widths))]
            if start.is_encoded and config.output_bypass and config.norm_rule is NormRule.joint:
                norms = [norm * 2**0.5 for norm in norms]  # v_pass starts about as long and is counted too
            names = ("target_norm", "target_norm_2")
            unset = {name: norm for name, norm in zip(names, norms, strict=False) if getattr(config, name) is None}
            config = replace(config, **unset)
        concept = cls(config, frame)
        concept.word_for_keys = start.word
        concept.mapper.initialise(config.sigma_t, config.sigma_l, start.generator)
        if start.is_encoded:
            concept.mapper.start_at(start.embedding)
        return concept

    def vectors(self, timesteps: Tensor, truncation: int | None = None, generator: Generators = None) -> ConceptVectors:
        """M(t, l) of every layer at every timestep, in one call; see `Method.vectors`.

        Without use_layer the vectors are [1, B, D], without use_time [P, 1, D].
        Nested dropout acts in train mode only, and not where a truncation is asked for.
        """
        self.check_truncation(truncation)
        device = next(self.parameters()).device
        origin = torch.zeros(1, 1, dtype=torch.long, device=device)
        t = timesteps.to(device)[None, :] if self.config.use_time else origin
        l = torch.arange(self.frame.num_places, device=device)[:, None] if self.config.use_layer else origin  # noqa: E741
        kept: int | Tensor | None = truncation
        if truncation is None and self.training and self.config.use_nested_dropout:
            per_draw = 1 if isinstance(generator, Sequence) else t.shape[1]
            drawn = draw_kept(l.shape[0], per_draw, self.truncation_width, self.config.nested_dropout_prob, generator)
            kept = to_device(drawn, device)
        v_base, v_pass = self.mapper(t, l, kept)
        return ConceptVectors(v_base, v_pass, self.config.bypass_alpha, key_words=self.key_word)
