"""Prompts in the shape of prompt embeddings, not encoded yet.

A handle is the tokenized prompt itself, written as numbers into a tensor [B,T,D] where a pipeline expects an encoding.
The pipeline may repeat, join, split and cast it as it does with every encoding; whoever knows the timestep reads the
tokens back and encodes them. It also says which attachment it is of, as the same placeholder may be another concept in
the next one. All other channels are NaN: no encoding looks like that, and a handle that is taken for one by mistake
gives NaN, not a wrong picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..conditioning.tokens import Tokens

CHANNELS = 5  # two digits of the id, which placeholder stands there, counted from 1 (0: none), two digits of the owner
BASE = 256  # of the digits: float16 and bfloat16 hold every integer up to it exactly


def to_handles(tokens: Tokens, placeholders: Sequence[str], width: int, owner: int = 0) -> Tensor:
    """Tokens [B,T] -> handles [B,T,D] in float32.

    placeholders: all that there are, at most 255, in a fixed order. owner: 0..65535, see `owner_of`.
    """
    handles = torch.full((*tokens.ids.shape, width), torch.nan)
    handles[..., 0] = tokens.ids // BASE
    handles[..., 1] = tokens.ids % BASE
    handles[..., 2] = 0
    for number, placeholder in enumerate(placeholders, start=1):
        handles[..., 2].masked_fill_(tokens.slots[placeholder], number)
    handles[..., 3], handles[..., 4] = divmod(owner, BASE)
    return handles


def are_handles(embeddings: Tensor) -> Tensor:
    """Which rows of embeddings [B,T,D] are handles: [B], bool."""
    first = embeddings[:, 0]
    return first[:, :CHANNELS].isfinite().all(dim=-1) & first[:, CHANNELS:].isnan().all(dim=-1)


def handle_bytes(handles: Tensor) -> list[bytes]:
    """Each handle of [B,T,D], in any floating-point type, as bytes: equal for equal prompts, and fit to be a key."""
    return [bytes(row.flatten().tolist()) for row in handles[..., :CHANNELS].to(torch.uint8).cpu()]


def owner_of(handle: bytes) -> int:
    """Who made it, by its `handle_bytes`."""
    return handle[3] * BASE + handle[4]


def from_handle_bytes(prompts: Sequence[bytes], placeholders: Sequence[str]) -> Tokens:
    """The tokens of handles, by their `handle_bytes`."""
    numbers = torch.tensor([list(row) for row in prompts]).unflatten(1, (-1, CHANNELS))
    slots = {name: numbers[..., 2] == number for number, name in enumerate(placeholders, start=1)}
    return Tokens(ids=numbers[..., 0] * BASE + numbers[..., 1], slots=slots)
