"""Prompts to token ids, with the placeholders found in the text and never added to the tokenizer."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from ftfy import fix_text
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...utils.errors import UserError, shown
from .prompts import placeholder_pattern, placeholder_problem

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tokens:
    """ids [B,T], long; slots: placeholder -> mask [B,T], bool, True where it stands (there `ids` holds a filler)."""

    ids: Tensor
    slots: Mapping[str, Tensor]


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    placeholders: Sequence[str] | Mapping[str, int],
    *,
    required: bool = True,
) -> Tokens:
    """Tokenize prompts that hold the literal, case-sensitive placeholder strings ("A photo of a {}").

    placeholders: each takes one position, or as many as the mapping says, any number of times, several per prompt. One
        that begins or ends with a letter is not found inside other words.
    T = `tokenizer.model_max_length`; shorter prompts are padded as the tokenizer pads. A prompt that is too long is cut
    with a warning, once. Raises UserError naming the prompt if it would lose a placeholder to the cut, or holds none
    of them when they are `required`.

    Curly quotes, `&amp;`, ligatures and text in a broken encoding read as what they stand for, as CLIP was trained and
    as the public code's tokenizer did by ftfy; the tokenizers of today no longer do it.

    Differs from the reference: the public code adds the placeholder to the tokenizer; CLIP tokenizers of today then
    also match it with other capitals.
    """
    lengths = placeholders if isinstance(placeholders, Mapping) else dict.fromkeys(placeholders, 1)
    ids, placed = zip(*(_encode(tokenizer, prompt, lengths, required) for prompt in prompts), strict=True)
    slots = {name: torch.tensor([[slot == name for slot in row] for row in placed]) for name in placeholders}
    return Tokens(ids=torch.tensor(ids), slots=slots)


def check_placeholder(tokenizer: PreTrainedTokenizerBase, placeholder: str) -> None:
    """Raise UserError unless `placeholder` can stand for a new concept: one word the vocabulary does not know."""
    if problem := placeholder_problem(placeholder):
        raise UserError(f"placeholder {shown(placeholder)}: {problem}")
    if len(tokenizer(placeholder, add_special_tokens=False).input_ids) == 1:
        raise UserError(
            f"placeholder {placeholder!r}: already a word of the model's vocabulary; choose a new one such as "
            f"'<{placeholder.strip('<>')}>'"
        )


def _encode(
    tokenizer: PreTrainedTokenizerBase, prompt: str, placeholders: Mapping[str, int], required: bool
) -> tuple[list[int], list[str | None]]:
    """One prompt -> ids [T] and, per position, the placeholder that stands there."""
    ids: list[int] = [tokenizer.bos_token_id]
    placed: list[str | None] = [None]
    for piece in _split(prompt, placeholders):
        if piece in placeholders:
            ids += [tokenizer.bos_token_id] * placeholders[piece]  # a filler: its embedding is replaced
            placed += [piece] * placeholders[piece]
        else:
            piece_ids = tokenizer(fix_text(piece), add_special_tokens=False).input_ids
            ids += piece_ids
            placed += [None] * len(piece_ids)

    if required and placeholders and not any(placed):
        raise UserError(
            f"prompt {shown(prompt)}: names none of the concepts; write one of {', '.join(placeholders)} where it goes"
        )
    length = tokenizer.model_max_length
    if len(ids) + 1 > length:
        if any(placed[length - 1 :]):
            raise UserError(
                f"prompt {shown(prompt)}: {len(ids) - 1} tokens, the model reads {length - 2}, and a placeholder would "
                "be cut off; shorten the prompt or move the placeholder to its front"
            )
        _warn_of_cut(prompt, len(ids) - 1, length - 2)
        ids, placed = ids[: length - 1], placed[: length - 1]
    ids.append(tokenizer.eos_token_id)
    padding = length - len(ids)
    return ids + [tokenizer.pad_token_id] * padding, placed + [None] * (1 + padding)


@functools.lru_cache(maxsize=4096)  # the same caption comes at every step
def _warn_of_cut(prompt: str, tokens: int, read: int) -> None:
    logger.warning("prompt %s: %d tokens, the model reads %d; the rest is cut", shown(prompt), tokens, read)


def _split(prompt: str, placeholders: Iterable[str]) -> list[str]:
    """The prompt's pieces, placeholders as pieces of their own; of two that overlap the longer one is meant."""
    longest_first = sorted(placeholders, key=len, reverse=True)
    if not longest_first:
        return [prompt]
    return re.split("(" + "|".join(map(placeholder_pattern, longest_first)) + ")", prompt)
