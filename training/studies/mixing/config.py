# ruff: noqa: UP045  (pyrallis 0.3.1 knows Optional[X] but not X | None, and no postponed annotations)
"""Every setting of `scripts/measure_mixing.py`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from ....models.conditioning.prompts import SLOT
from ....utils.config.values import setting
from ....utils.seeds import parse_seeds
from ...miniature.world.objects import CONCEPTS
from ..config import StudyConfig

FIRST, SECOND = "{first}", "{second}"  # the two concepts in the prompts below


@dataclass(frozen=True)
class MixingConfig(StudyConfig):
    """One measurement of style mixing and of several concepts in one image."""

    # Kinds of things that the U-Net learned (unet.categories of its pretraining)
    categories: tuple[str, ...] = ("cat", "dog", "bird", "car", "cup", "flower")
    # Style mixing, each "concept that gives geometry + concept that gives appearance"; empty leaves it out
    style_pairs: tuple[str, ...] = (
        "tiger + taxi",
        "taxi + tiger",
        "wolf + sunflower",
        "teapot + bluebird",
        "eagle + hibiscus",
        "police_car + teacup",
    )
    # The timesteps at which mixing starts
    mixing_start: tuple[int, ...] = setting((150, 350, 550, 750, 950), at_least=0, at_most=999)
    # Seeds of each pair and start
    style_seeds: tuple[int, ...] = setting((0, 1, 2, 3), at_least=0, parse=parse_seeds)
    # The prompt of style mixing
    style_prompt: str = "a photo of a {}"
    # Two concepts in one image, each "concept + concept" of different kinds; empty leaves it out
    both_pairs: tuple[str, ...] = (
        "tiger + taxi",
        "wolf + bluebird",
        "eagle + teapot",
        "police_car + sunflower",
        "teacup + hibiscus",
        "tiger + sunflower",
        "wolf + taxi",
        "bluebird + teacup",
        "eagle + police_car",
        "teapot + hibiscus",
    )
    # Seeds of each pair
    both_seeds: tuple[int, ...] = setting(tuple(range(8)), at_least=0, parse=parse_seeds)
    # The first this many of both_seeds for each of the things that may help
    help_seeds: int = setting(4, at_least=1)
    # The prompt for two concepts, {first} and {second}
    both_prompt: str = f"a photo of a {FIRST} next to a {SECOND}"
    # The same with sides, one of the things that may help
    sides_prompt: str = f"a photo of a {FIRST} on the left and a {SECOND} on the right"
    # Hidden units of each concept, one of the things that may help
    help_truncation: int = setting(16, at_least=0)
    # How concepts of Perfusion are learned, which are then asked for too, by each lock; unset: they take no part
    perfusion_config: Optional[Path] = None
    # Renders from which the detectors are learned
    renders: int = setting(900, at_least=60, at_most=1_000_000)
    # Results, images and learned concepts; delete it to measure everything again
    work_dir: Path = Path("outputs/measure_mixing")

    @property
    def names(self) -> list[str]:
        """The concepts of all pairs."""
        return list(dict.fromkeys(name for pair in (*self.style_pairs, *self.both_pairs) for name in pair_of(pair)))

    def problems(self) -> list[str]:
        """One line for each combination of values that makes no sense."""
        lines = super().problems()
        for key in ("style_pairs", "both_pairs"):
            for pair in getattr(self, key):
                names = pair_of(pair)
                if len(names) != 2 or not all(names):
                    lines.append(f'{key}: {pair!r} must read "concept + concept"')
                elif unknown := [name for name in names if name not in CONCEPTS]:
                    lines.append(f"{key}: {pair!r}: there is no {unknown[0]}; there are {', '.join(CONCEPTS)}")
                elif key == "both_pairs" and len({CONCEPTS[name][0] for name in names}) == 1:
                    lines.append(f"{key}: {pair!r} are of one kind, which their words cannot tell apart")
        if self.perfusion_config is not None and not self.perfusion_config.is_file():
            lines.append(f"perfusion_config = {self.perfusion_config}: there is no such file")
        if not (self.style_pairs or self.both_pairs):
            lines.append("style_pairs and both_pairs are both empty; there is nothing to measure")
        if len(set(self.mixing_start)) < 2:
            lines.append("mixing_start needs two or more timesteps: the question is what changes along them")
        if SLOT not in self.style_prompt:
            lines.append(f"style_prompt = {self.style_prompt!r} has no {SLOT}")
        for key in ("both_prompt", "sides_prompt"):
            if not (FIRST in getattr(self, key) and SECOND in getattr(self, key)):
                lines.append(f"{key} = {getattr(self, key)!r} must name {FIRST} and {SECOND}")
        if self.help_seeds > len(self.both_seeds):
            lines.append(f"help_seeds = {self.help_seeds}: there are {len(self.both_seeds)} both_seeds")
        return lines


def pair_of(text: str) -> list[str]:
    """The two names in "tiger + taxi"."""
    return [name.strip() for name in text.split("+")]
