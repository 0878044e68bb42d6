"""Perfusion's edit inside the cross-attention layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from ....utils.errors import UserError
from ...attention.layers import Layer
from ...attention.projection import KeyValueProjection
from .edit import RankOneEdit, dual

if TYPE_CHECKING:
    from .method import Perfusion

Side = Literal["key", "value"]


class PerfusionProjection(KeyValueProjection):
    """Keys and values of a prompt with one or several Perfusion concepts.

    concepts: by their slot in the prompt. Whether they train or are drawn is taken from their mode now, not later. For
    drawing, what does not depend on the prompt, W i* above all, is computed once per layer; in training, where the key
    moves, at every call.
    Raises UserError for concepts that do not go together: of another covariance, drawn in other ways, or one twice.
    """

    def __init__(self, concepts: Mapping[int, Perfusion]) -> None:
        self.concepts = concepts
        self._keep = not any(concept.training for concept in concepts.values())
        self._kept_edits: dict[Side, RankOneEdit | None] | None = None
        self._kept_rows: dict[tuple[Side, int], Tensor] = {}
        self._editing: dict[Side, dict[int, Perfusion]] = {
            "key": {slot: concept for slot, concept in concepts.items() if concept.edits_keys},
            "value": dict(concepts),
        }
        self._gates = {slot: (concept.beta, concept.tau) for slot, concept in concepts.items()}
        first = next(iter(concepts.values()))
        self._edit_plain = first.settings.edit_plain
        self._inverse = None if first.covariance is None else first.covariance.inverse
        for other in list(concepts.values())[1:]:
            _check_together(first, other)
        if len(concepts) > 1:
            self._edit("value", torch.device("cpu"))  # UserError now, not while drawing

    @classmethod
    def joined(cls, projections: Sequence[KeyValueProjection | None]) -> KeyValueProjection:
        """The edit of all of them together; see `KeyValueProjection.joined`. Concepts without a projection (None) stand
        in the prompt as they always do, and their tokens are edited like any others."""
        found = {
            slot: concept
            for slot, projection in enumerate(projections, start=1)
            if isinstance(projection, PerfusionProjection)
            for concept in projection.concepts.values()
        }
        return cls(found)

    def project(
        self, attn: Attention, layer: Layer, keys: Tensor, values: Tensor, slots: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `KeyValueProjection.project`: the frozen layers run as they are, and the edit is added."""
        edits = self._edits(values.device)
        return (
            self._edited("key", edits["key"], attn.to_k, layer, keys, slots),
            self._edited("value", edits["value"], attn.to_v, layer, values, slots),
        )

    def _edited(
        self, side: Side, edit: RankOneEdit | None, linear: Any, layer: Layer, text: Tensor, slots: Tensor
    ) -> Tensor:
        frozen: Tensor = linear(text)
        if edit is None:
            return frozen
        coefficients = edit.coefficients(text, slots)
        if not self._edit_plain:
            coefficients = coefficients * (slots > 0).any(dim=1)[:, None, None]
        return frozen + (coefficients @ self._rows(side, edit, linear, layer, text)).to(frozen.dtype)

    def _rows(self, side: Side, edit: RankOneEdit, linear: Any, layer: Layer, text: Tensor) -> Tensor:
        if (kept := self._kept_rows.get((side, layer.index))) is not None:
            return kept
        targets = [concept.target(side, layer).to(text.device) for concept in self._editing[side].values()]
        # through the layer itself: whatever is added to it, a LoRA for instance, is added to W i* as it is to W e
        rows = edit.rows(lambda key: linear(key.to(text.dtype)), torch.stack(targets))
        if self._keep:
            self._kept_rows[side, layer.index] = rows
        return rows

    def _edits(self, device: torch.device) -> dict[Side, RankOneEdit | None]:
        """The edit of the keys, if there is one, and that of the values."""
        if self._kept_edits is not None:
            return self._kept_edits
        value = self._edit("value", device)
        locked = self._editing["key"]
        key = value if locked.keys() == self.concepts.keys() else self._edit("key", device) if locked else None
        edits: dict[Side, RankOneEdit | None] = {"key": key, "value": value}
        if self._keep:
            self._kept_edits = edits
        return edits

    def _edit(self, side: Side, device: torch.device) -> RankOneEdit:
        slots, concepts = list(self._editing[side]), list(self._editing[side].values())
        first = concepts[0]
        keys = torch.stack([concept.key.to(device) for concept in concepts])
        if self._inverse is not None and self._inverse.device != device:
            self._inverse = self._inverse.to(device)
        return RankOneEdit(
            keys=keys,
            duals=keys if self._inverse is None else dual(keys, self._inverse),
            beta=_each([self._gates[slot][0] for slot in slots], device),
            tau=_each([self._gates[slot][1] for slot in slots], device),
            scale=_each([concept.settings.scale for concept in concepts], device),
            slot_numbers=tuple(slots),
            mode=first.config.gate_mode,
            overlap=first.settings.overlap,
        )


def _each(numbers: list[float], device: torch.device) -> Tensor | float:
    """One number stays one: a tensor made of it would have a GPU wait at every training step."""
    return numbers[0] if len(numbers) == 1 else torch.tensor(numbers, device=device)


def _check_together(one: Perfusion, other: Perfusion) -> None:
    """Raise UserError unless two concepts can be edited into one layer."""
    for name, own, its in (
        ("gate_mode", one.config.gate_mode, other.config.gate_mode),
        ("covariance", one.config.covariance_digest, other.config.covariance_digest),
        ("overlap", one.settings.overlap, other.settings.overlap),
        ("edit_plain", one.settings.edit_plain, other.settings.edit_plain),
    ):
        if own != its:
            raise UserError(
                f"two Perfusion concepts of one prompt differ in {name} ({own} and {its}); it has to be the same"
            )
