"""How a cross-attention layer reads a concept that ELITE encoded (ELITE, sections 3.2 and 3.3).

Shapes: B batch, T tokens, E patches, D text width; queries and keys are [B, heads, n, width per head].
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from ....utils.config.choices import Choice
from ....utils.errors import UserError
from ...attention.layers import Layer
from ...attention.projection import KeyValueProjection
from .mappers import LayerMatrices


class AttentionNorm(Choice):
    """What the word's attention map is divided by: its maximum in its own sample, or in the whole batch.

    Differs from the reference, which has `batch` alone: there a picture depends on the others of its batch.
    """

    per_sample = "per_sample"
    batch = "batch"


class ELITEProjection(KeyValueProjection):
    """Own keys and values for all text tokens, and a second attention over the object's patches.

    words: positions that one placeholder takes; the first of them holds w0, whose attention map gates the patches.
    strength: lambda of the paper; 0 leaves the patches out, more than 1 exaggerates them.
    slot: which of the prompt's concepts it is whose patches are read. encoder: what tells two encoders apart.
    """

    def __init__(
        self,
        of_words: LayerMatrices,
        of_patches: LayerMatrices | None = None,
        *,
        encoder: str = "",
        image_tokens: int = 0,
        words: int = 1,
        strength: float = 1.0,
        norm: AttentionNorm = AttentionNorm.per_sample,
        slot: int = 1,
    ) -> None:
        self.of_words, self.of_patches, self.encoder = of_words, of_patches, encoder
        self.image_tokens = image_tokens if of_patches is not None else 0
        self.words, self.strength, self.norm, self.slot = words, strength, norm, slot

    def project(
        self, attn: Attention, layer: Layer, keys: Tensor, values: Tensor, slots: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The encoder's own matrices, for every token of every prompt: the unconditional one too."""
        return self.of_words.project(layer, "k", keys), self.of_words.project(layer, "v", values)

    def extra(
        self, attn: Attention, layer: Layer, query: Tensor, key: Tensor, slots: Tensor, image: Tensor
    ) -> Tensor | None:
        """lambda * (m * A_l) V_l: attention to the patches, as far as a pixel looks at w0.

        A patch outside the mask is zero: it adds nothing, but still takes its share of the softmax, as in the official
        code. A row whose `image` is zero (an unconditional prompt) gets exactly nothing.
        """
        if self.of_patches is None or self.strength == 0:
            return None

        def heads(x: Tensor) -> Tensor:  # [B,E,heads*d] -> [B,heads,E,d]
            return x.unflatten(-1, (query.shape[1], -1)).transpose(1, 2)

        gate = self.gate(attention(query, key, attn.scale), slots)
        patch_keys = heads(self.of_patches.project(layer, "k", image))
        patch_values = heads(self.of_patches.project(layer, "v", image))
        return self.strength * ((gate * attention(query, patch_keys, attn.scale)) @ patch_values)

    def gate(self, weights: Tensor, slots: Tensor) -> Tensor:
        """Attention [B,heads,pixels,T] -> m [B,heads,pixels,1] in 0..1: the column of w0 over its maximum."""
        taken = slots == self.slot
        first = taken & ((taken.cumsum(1) - 1) % self.words == 0)  # where w0 stands
        column = (weights * first[:, None, None].to(weights.dtype)).sum(-1, keepdim=True)
        over = (0, 1, 2, 3) if self.norm is AttentionNorm.batch else (1, 2, 3)
        smallest = torch.finfo(column.dtype).tiny  # in a row without the concept the column is zero everywhere
        return column / column.amax(over, keepdim=True).clamp_min(smallest)

    @classmethod
    def joined(cls, projections: Sequence[KeyValueProjection | None]) -> KeyValueProjection:
        """Concepts of one encoder, and those of methods that leave the attention alone, share its matrices.

        UserError for concepts of two encoders, and for two with patches: a layer reads one picture's.
        """
        own = {slot: each for slot, each in enumerate(projections, start=1) if isinstance(each, ELITEProjection)}
        if len({each.encoder for each in own.values()}) > 1:
            raise UserError("concepts of two ELITE encoders in one prompt; encode both pictures with the same one")
        with_patches = {slot: each for slot, each in own.items() if each.image_tokens}
        if len(with_patches) > 1:
            raise UserError(
                "two ELITE concepts with patches in one prompt; a prompt reads one picture's: encode the other without "
                "its mask, which leaves the word"
            )
        slot, chosen = next(iter((with_patches or own).items()))
        joint = copy(chosen)
        joint.slot = slot
        return joint


def attention(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Attention weights [B,heads,pixels,n], in the queries' dtype."""
    return (query * scale @ key.transpose(-1, -2)).softmax(-1)
