"""How a cross-attention layer turns its text into keys and values: the one extension point for methods that edit it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from ...utils.errors import UserError
from .layers import Layer


class KeyValueProjection:
    """The layer's own projections: what NeTI, XTI and Textual Inversion use, and the base of all others.

    image_tokens: E, rows of image features that `extra` wants in the conditioning (0: none).
    """

    image_tokens: int = 0

    def project(
        self, attn: Attention, layer: Layer, keys: Tensor, values: Tensor, slots: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Text of the layer's place, keys and values [B,T,D], to K and V [B,T,layer.width].

        slots [B,T] long: 0 where no concept stands, i where the i-th concept of the prompt does.
        """
        return attn.to_k(keys), attn.to_v(values)

    def extra(
        self, attn: Attention, layer: Layer, query: Tensor, key: Tensor, slots: Tensor, image: Tensor
    ) -> Tensor | None:
        """What is added to the attention's output before `to_out`, [B,heads,pixels,d]; None: nothing.

        query [B,heads,pixels,d], key [B,heads,T,d]: of the text's attention. image [B,E,D]: the image features.
        """
        return None

    @classmethod
    def joined(cls, projections: Sequence[KeyValueProjection | None]) -> KeyValueProjection:
        """One projection for a prompt's concepts, given in the order of their slots; None: a concept without its own.

        Called on the class of those that are not None. Raises UserError where several cannot be one; a class that can
        do better than one alone in its prompt overrides this.
        """
        if len(projections) == 1 and projections[0] is not None:
            return projections[0]
        raise UserError("a concept that edits the attention has to be alone in its prompt; leave the other ones out")


def join_projections(projections: Sequence[KeyValueProjection | None]) -> KeyValueProjection:
    """The projection of a prompt that names concepts with these, in the order of their slots.

    Raises UserError for two kinds of edit in one prompt, and as `KeyValueProjection.joined` does.
    """
    kinds = {type(projection) for projection in projections if projection is not None}
    if not kinds:
        return KeyValueProjection()
    if len(kinds) > 1:
        raise UserError("two methods would edit the same attention in two ways; put their concepts into two prompts")
    return kinds.pop().joined(projections)


class RowProjections(KeyValueProjection):
    """A projection for each row of the batch, so that concepts that edit the attention in different ways share it.

    rows: B of them. Neighbours with one projection are projected together; more rows of image features than a
    projection wants are zeros at the end, which it does not get.
    """

    def __init__(self, rows: Sequence[KeyValueProjection]) -> None:
        self.image_tokens = max(each.image_tokens for each in rows)
        self._parts: list[tuple[KeyValueProjection, slice]] = []
        start = 0
        for _, group in groupby(rows, key=id):
            same = list(group)
            self._parts.append((same[0], slice(start, start + len(same))))
            start += len(same)

    def project(
        self, attn: Attention, layer: Layer, keys: Tensor, values: Tensor, slots: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `KeyValueProjection.project`."""
        parts = [each.project(attn, layer, keys[own], values[own], slots[own]) for each, own in self._parts]
        return torch.cat([k for k, _ in parts]), torch.cat([v for _, v in parts])

    def extra(
        self, attn: Attention, layer: Layer, query: Tensor, key: Tensor, slots: Tensor, image: Tensor
    ) -> Tensor | None:
        """See `KeyValueProjection.extra`; zeros for rows to which nothing is added."""
        parts = [
            each.extra(attn, layer, query[own], key[own], slots[own], image[own, : each.image_tokens])
            for each, own in self._parts
        ]
        if all(part is None for part in parts):
            return None
        shaped = zip(parts, self._parts, strict=True)
        return torch.cat([torch.zeros_like(query[own]) if part is None else part for part, (_, own) in shaped])


def join_rows(projections: Sequence[KeyValueProjection]) -> KeyValueProjection:
    """One projection for a batch whose rows have these: a common one as it is."""
    first = projections[0]
    plain = all(type(each) is KeyValueProjection for each in projections)
    return first if plain or all(each is first for each in projections) else RowProjections(projections)
