# ruff: noqa: UP045  (pyrallis 0.3.1 knows Optional[X] but not X | None, and no postponed annotations)
"""Settings of `scripts/encode.py`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from ....utils.config.parsing import Config
from ....utils.config.values import setting

WORDS = 5


@dataclass(frozen=True)
class EncodeConfig(Config):
    """One call of `scripts/encode.py`."""

    # The picture: one object, in the middle
    image: Path
    # Its mask, white where the object is; unset: the picture's own transparency, if it has any
    mask: Optional[Path] = None
    # Encoder: "miniature", a .safetensors file, or a folder of the official global_mapper.pt and local_mapper.pt
    encoder: str = "miniature"
    # The concept file to write; unset: the picture's name with .safetensors
    output: Optional[Path] = None
    # Whether to read the object's patches too; unset: if there is a mask and a local mapper
    patches: Optional[bool] = None
    # Which of the five words to keep; null keeps all, one after another
    word: Optional[int] = setting(0, at_least=0, at_most=WORDS - 1)
    # lambda, the strength of the patches: higher is closer to the picture and harder to edit; unset: 0.8
    strength: Optional[float] = setting(None, at_least=0)
    # The word for the concept in other tools' prompts; unset: the picture's name in angle brackets
    placeholder: Optional[str] = None
    # The kind of thing it is, for measuring and for combining with other methods
    super_category: str = "object"
    # Model the encoder was trained for; unset: as its file says, Stable Diffusion 1.4 for the official ones
    pretrained_model_name_or_path: Optional[str] = None
    # CLIP vision tower of the official files: Hugging Face name or folder; unset: openai/clip-vit-large-patch14
    vision: Optional[str] = None

    @property
    def output_path(self) -> Path:
        """Where the concept goes."""
        return self.output or self.image.with_suffix(".safetensors")

    def problems(self) -> list[str]:
        lines = []
        if self.mask is not None and self.patches is False:
            lines.append("mask and patches = false are both given; the mask only serves the patches, leave one out")
        if self.output_path.suffix != ".safetensors":
            lines.append(f"output = {self.output_path} must end in .safetensors")
        return lines
