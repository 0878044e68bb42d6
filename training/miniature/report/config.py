# ruff: noqa: UP045  (pyrallis 0.3.1 knows Optional[X] but not X | None, and no postponed annotations)
"""Every setting of `scripts/miniature_report.py`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from ....models.conditioning.prompts import SLOT
from ....utils.config.parsing import Config
from ....utils.config.values import name_or_path, setting
from ..pretraining.config import Scale


@dataclass(frozen=True)
class ReportConfig(Config):
    """One quality report."""

    # Which world the model was trained on: cpu or gpu
    scale: Scale = Scale.cpu
    # The model: "miniature", or a folder in diffusers layout
    sd: str = setting("miniature", parse=name_or_path)
    # The judge: "miniature-judge", or the folder of a transformers CLIPModel
    judge: str = setting("miniature-judge", parse=name_or_path)
    # Path of NotoColorEmoji.ttf; unset: where Debian's fonts-noto-color-emoji puts it
    font: Optional[Path] = None
    # Kinds of things that the U-Net learned (unet.categories of its pretraining); empty: all of the world's
    categories: tuple[str, ...] = ()
    # Held-out scenes, each with one caption and one generated image
    captions: int = setting(300, at_least=40)
    # Captions among which the judge has to find an image's own
    retrieval_pool: int = setting(32, at_least=2)
    # Folder with the held-out concepts' photos and their index concepts.yaml
    concepts_dir: Path = Path("input_configs/concepts")
    # Folder with learned concepts <name>.safetensors; unset, or for those it lacks: learned here
    concept_files: Optional[Path] = None
    # Learn the concepts that have no file; false leaves them out
    train_missing: bool = True
    # How a concept is learned
    train_config: Path = Path("input_configs/train_miniature.yaml")
    # The prompt of the concept rows; {} is the learned concept, or the super-category word
    concept_prompt: str = "a photo of {}"
    # Images per concept
    concept_images: int = setting(8, at_least=1)
    # Concepts that are shown with the paper's prompts
    paper_concepts: tuple[str, ...] = ("tiger", "taxi")
    # Denoising steps of DPM-Solver++
    steps: int = setting(25, at_least=1, at_most=1000)
    # Strength of the prompt
    guidance_scale: float = setting(7.5, at_least=0)
    # Results, images and learned concepts; delete it to measure everything again
    work_dir: Path = Path("outputs/miniature_report")
    # miniature.md is written here, its pictures to images/ inside
    docs_dir: Path = Path("docs")

    def problems(self) -> list[str]:
        """One line for each combination of values that makes no sense."""
        lines = []
        if SLOT not in self.concept_prompt:
            lines.append(f"concept_prompt = {self.concept_prompt!r} has no {SLOT}; write {SLOT} for the concept")
        if self.retrieval_pool > self.captions // 2:
            lines.append(
                f"retrieval_pool = {self.retrieval_pool} is too many for captions = {self.captions}, some of which are "
                "equal; it may be at most half of them"
            )
        return lines
