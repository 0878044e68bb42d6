# ruff: noqa: UP045  (pyrallis 0.3.1 knows Optional[X] but not X | None, and no postponed annotations)
"""Every setting of `scripts/measure_mixing.py`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from ....models.conditioning.prompts import SLOT
from ....utils.config.parsing import Config
from ....utils.config.values import name_or_path, setting
from ....utils.seeds import parse_seeds
from ...miniature.pretraining.config import Scale

FIRST, SECOND = "{first}", "{second}"  # the two concepts in the prompts below


@dataclass(frozen=True)
class MixingConfig(Config):
    """One measurement of style mixing and of several concepts in one image."""

    # Which world the model was trained on: cpu or gpu
    scale: Scale = Scale.cpu
    # The model: "miniature", or a folder in diffusers layout
    sd: str = setting("miniature", parse=name_or_path)
    # The judge: "miniature-judge", or the folder of a transformers CLIPModel
    judge: str = setting("miniature-judge", parse=name_or_path)
    # Path of NotoColorEmoji.ttf; unset: where Debian's fonts-noto-color-emoji puts it
    font: Optional[Path] = None
    # Kinds of things that the U-Net learned (unet.categories of its pretraining)
    categories: tuple[str, ...] = ("cat", "dog", "bird", "car", "cup", "flower")
    # Folder with the held-out concepts' photos and their index concepts.yaml
    concepts_dir: Path = Path("input_configs/concepts")
    # Folder with learned concepts <name>.safetensors; those it lacks are learned here
    concept_files: Optional[Path] = None
    # How a concept is learned
    train_config: Path = Path("input_configs/train_miniature.yaml")
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
    # The same said with sides, one of the things that may help
    sides_prompt: str = f"a photo of a {FIRST} on the left and a {SECOND} on the right"
    # Hidden units of each concept, one of the things that may help
    help_truncation: int = setting(16, at_least=0)
    # Renders from which the detectors are learned
    renders: int = setting(900, at_least=60)
    # Denoising steps of DPM-Solver++
    steps: int = setting(25, at_least=1, at_most=1000)
    # Strength of the prompt
    guidance_scale: float = setting(7.5, at_least=0)
    # Results, images and learned concepts; delete it to measure everything again
    work_dir: Path = Path("outputs/measure_mixing")
    # The measured parts of style_mixing.md and several_concepts.md are written here, their pictures to images/ inside
    docs_dir: Path = Path("docs")

    def problems(self) -> list[str]:
        lines = []
        for key in ("style_pairs", "both_pairs"):
            for pair in getattr(self, key):
                if len(pair_of(pair)) != 2 or not all(pair_of(pair)):
                    lines.append(f'{key}: {pair!r} must read "concept + concept"')
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
