# ruff: noqa: UP045  (pyrallis 0.3.1 knows Optional[X] but not X | None, and no postponed annotations)
"""The settings that all studies on a miniature have in common."""

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from ...utils.config.parsing import Config
from ...utils.config.values import name_or_path, setting
from ..miniature.pretraining.config import Scale
from ..miniature.world.objects import world_objects


@dataclass(frozen=True)
class StudyConfig(Config):
    """One study of a miniature and of concepts that it has never seen."""

    # Which world the model was trained on: cpu or gpu
    scale: Scale = Scale.cpu
    # The model: "miniature", or a folder in diffusers layout
    sd: str = setting("miniature", parse=name_or_path)
    # The metric model: "miniature-judge", or the folder of a transformers CLIPModel
    judge: str = setting("miniature-judge", parse=name_or_path)
    # Path of NotoColorEmoji.ttf; unset: where Debian's fonts-noto-color-emoji puts it
    font: Optional[Path] = None
    # Kinds of things that the U-Net learned (unet.categories of its pretraining); empty: all of the world's
    categories: tuple[str, ...] = ()
    # Folder with the held-out concepts' photos and their index concepts.yaml
    concepts_dir: Path = Path("input_configs/concepts")
    # Folder with learned concepts <name>.safetensors; those it lacks are learned here
    concept_files: Optional[Path] = None
    # How a concept is learned
    train_config: Path = Path("input_configs/train_miniature.yaml")
    # Denoising steps of DPM-Solver++
    steps: int = setting(25, at_least=1, at_most=1000)
    # Strength of the prompt
    guidance_scale: float = setting(7.5, at_least=0)
    # Results, images and learned concepts; delete it to measure everything again
    work_dir: Path = Path("outputs/study")
    # The measured parts of pages are written here, their pictures to images/ inside
    docs_dir: Path = Path("docs")

    def problems(self) -> list[str]:
        """One line for each combination of values that makes no sense."""
        known = world_objects(self.scale.value)
        if unknown := [name for name in self.categories if name not in known]:
            return [f"categories = {unknown}: a world of scale {self.scale} has {', '.join(known)}"]
        return []
