"""What a concept can be drawn with: read from its method, with a range for a slider and steps to compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ....models.concepts.concept import Concept
from ....models.methods.perfusion.config import Lock

TRUNCATION = "truncation"
NOTHING = "nothing"  # is compared


@dataclass(frozen=True)
class Slider:
    """How one setting of a method is shown. compare: the values that stand side by side."""

    label: str
    info: str
    low: float
    high: float
    step: float
    compare: tuple[float, ...]


SLIDERS = {
    "beta": Slider(
        "beta", "lower: more of the concept, higher: more of the prompt", 0.3, 1.0, 0.05, (0.5, 0.6, 0.7, 0.8)
    ),
    "tau": Slider("tau", "how softly the concept's gate opens", 0.05, 0.5, 0.05, (0.05, 0.15, 0.3)),
    "strength": Slider("strength", "higher: closer to the photo, harder to edit", 0.0, 1.5, 0.05, (0.0, 0.4, 0.8, 1.2)),
}
LOCKS = [lock.value for lock in Lock]


@dataclass(frozen=True)
class Controls:
    """What one concept offers. units: 0 if it cannot be truncated; sliders: setting -> where it stands now."""

    units: int
    sliders: dict[str, float]
    lock: str | None
    has_key_lock: bool

    @property
    def comparable(self) -> list[str]:
        """The names of what can be varied for a comparison."""
        names = [TRUNCATION] * bool(self.units) + list(self.sliders)
        return names + ["lock"] * (self.lock is not None) + ["key_lock"] * self.has_key_lock

    def steps(self, name: str) -> list[Any]:
        """The values of one control that stand side by side; None is "all units"."""
        if name == TRUNCATION:
            return [None, *dict.fromkeys(max(self.units // part, 1) for part in (2, 8, 32))]
        choices: dict[str, list[Any]] = {"lock": ["local", "global"], "key_lock": [False, True]}
        return choices.get(name) or list(SLIDERS[name].compare)

    def widgets(self, truncation: int | None = None, **settings: Any) -> list[dict[str, Any]]:
        """What the page shows, in one order: truncation, lock, key lock, what to compare, then every slider.

        truncation, settings: where they stand, if not as the concept is.
        """
        units = self.units if truncation is None else truncation
        rows: list[dict[str, Any]] = [
            {"value": units, "maximum": max(self.units, 1), "visible": bool(self.units)},
            {"value": settings.get("lock", self.lock), "visible": self.lock is not None},
            {"value": bool(settings.get("key_lock")), "visible": self.has_key_lock},
            {"value": NOTHING, "choices": [NOTHING, *self.comparable], "visible": bool(self.comparable)},
        ]
        at = {**self.sliders, **settings}
        return rows + [
            {"value": at.get(name, each.low), "visible": name in self.sliders} for name, each in SLIDERS.items()
        ]

    def chosen(self, truncation: float, lock: str, key_lock: bool, *moved: float) -> tuple[int | None, dict[str, Any]]:
        """What a person has moved: units kept (None: all), and those settings of the concept that differ."""
        units = int(truncation) if self.units and truncation < self.units else None
        at = dict(zip(SLIDERS, moved, strict=True))
        settings: dict[str, Any] = {name: at[name] for name, own in self.sliders.items() if at[name] != own}
        settings |= {"lock": lock} if self.lock is not None and lock != self.lock else {}
        return units, settings | ({"key_lock": True} if self.has_key_lock and key_lock else {})


NO_CONTROLS = Controls(0, {}, None, False)


def controls_of(concept: Concept) -> Controls:
    """Read from the method's own settings, so that a new method needs a slider's range and nothing else."""
    method = concept.method
    lasting = {"beta": "inference_beta", "tau": "inference_tau"}  # what a setting stands at, in the concept's config
    sliders = {
        name: float(getattr(method.config, lasting.get(name, name)))
        for name in SLIDERS
        if method.has_setting(name) and (name != "strength" or method.config.patches)
    }
    lock = str(Lock(method.config.lock)) if method.has_setting("lock") else None
    return Controls(method.truncation_width, sliders, lock, method.has_setting("key_lock"))
