# ruff: noqa: UP045  (pyrallis 0.3.1 knows Optional[X] but not X | None, and no postponed annotations)
"""Every setting of `scripts/app.py`. The defaults need no network and no GPU: they are the bundled miniature's."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from ...models.generation.config import Dtype
from ...utils.config.parsing import Config
from ...utils.config.values import name_or_path, setting
from ...utils.devices import device_problems
from ...utils.errors import shown
from ..config.options import MethodName

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def miniature_recipes() -> dict[str, Path]:
    """The recipes for the bundled miniature, seen from the project's folder."""
    return {
        "neti": Path("input_configs/train_miniature.yaml"),
        "perfusion": Path("input_configs/train_perfusion_miniature.yaml"),
    }


@dataclass(frozen=True)
class AppConfig(Config):
    """One call of `scripts/app.py`."""

    # Folder of the runs; the page reads and writes nothing outside it
    outputs: Path = Path("./outputs")
    # Method -> YAML file of scripts/train.py that it learns by; textual_inversion and xti take neti's unless named
    recipes: dict[str, Path] = field(default_factory=miniature_recipes)
    # Folder of YAML files that a person may lay on top of a recipe
    presets: Path = Path("input_configs/presets")
    # Model to learn on; unset: the one in the recipe
    base_model: Optional[str] = setting(None, parse=name_or_path)
    # ELITE's encoder, which makes a concept of one photo: "miniature", a file, or a folder of the official ones
    encoder: str = "miniature"
    # CLIP that compares runs: Hugging Face name or local folder; "miniature-judge" is the one bundled here
    judge: str = setting("miniature-judge", parse=name_or_path)
    # Denoising steps that the page starts with
    num_denoising_steps: int = setting(25, at_least=1, at_most=1000)
    # Strength of the prompt that the page starts with; the miniature draws harsh colours at Stable Diffusion's 7.5
    guidance_scale: float = setting(4.0, at_least=0, at_most=1000, why="images are noise long before")
    # fp16, fp32 or bf16: precision of the frozen models when drawing
    torch_dtype: Dtype = Dtype.fp32
    # auto (CUDA, else MPS, else CPU), cpu, mps, cuda or cuda:N; for drawing and learning
    device: str = "auto"
    # Images that one person may ask for at once
    max_images: int = setting(32, at_least=1, at_most=1024, why="others wait meanwhile")
    # Images of all people that may wait to be drawn; more are refused
    max_pending: int = setting(128, at_least=1, at_most=4096, why="nobody waits that long")
    # Address to listen at; 0.0.0.0 lets the whole network in, and needs auth
    host: str = "127.0.0.1"
    # Port to listen at
    port: int = setting(7860, at_least=1, at_most=65535)
    # Who may come in, as name:password; unset: whoever reaches the address
    auth: Optional[str] = None
    # Ask Gradio for a public link, through its servers; needs auth
    share: bool = False

    @property
    def login(self) -> Optional[tuple[str, str]]:
        """`auth` in its two parts."""
        name, _, password = (self.auth or "").partition(":")
        return (name, password) if self.auth else None

    @property
    def methods(self) -> list[str]:
        """The methods that can be learned by the recipes there are."""
        words = ["textual_inversion", "xti"] if "neti" in self.recipes else []
        return list(dict.fromkeys([*self.recipes, *words]))

    def problems(self) -> list[str]:
        lines = device_problems("device", self.device)
        known = [method.value for method in MethodName]
        lines += [
            f"recipes: {shown(name)} is no method; there are {', '.join(known)}"
            for name in self.recipes
            if name not in known
        ]
        if not self.recipes:
            lines.append("recipes is empty; write {neti: input_configs/train_miniature.yaml}")
        if self.login is not None and not all(self.login):
            lines.append("auth must be written name:password")
        if self.auth is None and (self.share or self.host not in LOOPBACK):
            what = "share = true" if self.share else f"host = {self.host}"
            lines.append(f"{what} lets others in; write auth: name:password too")
        return lines
