"""One prompt at all denoising steps, encoded as they come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..attention.projection import join_projections
from .composition import AnyConcept
from .conditioning import Conditioning, condition
from .tokens import tokenize

if TYPE_CHECKING:
    from ..backbone.backbone import Backbone

KEPT_BYTES = 2**26  # of a prompt's conditioning


class PromptConditioning:
    """One prompt, ready for the U-Net at every denoising step; made by `generation.sampling.prepare_conditioning`.

    Text is encoded for a block of steps at a time, and kept for the next batch of seeds only as far as KEPT_BYTES go,
    so that memory does not grow with the number of steps.
    timesteps [K]: as the scheduler gives them. projection: of the layers, for the concepts that the prompt names.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompt: str,
        negative_prompt: str,
        concepts: Mapping[str, AnyConcept],
        timesteps: Tensor,
        truncation: int | None,
        chunk_rows: int,
        image_size: tuple[int, int],
    ) -> None:
        self.timesteps = timesteps
        with _eval_mode(concepts):  # where a method edits the attention otherwise than in training
            self.projection = join_projections([concept.projection() for concept in concepts.values()])
        self._backbone, self._concepts, self._truncation = backbone, concepts, truncation
        self._chunk_rows, self._image_size = chunk_rows, image_size
        self._zeros = backbone.zeros_for_empty_prompt and not negative_prompt
        positions = {name: concept.positions for name, concept in concepts.items()}
        self._texts = [
            tokenize(backbone.tokenizer, [text], positions, required=False) for text in (prompt, negative_prompt)
        ]
        self._block = max(chunk_rows // backbone.frame.num_places, 1)
        self._encoded: dict[int, list[Conditioning]] = {}

    @torch.no_grad()
    def at(self, step: int) -> tuple[Conditioning, Conditioning]:
        """(with the prompt, with the negative prompt) at step 0..K-1, each a batch of one."""
        block, place = divmod(step, self._block)
        if block not in self._encoded:
            made = self._encode(self.timesteps[block * self._block :][: self._block])
            size = sum(each.nbytes for each in made)
            if size * (len(self._encoded) + 1) > KEPT_BYTES:
                self._encoded = {}
            self._encoded[block] = made
        positive, negative = self._encoded[block]
        return positive.at(place), negative.at(place)

    def _encode(self, timesteps: Tensor) -> list[Conditioning]:
        with _eval_mode(self._concepts):
            vectors = {name: each.vectors(timesteps, self._truncation) for name, each in self._concepts.items()}
            text, frame = self._backbone.text, self._backbone.frame
            positive, negative = (
                condition(text, tokens, vectors, frame, self._chunk_rows, self._image_size) for tokens in self._texts
            )
        return [positive, negative.zeros() if self._zeros else negative]


@contextmanager
def _eval_mode(concepts: Mapping[str, AnyConcept]) -> Iterator[None]:
    """Nested dropout off while sampling, also in the middle of a training; every module gets its own mode back."""
    training = [module for each in concepts.values() for module in each.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
