# ruff: noqa: UP045  (pyrallis 0.3.1 knows Optional[X] but not X | None, and no postponed annotations)
"""How a person writes which concept speaks where: the rules of a mixture, and style mixing."""

import difflib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Optional

from ...utils.config.parsing import CUTOFF, Config
from ...utils.config.values import NULL, convert, setting
from ...utils.errors import UserError, shown

LAST_TIMESTEP = 999
TIMESTEP = re.compile(r"[0-9]{1,3}")


@dataclass(frozen=True)
class RuleConfig:
    """One rule, as in `{concept: mug, layers: "OUT06-OUT11", timesteps: "0-600", truncation: 16}`."""

    # Name of a concept
    concept: str
    # Names (IN07), ranges (IN07-OUT05), all, geometry or appearance; the model's own names
    layers: str = "all"
    # First and last, both included
    timesteps: tuple[int, int] = (0, LAST_TIMESTEP)
    # Hidden units kept; unset: as truncation_idxs says
    truncation: Optional[int] = None


@dataclass(frozen=True)
class StyleMixingConfig(Config):
    """Geometry of one concept, appearance of another, in every prompt with {}."""

    # Name of the concept that gives content and shape
    geometry: str = ""
    # Name of the concept that gives colour and texture
    appearance: str = ""
    # Timesteps at which mixing starts (noise is at 999, the image at 0), one column each
    mixing_start: tuple[int, ...] = setting((800, 600, 400, 200), at_least=0, at_most=LAST_TIMESTEP)
    # Layers that stay with the geometry concept: names, ranges, or geometry (the 16x16 and 8x8 ones of SD 1.x)
    geometry_layers: str = setting("geometry")

    @property
    def wanted(self) -> bool:
        return bool(self.geometry or self.appearance)

    @property
    def names(self) -> dict[int, str]:
        """Start -> the name under which that mixture stands in prompts."""
        return {start: f"{self.geometry}-{self.appearance}-{start}" for start in dict.fromkeys(self.mixing_start)}

    def problems(self) -> list[str]:
        lines = []
        if self.wanted and not (self.geometry and self.appearance):
            lines.append("style_mixing needs two concepts; write geometry: and appearance:")
        if self.wanted and not self.mixing_start:
            lines.append("style_mixing.mixing_start is empty; write timesteps such as [800, 600, 400, 200]")
        return lines


def parse_settings(raw: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Setting -> its values: numbers, true or false, words. Raises UserError for anything else, and for none."""
    settings = {}
    for name, values in raw.items():
        several = values if isinstance(values, list) else [values]
        if not several or not all(isinstance(value, str) for value in several):
            raise UserError(f"{shown(name)[1:-1]} must be a value, or a list such as [0.6, 0.75]")
        settings[name] = list(dict.fromkeys(map(_plain, several)))
    return settings


def combinations(settings: Mapping[str, Sequence[Any]] | None) -> list[dict[str, Any] | None]:
    """Every combination of values, setting -> value; [None] where nothing is set."""
    names, values = list(settings or {}), list((settings or {}).values())
    return [dict(zip(names, chosen, strict=True)) or None for chosen in itertools.product(*values)]


def _plain(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    try:
        number = float(text)
    except ValueError:
        return text
    if not math.isfinite(number):
        raise UserError(f"{shown(text)}: must be a finite number, true, false or a word")
    return number


def parse_mixtures(raw: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Name -> rules, each a dict of RuleConfig's values. Raises one UserError that names every mistake."""
    problems: list[str] = []
    mixtures: dict[str, list[dict[str, Any]]] = {}
    for name, rules in raw.items():
        mixtures[name] = []
        if not isinstance(rules, list) or not rules:
            problems.append(f"{shown(name)[1:-1]} must be a list of rules such as [{{concept: mug}}]")
            continue
        for number, rule in enumerate(rules, start=1):
            try:
                mixtures[name].append(_rule(rule))
            except UserError as error:
                problems.append(f"{shown(name)[1:-1]}, rule {number}: {error}")
    if problems:
        raise UserError("; ".join(problems[:8]))
    return mixtures


def _rule(raw: Any) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        raise UserError("must be written {concept: mug, layers: all, timesteps: 0-999}")
    allowed = [field.name for field in fields(RuleConfig)]
    for key in raw:
        if key not in allowed:
            close = difflib.get_close_matches(key, allowed, n=1, cutoff=CUTOFF)
            raise UserError(
                f"unknown key {shown(key)[1:-1]}; {f'did you mean {close[0]}?' if close else ', '.join(allowed)}"
            )
    if not isinstance(raw.get("concept"), str):
        raise UserError("names no concept; write concept: and one of the names under concepts")
    values: dict[str, Any] = {"concept": raw["concept"]}
    if "layers" in raw:
        layers = raw["layers"]
        values["layers"] = ",".join(convert(str, layer) for layer in (layers if isinstance(layers, list) else [layers]))
    if "timesteps" in raw:
        values["timesteps"] = _timesteps(raw["timesteps"])
    if "truncation" in raw:
        try:
            values["truncation"] = convert(Optional[int], raw["truncation"])
        except UserError as error:
            raise UserError(f"truncation {shown(raw['truncation'])} {error}") from None
    return values


def _timesteps(raw: Any) -> list[int]:
    """First and last of `all`, `600` or `0-600`."""
    if isinstance(raw, str) and raw.strip().lower() in NULL | {"all"}:
        return [0, LAST_TIMESTEP]
    first, dash, last = raw.partition("-") if isinstance(raw, str) else ("", "", "")
    ends = [first.strip(), last.strip() if dash else first.strip()]
    if not all(TIMESTEP.fullmatch(end) for end in ends) or int(ends[0]) > int(ends[1]):
        raise UserError(f'timesteps {shown(raw)}: must be all, a timestep such as 600, or a rising range in "0-999"')
    return [int(end) for end in ends]
