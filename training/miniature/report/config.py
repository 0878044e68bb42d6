"""Every setting of `scripts/miniature_report.py`."""

from dataclasses import dataclass
from pathlib import Path

from ....models.conditioning.prompts import SLOT
from ....utils.config.values import setting
from ...studies.config import StudyConfig


@dataclass(frozen=True)
class ReportConfig(StudyConfig):
    """One quality report."""

    # Held-out scenes, each with one caption and one generated image
    captions: int = setting(300, at_least=40, at_most=100_000)
    # Captions among which the metric model has to find an image's own
    retrieval_pool: int = setting(32, at_least=2)
    # Learn the concepts that have no file; false leaves them out
    train_missing: bool = True
    # The prompt of the concept rows; {} is the learned concept, or the super-category word
    concept_prompt: str = "a photo of {}"
    # Images per concept
    concept_images: int = setting(8, at_least=1, at_most=10_000)
    # Concepts that are shown with the paper's prompts
    paper_concepts: tuple[str, ...] = ("tiger", "taxi")
    # Results, images and learned concepts; delete it to measure everything again
    work_dir: Path = Path("outputs/miniature_report")

    def problems(self) -> list[str]:
        """One line for each combination of values that makes no sense."""
        lines = super().problems()
        if SLOT not in self.concept_prompt:
            lines.append(f"concept_prompt = {self.concept_prompt!r} has no {SLOT}; write {SLOT} for the concept")
        if self.retrieval_pool > self.captions // 2:
            lines.append(
                f"retrieval_pool = {self.retrieval_pool} is too many for captions = {self.captions}, some of which are "
                "equal; it may be at most half of them"
            )
        return lines
