"""Stages of stock CLIP text encoders, so that token embeddings can be replaced before them and states shifted after.

    token embeddings -> [words replaced here] -> transformer -> [bypass added here] -> final LayerNorm

The encoders stay frozen and their embedding tables are only ever read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.masking_utils import create_causal_mask

from ...utils.errors import UserError


@dataclass(frozen=True)
class TextTower:
    """One text encoder: a CLIPTextModel, or a CLIPTextModelWithProjection.

    stop: which states the U-Net reads: those after the last layer and the final LayerNorm (SD 1.x/2.x), or those of the
    last layer but one as they are (SDXL).
    """

    tokenizer: PreTrainedTokenizerBase
    encoder: Any
    stop: Literal["final_norm", "penultimate"] = "final_norm"

    @property
    def model(self) -> Any:
        """The transformer without the projection that some encoders carry on top."""
        return getattr(self.encoder, "text_model", self.encoder)

    @property
    def width(self) -> int:
        """The width of the token embeddings and of the states."""
        return self.encoder.config.hidden_size

    def embeddings(self, ids: Tensor) -> Tensor:
        """ids [B,T] -> token embeddings [B,T,width], before positions are added."""
        return self.model.embeddings.token_embedding(ids)

    def padded(self, ids: Tensor) -> Tensor:
        """ids [B,T] of a tower with the same vocabulary, with this tower's padding behind the first end token."""
        ends = ids == self.tokenizer.eos_token_id
        behind = ends.cumsum(dim=-1) - ends.long() > 0
        return ids.masked_fill(behind, self.tokenizer.pad_token_id)

    def states(self, embeddings: Tensor, chunk_rows: int | None = None) -> Tensor:
        """embeddings [N,T,width] -> states [N,T,width], BEFORE the final LayerNorm where there is one.

        `chunk_rows` bounds how many of the N rows run at once (memory); rows never look at each other.
        """
        return torch.cat([self._transformer(rows) for rows in embeddings.split(chunk_rows or len(embeddings))])

    def finish(self, states: Tensor) -> Tensor:
        """states [...,width] -> what the U-Net reads of them [...,width]."""
        return self.model.final_layer_norm(states) if self.stop == "final_norm" else states

    def pooled(self, states: Tensor, ends: Tensor) -> Tensor:
        """The text as one vector [N,projection], of `states` [N,T,width] and the positions [N] of the end tokens."""
        if self.stop == "penultimate":
            states = self.model.encoder.layers[-1](states, self._mask(states), is_causal=True)
        last = self.model.final_layer_norm(states)[torch.arange(len(states), device=states.device), ends]
        return self.encoder.text_projection(last)

    def _transformer(self, embeddings: Tensor) -> Tensor:
        states = self.model.embeddings(inputs_embeds=embeddings)  # adds the positions
        mask = self._mask(states)
        if self.stop == "final_norm":
            # as the stock forward does: a backend that takes no mask tensor needs the flag
            return self.model.encoder(inputs_embeds=states, attention_mask=mask, is_causal=True).last_hidden_state
        for layer in self.model.encoder.layers[:-1]:
            states = layer(states, mask, is_causal=True)
        return states

    def _mask(self, states: Tensor) -> Any:
        return create_causal_mask(
            config=self.model.config, inputs_embeds=states, attention_mask=None, past_key_values=None
        )


