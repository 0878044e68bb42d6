"""From prompts and concepts to what the U-Net's cross-attention layers read.

Shape alphabet of the whole project: L cross-attention layers, P places, B batch, T tokens, D text width, N rows,
S seeds, K denoising steps, E image tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...utils.devices import to_device
from ..attention.packing import pack
from ..backbone.frame import Frame
from ..backbone.text import TextStack
from .tokens import Tokens, tokenize


@dataclass(frozen=True)
class ConceptVectors:
    """What one concept puts at its placeholder.

    words [P|1, B|1, D], or [P|1, B|1, n, D] for a concept of n positions: replace the placeholder's token embedding. A
        1 says "does not depend on the place" (or on the timestep), and the text encoder then runs once, not P (or B)
        times.
    bypass [P|1, B|1, D], or None: direction added to the placeholder's state before the final LayerNorm.
    bypass_alpha: length of that shift, as a fraction of the state's own norm: one number, or one per place and timestep
        [P|1, B|1, 1] where several concepts share a placeholder.
    key_words, as `words`, or a word of the vocabulary, or None: keys are read from a prompt that has this at the
        placeholder (key locking).
    image [1, E, D], or None: image features for the layers' projection.
    """

    words: Tensor
    bypass: Tensor | None = None
    bypass_alpha: float | Tensor = 0.2
    key_words: Tensor | str | None = None
    image: Tensor | None = None


@dataclass(frozen=True)
class Conditioning:
    """Text encodings per place: keys [P,B,T,D] without the textual bypass, values [P,B,T,D] with it.

    slots [B,T] long, or None: 0 where no concept stands, i where the i-th of the prompt's concepts does.
    image [B,E,D], or None: image features. added: further inputs of the U-Net by name (SDXL's), each [B, ...].
    """

    keys: Tensor
    values: Tensor
    slots: Tensor | None = None
    image: Tensor | None = None
    added: Mapping[str, Tensor] = field(default_factory=dict)

    def packed(self) -> Tensor:
        """ONE plain batch-first tensor [B,R,D] for the U-Net's `encoder_hidden_states`; see `attention.packing`."""
        return pack(self.keys, self.values, self.slots, self.image)

    @property
    def nbytes(self) -> int:
        """Of keys and values, each storage once."""
        storages = {part.untyped_storage().data_ptr(): part.untyped_storage() for part in (self.keys, self.values)}
        return sum(storage.nbytes() for storage in storages.values())

    def zeros(self) -> Conditioning:
        """The same shapes with zeros for the text, which SDXL was trained on in the place of an empty prompt."""
        keys, added = torch.zeros_like(self.keys), dict(self.added)
        if "text_embeds" in added:
            added["text_embeds"] = torch.zeros_like(added["text_embeds"])
        return Conditioning(keys, keys, self.slots, self.image, added)

    def at(self, index: int) -> Conditioning:
        """The one at `index` of the batch, as a batch of one; a batch of one stands for every index."""

        def own(part: Tensor, dim: int) -> Tensor:
            return part if part.shape[dim] == 1 else part.narrow(dim, index, 1)

        return Conditioning(
            own(self.keys, 1),
            own(self.values, 1),
            None if self.slots is None else own(self.slots, 0),
            None if self.image is None else own(self.image, 0),
            {name: own(tensor, 0) for name, tensor in self.added.items()},
        )


def join(conditionings: Sequence[Conditioning]) -> Conditioning:
    """Several as one batch: different prompts and concepts, the two branches of guidance. Where one has no slots, or
    fewer image features than another: zeros."""

    def joined(parts: Sequence[Tensor | None], batch: Sequence[int]) -> Tensor | None:
        present = next((part for part in parts if part is not None), None)
        if present is None:
            return None
        rows = max(part.shape[1] for part in parts if part is not None)
        filled = []
        for part, count in zip(parts, batch, strict=True):
            own = present.new_zeros(count, 0, *present.shape[2:]) if part is None else part
            filled.append(torch.cat([own, own.new_zeros(count, rows - own.shape[1], *own.shape[2:])], dim=1))
        return torch.cat(filled)

    batch = [each.keys.shape[1] for each in conditionings]
    keys = torch.cat([each.keys for each in conditionings], dim=1)
    same = all(each.values is each.keys for each in conditionings)
    return Conditioning(
        keys,
        keys if same else torch.cat([each.values for each in conditionings], dim=1),
        joined([each.slots for each in conditionings], batch),
        joined([each.image for each in conditionings], batch),
        {name: torch.cat([each.added[name] for each in conditionings]) for name in conditionings[0].added},
    )


def condition(
    text: TextStack,
    tokens: Tokens,
    vectors: Mapping[str, ConceptVectors],
    frame: Frame,
    chunk_rows: int | None = None,
    image_size: tuple[int, int] | None = None,
) -> Conditioning:
    """Encode prompts with their placeholders replaced, for all places in one text-encoder call.

    tokens: ids [B|1, T]; vectors: by placeholder, for those that stand somewhere. Sizes of 1 broadcast, so that one
    prompt meets K timesteps (words [P,K,D]) without being repeated by hand. Gradients flow into `vectors` only.
    Returns keys and values [P,B,T,D] in the text encoder's dtype; without bypass and key lock both are the same tensor.
    `chunk_rows` bounds the rows (of N = P*B) that run through the encoder at once. image_size: (height, width) in
    pixels, which SDXL takes as an input.
    """
    # looked up where the tokens are, on the CPU: on CUDA the host would have to wait for the answer
    present = [name for name, slot in tokens.slots.items() if slot.any()]
    if not set(present) <= vectors.keys() <= tokens.slots.keys():
        raise ValueError(f"vectors for {sorted(vectors)}, but the prompts were tokenized for {sorted(tokens.slots)}")
    places = frame.num_places
    if any(concept.words.shape[0] not in (1, places) for concept in vectors.values()):
        raise ValueError(f"words must have 1 or {places} places: { {k: v.words.shape for k, v in vectors.items()} }")
    named = {name: vectors[name] for name in present}

    words = {name: concept.words for name, concept in named.items()}
    states = _states(text, tokens, words, chunk_rows)  # [P|1,B,T,D]
    encoding = text.finish(states).expand(places, -1, -1, -1)
    batch = encoding.shape[1]
    keys, values = encoding, encoding
    if any(concept.key_words is not None for concept in named.values()):
        locked = {name: _key_words(text, concept) for name, concept in named.items()}
        keys = text.finish(_states(text, tokens, locked, chunk_rows)).expand(places, batch, -1, -1)
    for name, concept in named.items():
        if concept.bypass is not None:
            values = values.clone() if values is encoding else values
            found = torch.nonzero(tokens.slots[name].expand(batch, -1), as_tuple=True)
            rows, positions = (to_device(index, states.device) for index in found)
            bypass = concept.bypass.expand(-1, batch, -1)[:, rows].to(states.device)  # [P|1,slots,D]
            alpha = concept.bypass_alpha
            if isinstance(alpha, Tensor):
                alpha = alpha.expand(-1, batch, -1)[:, rows].to(states.device)  # [P|1,slots,1]
            shifted = text.shift(states[:, rows, positions], bypass, alpha)
            values[:, rows, positions] = text.finish(shifted)
    images = [concept.image for concept in named.values() if concept.image is not None]
    return Conditioning(
        keys=keys,
        values=values,
        slots=to_device(_numbered(tokens), encoding.device).expand(batch, -1) if named else None,
        image=images[0].to(encoding).expand(batch, -1, -1) if images else None,
        added=_added(text, tokens, words, states, chunk_rows, image_size) if text.has_pooled else {},
    )


def plain_condition(
    text: TextStack, prompts: Sequence[str], frame: Frame, image_size: tuple[int, int] | None = None
) -> Conditioning:
    """Encode prompts without any concept (unconditional, negative): the same for every place, as views."""
    return condition(text, tokenize(text.tokenizer, prompts, []), {}, frame, image_size=image_size)


def _added(
    text: TextStack,
    tokens: Tokens,
    words: Mapping[str, Tensor],
    states: Tensor,
    chunk_rows: int | None,
    image_size: tuple[int, int] | None,
) -> dict[str, Tensor]:
    """What SDXL's U-Net reads beside the text's tokens: the pooled text, which is one for all places and so that of the
    words' mean over them, and the sizes of the image (original, crop at 0, target)."""
    if image_size is None:
        raise ValueError("this model takes the size of the image as an input: give image_size")
    if len(states) > 1:
        states = _states(text, tokens, {name: own.mean(dim=0, keepdim=True) for name, own in words.items()}, chunk_rows)
    pooled = text.pooled(states[0], tokens.ids)
    sizes = pooled.new_tensor([*image_size, 0, 0, *image_size]).expand(len(pooled), -1)
    return {"text_embeds": pooled, "time_ids": sizes}


def _states(text: TextStack, tokens: Tokens, words: Mapping[str, Tensor], chunk_rows: int | None) -> Tensor:
    """The towers' states [P|1,B,T,D] for the prompts with `words` at their placeholders."""
    embeddings = text.embeddings(to_device(tokens.ids, text.device))[None]  # [1,B|1,T,D]
    for placeholder, own in words.items():
        slot = to_device(tokens.slots[placeholder], embeddings.device)
        if own.dim() == 4 and own.shape[2] > 1:  # the k-th position of a placeholder takes the k-th vector
            order = (slot.cumsum(dim=-1) - 1).clamp(min=0) % own.shape[2]  # [B|1,T]
            rows = max(own.shape[1], len(slot))
            own = own.to(embeddings).expand(-1, rows, -1, -1)
            own = own.gather(2, order.expand(rows, -1)[None, :, :, None].expand(len(own), -1, -1, own.shape[-1]))
        else:
            own = own.to(embeddings)
            own = own if own.dim() == 4 else own[:, :, None]  # [P|1,B|1,1,D]
        embeddings = torch.where(slot[None, :, :, None], own, embeddings)  # [P|1,B,T,D]
    layers, batch = embeddings.shape[:2]
    return text.states(embeddings.flatten(0, 1), chunk_rows).unflatten(0, (layers, batch))


def _key_words(text: TextStack, concept: ConceptVectors) -> Tensor:
    """What keys are read from at the concept's placeholder."""
    if isinstance(concept.key_words, str):
        return text.word_embedding(concept.key_words, "mean")[None, None]
    return concept.words if concept.key_words is None else concept.key_words


def _numbered(tokens: Tokens) -> Tensor:
    """[B|1,T] long: which of the placeholders stands there, counted from 1."""
    numbers = torch.zeros_like(tokens.ids)
    for number, slot in enumerate(tokens.slots.values(), start=1):
        numbers = numbers.masked_fill(slot, number)
    return numbers
