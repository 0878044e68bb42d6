"""Everything the cross-attention layers read, as ONE plain batch-first tensor in the place of a text encoding.

    rows of [B, R, D], P places, T tokens, E image tokens:
    keys of place 0 [T], values of place 0 [T], keys of place 1, ..., values of place P-1
    slots: the T numbers of a prompt's concepts, written into ceil(T / D) rows
    image features [E]

A plain tensor survives gradient checkpointing, compilation, guidance by one `torch.cat` and every stock pipeline.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backbone.frame import Frame


class Text(NamedTuple):
    """What one place reads: keys, values [B,T,D]; slots [B,T] long; image [B,E,D]."""

    keys: Tensor
    values: Tensor
    slots: Tensor
    image: Tensor


def pack(keys: Tensor, values: Tensor, slots: Tensor | None = None, image: Tensor | None = None) -> Tensor:
    """keys, values [P,B,T,D], slots [B,T], image [B,E,D] -> [B,R,D] in the dtype of the keys."""
    _, batch, tokens, width = keys.shape
    text = torch.stack([part.transpose(0, 1) for part in (keys, values)], dim=2).flatten(1, 3)  # the only copy
    rows = -(-tokens // width)
    numbers = text.new_zeros(batch, rows * width) if slots is None else F.pad(slots, (0, rows * width - tokens))
    parts = [text, numbers.to(text).view(batch, rows, width)]
    return torch.cat(parts if image is None else [*parts, image.to(text)], dim=1)


def packed_rows(frame: Frame, image_tokens: int) -> int:
    """R, which tells a packed conditioning from an ordinary encoding: no prompt has so many tokens."""
    return 2 * frame.num_places * frame.tokens + -(-frame.tokens // frame.text_width) + image_tokens


def unpack(packed: Tensor, frame: Frame, place: int) -> Text:
    """One place's part of a packed conditioning, as views."""
    tokens, text_rows = frame.tokens, 2 * frame.num_places * frame.tokens
    own = packed[:, 2 * place * tokens : 2 * (place + 1) * tokens]
    slot_rows = -(-tokens // frame.text_width)
    numbers = packed[:, text_rows : text_rows + slot_rows].flatten(1)[:, :tokens]
    return Text(own[:, :tokens], own[:, tokens:], numbers.long(), packed[:, text_rows + slot_rows :])
