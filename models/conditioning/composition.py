"""What stands at a placeholder: one learned concept, or several by turns, chosen by layer and timestep.

Style mixing (geometry of one concept, appearance of another) and a truncation that changes with time are mixtures of
one or two rules.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ...utils.errors import UserError
from ..attention.layers import Layer
from ..attention.projection import KeyValueProjection
from ..backbone.frame import Frame
from ..methods import Method
from ..methods.neti.positional_encoding import NUM_TIMESTEPS
from .conditioning import ConceptVectors
from .prompts import SLOT, Prompt

AnyConcept: TypeAlias = "Method | Mixture"  # whatever has `vectors(timesteps, truncation)`
GEOMETRY_DOWNSAMPLING = 4  # the 16x16 and 8x8 layers of SD 1.x: IN07, IN08, MID, OUT03, OUT04, OUT05


@dataclass(frozen=True)
class Rule:
    """`concept` is what counts at these layers and timesteps.

    layers: indices in execution order; None: all. timesteps: first and last, both included; noise is at 999, the image
    at 0. truncation: hidden units kept; None leaves it to the call (all, unless it says otherwise).
    """

    concept: AnyConcept
    layers: frozenset[int] | None = None
    timesteps: tuple[int, int] = (0, NUM_TIMESTEPS - 1)
    truncation: int | None = None

    def where(self, timesteps: Tensor, num_places: int) -> Tensor:
        """Whether the rule applies, [P|1, B|1, 1], at timesteps [B]; a 1 stands for all places (timesteps).

        Some samplers stop between whole timesteps; these count as the next one up, so that 0-600 and 601-999 leave no
        gap and a t of 600.5 is still "above 600".
        """
        layers = torch.tensor([True if self.layers is None else l in self.layers for l in range(num_places)])  # noqa: E741
        first, last = self.timesteps
        whole = timesteps.ceil()
        times = (whole >= first) & (whole <= last)
        layers, times = (mask[:1] if mask.all() else mask for mask in (layers.to(times.device), times))
        return layers[:, None, None] & times[None, :, None]


class Mixture(nn.Module):
    """Several concepts at one placeholder: of the rules that apply at a layer and timestep the LAST one counts.

    A module, so that the concepts' parameters and modes are reached as they are in a `Method`.
    """

    def __init__(self, rules: Sequence[Rule], layer_names: Sequence[str] = ()) -> None:
        """layer_names: of all L layers, for messages. Raises UserError for concepts of different base models, a
        truncation that a concept does not have, and a layer and timestep at which no rule applies."""
        super().__init__()
        self.rules: tuple[Rule, ...] = tuple(rules)
        self.concepts = nn.ModuleList(rule.concept for rule in rules)
        sizes = {rule.concept.frame.sizes for rule in rules}
        if len(sizes) != 1:
            shown = " and ".join(f"{places} layers of width {sum(widths)}" for places, widths in sorted(sizes))
            raise UserError(f"a mixture needs concepts of one base model, not of {shown or 'none'}")
        self.frame: Frame = rules[0].concept.frame
        self.positions: int = rules[0].concept.positions
        for rule in rules:
            _check(rule, self.frame.num_places)
        if gap := _gap(rules, layer_names or [f"layer {index}" for index in range(self.frame.num_places)]):
            raise UserError(f"no rule is for {gap}; begin with a rule for all layers and timesteps")
        if len(rules) > 1 and any(rule.concept.projection() is not None for rule in rules):
            raise UserError("a concept that edits the attention cannot take turns with others; use it alone")
        if len({rule.concept.positions for rule in rules}) != 1:
            raise UserError("a mixture needs concepts of equally many vectors")
        words = list(dict.fromkeys(rule.concept.key_word for rule in rules))
        if len(words) > 1:
            named = ", ".join(word or "the concept itself" for word in words)
            raise UserError(f"a mixture needs concepts whose keys come from the same word (key_lock), not from {named}")

    def vectors(self, timesteps: Tensor, truncation: int | None = None) -> ConceptVectors:
        """As `Method.vectors` at `timesteps` [B]; `truncation` is for the rules without one of their own.

        Where a concept has no bypass, its direction and alpha are 0, which leaves the text encoder's state alone.
        """
        each = [
            rule.concept.vectors(timesteps, truncation if rule.truncation is None else rule.truncation)
            for rule in self.rules
        ]
        if len(each) == 1:
            return each[0]
        words = bypass = alpha = torch.zeros(1, 1, 1, device=each[0].words.device)
        for rule, one in zip(self.rules, each, strict=True):
            here = rule.where(timesteps, self.frame.num_places).to(words.device)
            words = torch.where(here[..., None] if one.words.dim() == 4 else here, one.words, words)
            bypass = torch.where(here, 0.0 if one.bypass is None else one.bypass, bypass)
            alpha = torch.where(here, 0.0 if one.bypass is None else one.bypass_alpha, alpha)
        if all(one.bypass is None for one in each):
            return ConceptVectors(words, key_words=self.key_word)
        return ConceptVectors(words, bypass, alpha, key_words=self.key_word)

    @property
    def key_word(self) -> str | None:
        """As `Method.key_word`, the same for all rules."""
        return self.rules[0].concept.key_word

    def check_truncation(self, truncation: int | None) -> None:
        """Raise UserError if a rule would have to keep `truncation` units and its concept cannot."""
        for rule in self.rules:
            rule.concept.check_truncation(truncation if rule.truncation is None else rule.truncation)

    def projection(self) -> KeyValueProjection | None:
        """Of the only rule's concept; several rules have none."""
        return self.rules[0].concept.projection() if len(self.rules) == 1 else None


