"""From prompts and concepts to what the U-Net's cross-attention layers read.

Shape alphabet of the whole project: L cross-attention layers, B batch, T tokens, D text width, N = L*B rows, S seeds,
K denoising steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedTokenizerBase

from ...utils.transfer import to_device
from ..backbone.text import add_bypass, final_norm, token_embeddings, transformer_states
from .tokens import Tokens, tokenize


@dataclass(frozen=True)
class ConceptVectors:
    """What one concept puts at its placeholder.

    words [L|1, B|1, D]: replaces the placeholder's token embedding. A 1 says "does not depend on the layer" (or on the
        timestep), and the text encoder then runs once, not L (or B) times.
    bypass, same shape, or None: direction added to the placeholder's state before the final LayerNorm.
    bypass_alpha: length of that shift, as a fraction of the state's own norm: one number, or one per layer and timestep
        [L|1, B|1, 1] where several concepts share a placeholder.
    """

    words: Tensor
    bypass: Tensor | None = None
    bypass_alpha: float | Tensor = 0.2


@dataclass(frozen=True)
class SpaceTimeConditioning:
    """Text encodings per layer: keys [L,B,T,D] without the textual bypass, values [L,B,T,D] with it."""

    keys: Tensor
    values: Tensor

    def packed(self) -> Tensor:
        """ONE plain batch-first tensor [B, L*2*T, D] for the U-Net's `encoder_hidden_states`.

        Layer l, keys before values: rows (2l)*T ..(2l+1)*T hold its keys, (2l+1)*T ..(2l+2)*T its values.
        """
        batch_first = [part.transpose(0, 1) for part in (self.keys, self.values)]  # views: the stack is the only copy
        return torch.stack(batch_first, dim=2).flatten(1, 3)


def condition(
    text_encoder: CLIPTextModel,
    tokens: Tokens,
    vectors: Mapping[str, ConceptVectors],
    num_layers: int,
    chunk_rows: int | None = None,
) -> SpaceTimeConditioning:
    """Encode prompts with their placeholders replaced, for all layers in one text-encoder call.

    tokens: ids [B|1, T]; vectors: one entry per placeholder of `tokens`. Sizes of 1 broadcast, so that one prompt meets
    K timesteps (words [L,K,D]) without being repeated by hand. Gradients flow into `vectors` only.
    Returns keys and values [L,B,T,D] in the text encoder's dtype; without a bypass both are the same tensor.
    `chunk_rows` bounds the rows (of N = L*B) that run through the encoder at once.
    """
    if vectors.keys() != tokens.slots.keys():
        raise ValueError(f"vectors for {sorted(vectors)}, but the prompts were tokenized for {sorted(tokens.slots)}")
    if any(concept.words.shape[0] not in (1, num_layers) for concept in vectors.values()):
        raise ValueError(
            f"words must have 1 or {num_layers} layers: { {k: v.words.shape for k, v in vectors.items()} }"
        )

    device = text_encoder.device
    embeddings = token_embeddings(text_encoder, to_device(tokens.ids, device))[None]  # [1,B|1,T,D]
    for placeholder, concept in vectors.items():
        slot = to_device(tokens.slots[placeholder], device)[None, :, :, None]
        words = concept.words[:, :, None].to(embeddings)  # [L|1,B|1,1,D]
        embeddings = torch.where(slot, words, embeddings)  # [L|1,B,T,D]

    layers, batch = embeddings.shape[:2]
    states = transformer_states(text_encoder, embeddings.flatten(0, 1), chunk_rows).unflatten(0, (layers, batch))
    keys = final_norm(text_encoder, states).expand(num_layers, -1, -1, -1)
    values = keys
    for placeholder, concept in vectors.items():
        if concept.bypass is not None:
            values = values.clone() if values is keys else values
            # looked up where the tokens are, on the CPU: on CUDA the host would have to wait for the answer
            found = torch.nonzero(tokens.slots[placeholder].expand(batch, -1), as_tuple=True)
            rows, positions = (to_device(index, device) for index in found)
            bypass = concept.bypass.expand(-1, batch, -1)[:, rows].to(device)  # [L|1,slots,D]
            alpha = concept.bypass_alpha
            if isinstance(alpha, Tensor):
                alpha = alpha.expand(-1, batch, -1)[:, rows].to(device)  # [L|1,slots,1]
            shifted = add_bypass(states[:, rows, positions], bypass, alpha)
            values[:, rows, positions] = final_norm(text_encoder, shifted)
    return SpaceTimeConditioning(keys=keys, values=values)


def plain_condition(
    text_encoder: CLIPTextModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], num_layers: int
) -> SpaceTimeConditioning:
    """Encode prompts without any concept (unconditional, negative, rails): the same for every layer, as views."""
    return condition(text_encoder, tokenize(tokenizer, prompts, []), {}, num_layers)
