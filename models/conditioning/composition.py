"""Who speaks at a placeholder: one learned concept, or several by turns, chosen by layer and timestep.

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
from ..attention.layers import CrossAttentionLayer
from ..methods import Method
from ..methods.neti.positional_encoding import NUM_TIMESTEPS
from .conditioning import ConceptVectors
from .prompts import slots

Voice: TypeAlias = "Method | Mixture"  # anything with `vectors(timesteps, truncation)`
GEOMETRY_DOWNSAMPLING = 4  # the 16x16 and 8x8 layers of SD 1.x: IN07, IN08, MID, OUT03, OUT04, OUT05


@dataclass(frozen=True)
class Rule:
    """`voice` speaks at these layers and timesteps.

    layers: indices in execution order; None: all. timesteps: first and last, both included; noise is at 999, the image
    at 0. truncation: hidden units kept; None leaves it to the call (all, unless it says otherwise).
    """

    voice: Voice
    layers: frozenset[int] | None = None
    timesteps: tuple[int, int] = (0, NUM_TIMESTEPS - 1)
    truncation: int | None = None

    def where(self, timesteps: Tensor, num_layers: int) -> Tensor:
        """Whether the rule applies, [L|1, B|1, 1], at timesteps [B]; a 1 stands for all layers (timesteps).

        Some samplers stop between whole timesteps; these count as the next one up, so that 0-600 and 601-999 leave no
        gap and a t of 600.5 is still "above 600".
        """
        layers = torch.tensor([True if self.layers is None else l in self.layers for l in range(num_layers)])  # noqa: E741
        first, last = self.timesteps
        whole = timesteps.ceil()
        times = (whole >= first) & (whole <= last)
        layers, times = (mask[:1] if mask.all() else mask for mask in (layers.to(times.device), times))
        return layers[:, None, None] & times[None, :, None]


class Mixture(nn.Module):
    """Several voices at one placeholder: of the rules that apply at a layer and timestep the LAST one speaks.

    A module, so that the concepts' parameters and modes are reached as they are in a `Method`.
    """

    def __init__(self, rules: Sequence[Rule], layer_names: Sequence[str] = ()) -> None:
        """layer_names: of all L layers, for messages. Raises UserError for concepts of different base models, a
        truncation that a concept does not have, and a layer and timestep at which no rule applies."""
        super().__init__()
        self.rules: tuple[Rule, ...] = tuple(rules)
        self.voices = nn.ModuleList(rule.voice for rule in rules)
        sizes: set[tuple[int, int]] = {(rule.voice.num_layers, rule.voice.text_width) for rule in rules}
        if len(sizes) != 1:
            told = " and ".join(f"{layers} layers of width {width}" for layers, width in sorted(sizes))
            raise UserError(f"a mixture needs concepts of one base model, not of {told or 'none'}")
        self.num_layers: int = rules[0].voice.num_layers
        self.text_width: int = rules[0].voice.text_width
        for rule in rules:
            _check(rule, self.num_layers)
        if gap := _gap(rules, layer_names or [f"layer {index}" for index in range(self.num_layers)]):
            raise UserError(f"no rule speaks at {gap}; begin with a rule for all layers and timesteps")

    def vectors(self, timesteps: Tensor, truncation: int | None = None) -> ConceptVectors:
        """What is said at `timesteps` [B], as `Method.vectors`; `truncation` is for the rules without one of their own.

        Where the voice has no bypass, its direction and alpha are 0, which leaves the text encoder's state alone.
        """
        said = [
            rule.voice.vectors(timesteps, truncation if rule.truncation is None else rule.truncation)
            for rule in self.rules
        ]
        words = bypass = alpha = torch.zeros(1, 1, 1, device=said[0].words.device)
        for rule, one in zip(self.rules, said, strict=True):
            here = rule.where(timesteps, self.num_layers).to(words.device)
            words = torch.where(here, one.words, words)
            bypass = torch.where(here, 0.0 if one.bypass is None else one.bypass, bypass)
            alpha = torch.where(here, 0.0 if one.bypass is None else one.bypass_alpha, alpha)
        if all(one.bypass is None for one in said):
            return ConceptVectors(words)
        return ConceptVectors(words, bypass, alpha)

    def check_truncation(self, truncation: int | None) -> None:
        """Raise UserError if a rule would have to keep `truncation` units and its concept cannot."""
        for rule in self.rules:
            rule.voice.check_truncation(truncation if rule.truncation is None else rule.truncation)


def geometry_layers(layers: Sequence[CrossAttentionLayer]) -> frozenset[int]:
    """The inner layers, which decide content and shape; the others decide colour and texture (P+, section 4)."""
    return frozenset(layer.index for layer in layers if layer.downsampling >= GEOMETRY_DOWNSAMPLING)


def style_mixture(
    geometry: Voice,
    appearance: Voice,
    layers: Sequence[CrossAttentionLayer],
    mixing_start: int,
    inner: Collection[int] | None = None,
) -> Mixture:
    """Geometry of one concept, appearance of another (NeTI, style mixing).

    For t > mixing_start all layers belong to `geometry`; from there on (t <= mixing_start) only the `inner` ones do,
    and all others to `appearance`. A larger start gives more of the appearance concept.
    layers: all of the U-Net's. inner: indices; None takes `geometry_layers`.
    """
    kept = geometry_layers(layers) if inner is None else frozenset(inner)
    outer = frozenset(range(len(layers))) - kept
    names = [layer.name for layer in layers]
    return Mixture([Rule(geometry), Rule(appearance, layers=outer, timesteps=(0, mixing_start))], names)


def parse_layers(text: str, layers: Sequence[CrossAttentionLayer]) -> frozenset[int]:
    """Indices of the layers that a person means: `all`, `geometry`, `appearance`, `MID`, `IN07-OUT05`, or several.

    Ranges run in execution order and include both ends; a comma joins. UserError for any other word.
    """
    inner, names = geometry_layers(layers), [layer.name for layer in layers]
    every = frozenset(range(len(layers)))
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


def voices_in(prompt: str, voices: Mapping[str, Voice]) -> dict[str, Voice]:
    """The voices of a prompt by the text they stand for in it: `{mug}`, or `{mug:16}` for its first 16 hidden units.

    voices: by name, that of `{}` under "". Raises UserError for a name that is not there, and for no slot at all.
    """
    found: dict[str, Voice] = {}
    for slot in slots(prompt):
        voice = voices.get(slot.name)
        if voice is None:
            known = ", ".join(f"{{{name}}}" for name in voices) or "none"
            raise UserError(f"the prompt {prompt!r} names {slot.text}; the concepts are: {known}")
        try:
            found[slot.text] = voice if slot.units is None else Mixture([Rule(voice, truncation=slot.units)])
        except UserError as error:
            raise UserError(f"the prompt {prompt!r}, {slot.text}: {error}") from None
    if not found:
        shown = f"{{{next(iter(voices), '')}}}"
        raise UserError(
            f"the prompt {prompt!r} has no {shown}, so no concept would appear in it; "
            f'write {shown} where the concept belongs, as in "A photo of a {shown}"'
        )
    return found


def _check(rule: Rule, num_layers: int) -> None:
    rule.voice.check_truncation(rule.truncation)
    first, last = rule.timesteps
    if not 0 <= first <= last < NUM_TIMESTEPS:
        raise UserError(f"timesteps {first}-{last}: must rise and lie in 0..{NUM_TIMESTEPS - 1}")
    if rule.layers is not None and not rule.layers <= set(range(num_layers)):
        raise UserError(f"layers {sorted(rule.layers)}: must lie in 0..{num_layers - 1}")


def _gap(rules: Sequence[Rule], names: Sequence[str]) -> str:
    """The first layer at which some timestep has no voice, with those timesteps; empty if there is none."""
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