def geometry_layers(layers: Sequence[Layer]) -> frozenset[int]:
    """The inner layers, which decide content and shape; the others decide colour and texture (P+, section 4)."""
    return frozenset(layer.place for layer in layers if layer.downsampling >= GEOMETRY_DOWNSAMPLING)


def place_names(layers: Sequence[Layer]) -> list[str]:
    """Names of the places, which are the layers themselves on SD 1.x/2.x."""
    return list(dict.fromkeys(layer.place_name for layer in layers))


def style_mixture(
    geometry: AnyConcept,
    appearance: AnyConcept,
    layers: Sequence[Layer],
    mixing_start: int,
    inner: Collection[int] | None = None,
) -> Mixture:
    """Geometry of one concept, appearance of another (NeTI, style mixing).

    For t > mixing_start all layers belong to `geometry`; from there on (t <= mixing_start) only the `inner` ones do,
    and all others to `appearance`. A larger start gives more of the appearance concept.
    layers: all of the U-Net's. inner: indices; None takes `geometry_layers`.
    """
    kept = geometry_layers(layers) if inner is None else frozenset(inner)
    outer = frozenset(layer.place for layer in layers) - kept
    names = place_names(layers)
    return Mixture([Rule(geometry), Rule(appearance, layers=outer, timesteps=(0, mixing_start))], names)


def parse_layers(text: str, layers: Sequence[Layer]) -> frozenset[int]:
    """Indices of the layers that a person means: `all`, `geometry`, `appearance`, `MID`, `IN07-OUT05`, or several.

    Ranges run in execution order and include both ends; a comma joins. UserError for any other word.
    """
    inner, names = geometry_layers(layers), place_names(layers)
    every = frozenset(range(len(names)))
    words = {"all": every, "geometry": inner, "appearance": every - inner}
    found: set[int] = set()
    for part in (part.strip() for part in text.split(",")):
        first, dash, last = (word.strip() for word in part.partition("-"))
        last = last if dash else first
        if part in words:
            found |= words[part]
        elif first in names and last in names:
            ends = names.index(first), names.index(last)
            if ends[1] < ends[0]:
                raise UserError(f"layers {part!r}: the range runs backwards; write {last}-{first}")
            found |= set(range(ends[0], ends[1] + 1))
        else:
            raise UserError(
                f"layers {part!r}: must be {', '.join(words)}, one of {', '.join(names)}, or a range such as "
                f"{names[0]}-{names[-1]}"
            )
    return frozenset(found)


def concepts_in(prompt: Prompt, concepts: Mapping[str, AnyConcept]) -> dict[str, AnyConcept]:
    """The concepts of a prompt by the text they stand for in it: `{mug}`, or `{mug:16}` for its first 16 hidden units.

    concepts: by name, `{}` for the one without. Raises UserError for a name that is not there.
    """
    found: dict[str, AnyConcept] = {}
    for slot in prompt.slots:
        concept = concepts.get(slot.name)
        if concept is None:
            known = ", ".join(name if name == SLOT else f"{{{name}}}" for name in concepts) or "none"
            raise UserError(f"the prompt {prompt.text!r} names {slot.text}; the concepts are: {known}")
        try:
            found[slot.text] = concept if slot.units is None else Mixture([Rule(concept, truncation=slot.units)])
        except UserError as error:
            raise UserError(f"the prompt {prompt.text!r}, {slot.text}: {error}") from None
    return found


def require_concept(prompt: Prompt, concepts: Mapping[str, AnyConcept]) -> None:
    """Raise UserError for a prompt in which no concept would appear."""
    if not prompt.slots:
        first = next(iter(concepts), SLOT)
        shown = first if first == SLOT else f"{{{first}}}"
        raise UserError(
            f"the prompt {prompt.text!r} has no {shown}, so no concept would appear in it; "
            f'write {shown} where the concept belongs, as in "A photo of a {shown}"'
        )


def _check(rule: Rule, num_layers: int) -> None:
    rule.concept.check_truncation(rule.truncation)
    first, last = rule.timesteps
    if not 0 <= first <= last < NUM_TIMESTEPS:
        raise UserError(f"timesteps {first}-{last}: must rise and lie in 0..{NUM_TIMESTEPS - 1}")
    if rule.layers is not None and not rule.layers <= set(range(num_layers)):
        raise UserError(f"layers {sorted(rule.layers)}: must lie in 0..{num_layers - 1}")


def _gap(rules: Sequence[Rule], names: Sequence[str]) -> str:
    """The first layer at which no rule is for some timestep, with those timesteps; empty if there is none."""
    every = torch.arange(NUM_TIMESTEPS)
    covered = torch.zeros(len(names), NUM_TIMESTEPS, dtype=torch.bool)
    for rule in rules:
        covered |= rule.where(every, len(names))[..., 0]
    for name, row in zip(names, covered.tolist(), strict=True):
        for silent, run in groupby(enumerate(row), key=lambda place: not place[1]):
            if silent:
                times = [t for t, _ in run]
                return f"{name}, timesteps {times[0]}-{times[-1]}"
    return ""