@dataclass(frozen=True)
class TextStack:
    """The text towers of a model, one on SD 1.x/2.x, two on SDXL. What they say is joined along the width D."""

    towers: tuple[TextTower, ...]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The first tower's: the vocabulary is the same in all."""
        return self.towers[0].tokenizer

    @property
    def device(self) -> torch.device:
        """Where the towers run."""
        return self.towers[0].encoder.device

    @property
    def widths(self) -> tuple[int, ...]:
        """Of each tower; D is their sum."""
        return tuple(tower.width for tower in self.towers)

    def embeddings(self, ids: Tensor) -> Tensor:
        """ids [B,T] -> token embeddings [B,T,D]."""
        first, *others = self.towers
        parts = [first.embeddings(ids), *(tower.embeddings(tower.padded(ids)) for tower in others)]
        return torch.cat(parts, dim=-1)

    def word_embedding(self, word: str, rule: Literal["single", "mean"] = "single") -> Tensor:
        """The token embedding [D] (float32) of a super-category word; its norm is NeTI's target norm.

        rule "single" takes one-token words only; "mean" gives, for several tokens, the direction of their mean at their
        mean norm (the mean alone would be shorter than any word the text encoder knows), in every tower by itself.
        Raises UserError that lists the tokens if there are none, or several under "single".
        """
        ids = self.tokenizer(word, add_special_tokens=False).input_ids
        if not ids or (len(ids) > 1 and rule == "single"):
            pieces = ", ".join(repr(piece) for piece in self.tokenizer.convert_ids_to_tokens(ids)) or "no token"
            raise UserError(
                f"super category {word!r}: {len(ids)} tokens ({pieces}), one is needed; choose a simpler word, or "
                "allow the mean of the tokens' embeddings (data.super_category_rule: mean)"
            )
        rows = self.embeddings(torch.tensor([ids], device=self.device))[0].detach().float()
        if len(ids) == 1:
            return rows[0].clone()
        parts = rows.split(list(self.widths), dim=-1)
        norms = [torch.linalg.vector_norm(part, dim=-1).mean() for part in parts]
        means = [torch.nn.functional.normalize(part.mean(dim=0), dim=0) for part in parts]
        return torch.cat([mean * norm for mean, norm in zip(means, norms, strict=True)])

    def states(self, embeddings: Tensor, chunk_rows: int | None = None) -> Tensor:
        """embeddings [N,T,D] -> states [N,T,D]; see `TextTower.states`."""
        return self._each(lambda tower, part: tower.states(part, chunk_rows), embeddings)

    def finish(self, states: Tensor) -> Tensor:
        """states [...,D] -> encoding [...,D]; see `TextTower.finish`."""
        return self._each(TextTower.finish, states)

    def shift(self, states: Tensor, bypass: Tensor, alpha: float | Tensor) -> Tensor:
        """The textual bypass, in every tower by itself; see `add_bypass`."""
        widths = list(self.widths)
        parts = zip(states.split(widths, dim=-1), bypass.split(widths, dim=-1), strict=True)
        return torch.cat([add_bypass(own, direction, alpha) for own, direction in parts], dim=-1)

    @property
    def has_pooled(self) -> bool:
        """Whether the U-Net also reads the text as one vector, the last tower's (SDXL)."""
        return len(self.towers) > 1

    def pooled(self, states: Tensor, ids: Tensor) -> Tensor:
        """The pooled text [N,.] of `states` [N,T,D] and the ids [N|1,T] they stand for."""
        last = self.towers[-1]
        ends = (ids == last.tokenizer.eos_token_id).int().argmax(dim=-1).expand(len(states))
        return last.pooled(states[..., -last.width :], ends.to(states.device))

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        for tower in self.towers:
            tower.encoder.gradient_checkpointing_enable({"use_reentrant": False})
            tower.encoder.train()  # transformers checkpoints in train mode only; CLIP has no dropout to switch on

    def _each(self, stage: Callable[[TextTower, Tensor], Tensor], joined: Tensor) -> Tensor:
        parts = joined.split(list(self.widths), dim=-1)
        return torch.cat([stage(tower, part) for tower, part in zip(self.towers, parts, strict=True)], dim=-1)


def text_stack(tokenizer: Any, encoder: Any, tokenizer_2: Any = None, encoder_2: Any = None) -> TextStack:
    """The towers of a model's (or a pipeline's) text encoders: one of SD 1.x/2.x, or two of SDXL."""
    if encoder_2 is None:
        return TextStack((TextTower(tokenizer, encoder),))
    return TextStack((TextTower(tokenizer, encoder, "penultimate"), TextTower(tokenizer_2, encoder_2, "penultimate")))


def add_bypass(states: Tensor, bypass: Tensor, alpha: float | Tensor) -> Tensor:
    """Textual bypass (NeTI, section 4): h + alpha * ||h|| * v / ||v||, and h where v = 0.

    states h, bypass v: broadcastable to [...,D]; alpha: a number, or [...,1]. Only the direction of v counts.
    In float32, returned in h's dtype.
    """
    h = states.float()
    direction = torch.nn.functional.normalize(bypass.float(), dim=-1)
    return (h + alpha * torch.linalg.vector_norm(h, dim=-1, keepdim=True) * direction).to(states.dtype)
