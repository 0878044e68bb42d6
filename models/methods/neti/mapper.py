"""The neural mapper M(t, l) -> (v_base, v_pass): NeTI's representation of one concept (NeTI, section 4).

(t, l) -> positional encoding -> input layer -> two hidden layers -> h -> nested dropout -> output layer
       -> norm rescaling -> v_base, the word; v_pass, the textual bypass
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ....utils.config.choices import Choice
from .nested_dropout import truncate
from .positional_encoding import NormalizedEncoding, TimeLayerEncoding


class NormRule(Choice):
    """Which vector is rescaled to the norm of the super-category word's embedding.

    joint: the concatenation [v_base; v_pass], as in the public code; then ||v_base|| alone is smaller than the target.
    base: v_base alone, as the paper describes; v_pass is only ever used for its direction.
    """

    joint = "joint"
    base = "base"


class NeTIMapper(nn.Module):
    """A small network that gives hundreds of vectors, one per timestep t and cross-attention layer l.

    widths: of the text encoders, D together (one but on SDXL). target_norms: of the output for each of them, see
    NormRule; None leaves the output as it is.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        widths: tuple[int, ...],
        hidden_dim: int,
        num_frequencies: int,
        num_time_anchors: int,
        use_positional_encoding: bool,
        output_bypass: bool,
        target_norms: tuple[float, ...] | None,
        norm_rule: NormRule,
    ) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.num_time_anchors = num_time_anchors
        self.output_bypass = output_bypass
        self.widths = widths
        self.target_norms = target_norms
        self.norm_rule = norm_rule

        self.encoding: TimeLayerEncoding | NormalizedEncoding
        self.input_layer: nn.Module
        if use_positional_encoding:
            num_anchors = num_time_anchors * num_layers  # 160 on SD 1.x
            self.encoding = TimeLayerEncoding(num_frequencies)
            self.input_layer = nn.Linear(self.encoding.width, num_anchors)
        else:
            num_anchors = 2
            self.encoding = NormalizedEncoding(num_layers)
            self.input_layer = nn.Identity()

        self.hidden_layers = nn.Sequential(
            nn.Linear(num_anchors, hidden_dim),
            nn.LayerNorm(hidden_dim),
            nn.LeakyReLU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.LayerNorm(hidden_dim),
            nn.LeakyReLU(),
        )
        self.output_layer = nn.Linear(hidden_dim, sum(widths) * (2 if output_bypass else 1))

    @torch.no_grad()
    def initialise(self, sigma_t: float, sigma_l: float, generator: torch.Generator | None = None) -> None:
        """Draw the frequencies and all weights; the input layer's weight starts as the encodings of the anchors."""
        for module in self.modules():
            if isinstance(module, nn.Linear):  # PyTorch's own initialisation, from our generator
                bound = module.in_features**-0.5
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        if isinstance(self.encoding, TimeLayerEncoding):
            assert isinstance(self.input_layer, nn.Linear)
            self.encoding.draw(sigma_t, sigma_l, generator)
            self.input_layer.weight.copy_(self.encoding.anchors(self.num_time_anchors, self.num_layers))

    @torch.no_grad()
    def start_at(self, word: Tensor) -> None:
        """Let v_base point where `word` [D] does at every t and l, by the output layer's bias, which truncation leaves.

        It is as long as v_base was, so that v_pass keeps its share of the norm. Without a norm, v_base is `word`.
        """
        half, layer = len(word), self.output_layer
        length: Any = word.norm()
        if self.target_norms is not None:
            origin = torch.zeros(1, dtype=torch.long)
            length = layer(self.hidden(origin, origin))[0, :half].norm()
        layer.weight[:half] = 0
        layer.bias[:half] = F.normalize(word, dim=0) * length

    def forward(self, t: Tensor, l: Tensor, kept: int | Tensor | None = None) -> tuple[Tensor, Tensor | None]:  # noqa: E741
        """M(t, l) for t in 0..999 and l in 0..L-1, broadcastable to [...].

        kept: how many leading units of h count (nested dropout, truncation): one number, or broadcastable to [...].
        Returns v_base and v_pass, each [..., D] in float32; v_pass is None without the bypass.
        """
        with torch.autocast(t.device.type, enabled=False):  # float32 whatever the compute dtype
            h = self.hidden(t, l)
            if kept is not None:
                h = truncate(h, kept)
            return self.rescale(self.output_layer(h))

    def hidden(self, t: Tensor, l: Tensor) -> Tensor:  # noqa: E741
        """h(t, l), [..., hidden_dim]: the units that nested dropout orders by importance."""
        return self.hidden_layers(self.input_layer(self.encoding(t, l)))

    def rescale(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """Split the output into v_base and v_pass and give it its norm, by the norm rule, for each text encoder."""
        v_base, v_pass = output.chunk(2, dim=-1) if self.output_bypass else (output, None)
        if self.target_norms is None:
            return v_base, v_pass
        if v_pass is None or self.norm_rule == NormRule.base:
            return self._normalised(v_base), v_pass
        v_base, v_pass = self._normalised(v_base, v_pass)
        return v_base, v_pass

    def _normalised(self, *vectors: Tensor) -> Any:
        """Vectors [..., D], rescaled together so that their parts for each text encoder have its target norm."""
        assert self.target_norms is not None
        parts = zip(*(vector.split(list(self.widths), dim=-1) for vector in vectors), strict=True)
        joined = [
            F.normalize(torch.cat(part, dim=-1), dim=-1) * norm
            for part, norm in zip(parts, self.target_norms, strict=True)
        ]
        back = zip(*(part.chunk(len(vectors), dim=-1) for part in joined), strict=True)
        rescaled = [torch.cat(part, dim=-1) for part in back]
        return rescaled[0] if len(vectors) == 1 else rescaled
