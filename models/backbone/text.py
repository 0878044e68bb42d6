"""Stages of a stock CLIP text encoder, so that token embeddings can be replaced before it and states shifted after it.

    token embeddings -> [words replaced here] -> transformer -> [bypass added here] -> final LayerNorm

The encoder stays frozen and its embedding table is only ever read.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import CLIPTextModel
from transformers.masking_utils import create_causal_mask


def token_embeddings(text_encoder: CLIPTextModel, ids: Tensor) -> Tensor:
    """ids [B,T] -> token embeddings [B,T,D], before positions are added."""
    return text_encoder.embeddings.token_embedding(ids)


def transformer_states(text_encoder: CLIPTextModel, embeddings: Tensor, chunk_rows: int | None = None) -> Tensor:
    """embeddings [N,T,D] -> states [N,T,D] BEFORE the final LayerNorm.

    `chunk_rows` bounds how many of the N rows run at once (memory); rows never look at each other.
    """
    return torch.cat([_transformer(text_encoder, rows) for rows in embeddings.split(chunk_rows or len(embeddings))])


def _transformer(text_encoder: CLIPTextModel, embeddings: Tensor) -> Tensor:
    states = text_encoder.embeddings(inputs_embeds=embeddings)  # adds the positions
    mask = create_causal_mask(
        config=text_encoder.config, inputs_embeds=states, attention_mask=None, past_key_values=None
    )
    # as the stock forward does: a backend that takes no mask tensor needs the flag
    return text_encoder.encoder(inputs_embeds=states, attention_mask=mask, is_causal=True).last_hidden_state


def final_norm(text_encoder: CLIPTextModel, states: Tensor) -> Tensor:
    """The encoder's final LayerNorm: states [...,D] -> encoding [...,D]."""
    return text_encoder.final_layer_norm(states)


def add_bypass(states: Tensor, bypass: Tensor, alpha: float | Tensor) -> Tensor:
    """Textual bypass (NeTI, section 4): h + alpha * ||h|| * v / ||v||, and h where v = 0.

    states h, bypass v: broadcastable to [...,D]; alpha: a number, or [...,1]. Only the direction of v counts.
    In float32, returned in h's dtype.
    """
    h = states.float()
    direction = torch.nn.functional.normalize(bypass.float(), dim=-1)
    return (h + alpha * torch.linalg.vector_norm(h, dim=-1, keepdim=True) * direction).to(states.dtype)
