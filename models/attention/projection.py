"""How a cross-attention layer turns its text into keys and values: the one extension point for methods that edit it."""

from __future__ import annotations

from collections.abc import Sequence

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
