"""A whole Stable Diffusion in one file, `.safetensors` or `.ckpt`, under the names of the latent-diffusion code.

Such a file holds weights only. Settings and tokenizer are those that lie beside it (the layout of the hub's
repositories: `model_index.json`, `unet/config.json`, `tokenizer/`), else those of its family, which come along here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.serialization import safe_globals

from ..checks import input_problem
from .quiet import without_progress_bars, without_warnings
from .weights import WEIGHTS, check_files, check_pickle

ENDINGS = (".safetensors", ".ckpt")
FAMILIES = Path(__file__).parent / "families"
PADDING = {"stable-diffusion-1": "<|endoftext|>", "stable-diffusion-2": "!"}  # else they share one tokenizer
FIRST_LAYER = "model.diffusion_model.input_blocks.0.0.weight"
TEXT_ENCODERS = {  # how the names of a family's text encoder begin
    "cond_stage_model.transformer.": "stable-diffusion-1",
    "cond_stage_model.model.": "stable-diffusion-2",
}


@dataclass(frozen=True)
class Checkpoint:
    """path: the file. settings, tokenizer: the folders with its settings and its tokenizer. pad_token: the tokenizer's,
    where another one than the folder says."""

    path: Path
    settings: Path
    tokenizer: Path
    pad_token: str | None = None


def open_checkpoint(path: Path) -> Checkpoint:
    """Find out what a checkpoint is, from its names.

    Raises an error, mostly ValueError, for a file that is not a whole Stable Diffusion: damaged, unsafe, another thing.
    """
    check_files(path.parent, [path.name])
    shapes = _shapes(path)
    family = _family(shapes)
    if problem := input_problem(shapes[FIRST_LAYER][1], latent_channels=4):
        raise ValueError(problem)
    if (path.parent / "model_index.json").is_file():
        return Checkpoint(path, path.parent, path.parent / "tokenizer")
    return Checkpoint(path, FAMILIES / family, FAMILIES / "tokenizer", PADDING[family])


def load_checkpoint(checkpoint: Checkpoint, parts: Collection[str], dtype: torch.dtype) -> dict[str, nn.Module]:
    """The wanted `parts`, through diffusers. Raises an error of some kind if tensors of them are missing."""
    others = {"tokenizer", "scheduler", "safety_checker", "feature_extractor", *WEIGHTS} - {*parts}
    with without_warnings(), without_progress_bars(), _readable(checkpoint.path):
        from diffusers import StableDiffusionPipeline  # slow to import, and most models are folders

        try:
            pipeline: Any = StableDiffusionPipeline.from_single_file(
                str(checkpoint.path),
                config=str(checkpoint.settings),
                dtype=dtype,
                local_files_only=True,
                **dict.fromkeys(others),
            )
        except NotImplementedError as error:  # what the file lacks stays on "meta", and cannot be cast
            raise ValueError("tensors of its U-Net or VAE are missing") from error
    loaded: dict[str, nn.Module] = {part: getattr(pipeline, part) for part in parts}
    for part, model in loaded.items():
        if missing := [name for name, weight in model.named_parameters() if weight.is_meta]:
            raise ValueError(f"{len(missing)} tensors of its {part} are missing, such as {missing[0]}")
    return loaded


def _family(names: Collection[str]) -> str:
    if any(name.startswith("conditioner.embedders.") for name in names):
        raise ValueError(
            "it is a Stable Diffusion XL; of checkpoints in one file, Stable Diffusion 1.x and 2.x are read"
        )
    for start, family in TEXT_ENCODERS.items():
        if FIRST_LAYER in names and any(name.startswith(start) for name in names):
            return family
    raise ValueError(
        "it holds no whole Stable Diffusion 1.x/2.x (U-Net, VAE and text encoder under latent-diffusion names); a "
        "LoRA, an embedding, a VAE or a U-Net alone is no base model"
    )


def _shapes(path: Path) -> dict[str, Sequence[int]]:
    """Name -> shape of the tensors in a checkpoint; no values are read."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  (no mapping)
    with _readable(path):
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    tensors = content.get("state_dict", content)
    return {name: tensor.shape for name, tensor in tensors.items() if isinstance(tensor, Tensor)}


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Let `torch.load(weights_only=True)` read the records of PyTorch Lightning's callbacks as empty shells."""
    lightning = check_pickle(path) if path.suffix == ".ckpt" else []
    shells: list[Any] = [(type("Shell", (), {}), name) for name in lightning]
    with safe_globals(shells):
        yield
