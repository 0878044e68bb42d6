"""Cross-attention that reads its own place's keys and values from one packed conditioning tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn import functional as F

from ..backbone.frame import Frame
from .layers import Layer
from .packing import packed_rows, unpack
from .projection import KeyValueProjection


@dataclass(frozen=True)
class PlacedAttnProcessor:
    """The attention processor of one cross-attention layer.

    Takes a packed conditioning [B,R,D] (see `packing`) and projects keys from the encoding without the textual bypass
    and values from the one with it (NeTI, section 4). An ordinary encoding [B,T,D] goes to `stock`, the processor that
    was there before: the number of rows tells the two apart.

    Differs from the reference: the layer is bound once, here. The public code advances a counter inside the forward
    pass; under gradient checkpointing the recomputation advances it again and the gradients are silently wrong.
    """

    layer: Layer
    frame: Frame
    projection: KeyValueProjection
    stock: Callable[..., Tensor] | None = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """hidden_states [B, pixels, channels] -> the same shape. `temb` belongs to the protocol and is not used."""
        packed = encoder_hidden_states
        if not isinstance(packed, Tensor) or packed.shape[1] != packed_rows(self.frame, self.projection.image_tokens):
            given = {"encoder_hidden_states": encoder_hidden_states, "attention_mask": attention_mask, "temb": temb}
            return self._ordinary(attn, hidden_states, given)
        if attention_mask is not None:
            raise ValueError("a packed conditioning takes no attention mask")
        text = unpack(packed, self.frame, self.layer.place)
        k, v = self.projection.project(attn, self.layer, text.keys, text.values, text.slots)

        def heads(x: Tensor) -> Tensor:  # [B, n, heads*d] -> [B, heads, n, d]
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        query, key, value = heads(attn.to_q(hidden_states)), heads(k), heads(v)
        out = F.scaled_dot_product_attention(query, key, value)
        extra = self.projection.extra(attn, self.layer, query, key, text.slots, text.image)
        out = out if extra is None else out + extra
        projection, dropout = attn.to_out
        return dropout(projection(out.transpose(1, 2).flatten(2)))

    def _ordinary(self, attn: Attention, hidden_states: Tensor, given: dict[str, Tensor | None]) -> Tensor:
        if self.stock is None:
            text = given["encoder_hidden_states"]
            shape = tuple(text.shape) if isinstance(text, Tensor) else None
            raise ValueError(
                f"this attention needs a packed conditioning [B, {packed_rows(self.frame, 0)}, D], not {shape}: pass "
                "Conditioning.packed()"
            )
        # some stock processors do not know what they are not given, such as `temb`
        return self.stock(attn, hidden_states, **{name: value for name, value in given.items() if value is not None})
