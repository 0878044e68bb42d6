"""Which of a pipeline's concepts edit the attention: those that the prompts at hand name, as in `generation.draw`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from diffusers.models.attention_processor import Attention
from torch import Tensor

from ...utils.errors import UserError
from ..attention.layers import Layer
from ..attention.projection import KeyValueProjection, join_projections
from ..conditioning.composition import AnyConcept


class NamedEdits(KeyValueProjection):
    """The projection for those of several concepts that were last `choose`n; at first for none.

    concepts: by placeholder, in the order of their slots. Raises UserError for concepts whose edits do not go together.
    """

    def __init__(self, concepts: Mapping[str, AnyConcept]) -> None:
        own = {name: concept.projection() for name, concept in concepts.items()}
        self.image_tokens = join_projections(list(own.values())).image_tokens
        self.names = frozenset(name for name, projection in own.items() if projection is not None)
        self._own = own
        self._joined: dict[frozenset[str], KeyValueProjection] = {}
        self.choose([])

    def choose(self, names: Collection[str]) -> None:
        """Edit for these concepts from now on. What is computed once for a choice is kept."""
        wanted = self.names & frozenset(names)
        if wanted not in self._joined:
            chosen = [projection if name in wanted else None for name, projection in self._own.items()]
            self._joined[wanted] = join_projections(chosen)
        self._chosen = self._joined[wanted]

    def check_same(self, prompts: Sequence[Collection[str]]) -> None:
        """Raise UserError unless all images of one call, given as the names in their prompts, are edited alike."""
        edits = {self.names & frozenset(names) for names in prompts}
        if len(edits) > 1:
            one, other = sorted(", ".join(sorted(names)) or "none" for names in edits)[:2]
            raise UserError(
                f"prompts of one call name different concepts that edit the attention ({one}; {other}); call the "
                "pipeline once for each"
            )

    def project(
        self, attn: Attention, layer: Layer, keys: Tensor, values: Tensor, slots: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `KeyValueProjection.project`."""
        return self._chosen.project(attn, layer, keys, values, slots)

    def extra(
        self, attn: Attention, layer: Layer, query: Tensor, key: Tensor, slots: Tensor, image: Tensor
    ) -> Tensor | None:
        """See `KeyValueProjection.extra`."""
        return self._chosen.extra(attn, layer, query, key, slots, image)
