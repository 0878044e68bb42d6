"""Cross-attention that reads its own layer's keys and values from one packed conditioning tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class SpaceTimeAttnProcessor:
    """Processor of cross-attention layer `layer` out of `num_layers` (L).

    Takes the packed conditioning [B, L*2*T, D] (see `SpaceTimeConditioning.packed`) and projects keys from the encoding
    without the textual bypass and values from the one with it (NeTI, section 4).

    Differs from the reference: the layer is bound once, here. The public code advances a counter inside the forward
    pass; under gradient checkpointing the recomputation advances it again and the gradients are silently wrong.
    """

    layer: int
    num_layers: int

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """hidden_states [B, pixels, channels] -> the same shape. `temb` belongs to the protocol and is not used."""
        if attention_mask is not None:
            raise ValueError("space-time attention takes no attention mask")
        key_context, value_context = self._own_slice(encoder_hidden_states)

        def heads(x: Tensor) -> Tensor:  # [B, n, heads*d] -> [B, heads, n, d]
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        out = F.scaled_dot_product_attention(
            heads(attn.to_q(hidden_states)), heads(attn.to_k(key_context)), heads(attn.to_v(value_context))
        )
        projection, dropout = attn.to_out
        return dropout(projection(out.transpose(1, 2).flatten(2)))

    def _own_slice(self, packed: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B, L*2*T, D] -> this layer's key and value context, each [B, T, D] (views)."""
        rows = 0 if packed is None else packed.shape[1]
        tokens, rest = divmod(rows, 2 * self.num_layers)
        # a text always has a begin and an end token, so one token per slice means an ordinary [B, T, D] encoding
        if packed is None or rest or tokens < 2:
            raise ValueError(
                f"space-time attention needs a packed conditioning [B, {self.num_layers}*2*T, D], not "
                f"{None if packed is None else tuple(packed.shape)}: pass SpaceTimeConditioning.packed(), or restore "
                "the U-Net's own processors first"
            )
        own: Tensor = packed.unflatten(1, (self.num_layers, 2, tokens))[:, self.layer]
        key_context, value_context = torch.unbind(own, dim=1)
        return key_context, value_context
