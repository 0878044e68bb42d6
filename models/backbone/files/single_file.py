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
from .weights import INDEX, SECOND, WEIGHTS, check_files, check_pickle

ENDINGS = (".safetensors", ".ckpt")
FAMILIES = Path(__file__).parent / "families"
TOKENIZER = FAMILIES / "tokenizer"  # the same in all families but for the padding
PADDING = {
    "stable-diffusion-1": {"tokenizer": "<|endoftext|>"},
    "stable-diffusion-2": {"tokenizer": "!"},
    "stable-diffusion-xl": {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"},
}
FIRST_LAYER = "model.diffusion_model.input_blocks.0.0.weight"
TEXT_ENCODERS = {  # how the names of a family's last text encoder begin
    "conditioner.embedders.1.model.": "stable-diffusion-xl",
    "cond_stage_model.transformer.": "stable-diffusion-1",
    "cond_stage_model.model.": "stable-diffusion-2",
}


@dataclass(frozen=True)
class Checkpoint:
    """path: the file. family: which Stable Diffusion it is. settings: the folder with its settings."""

    path: Path
    family: str
    settings: Path

    def tokenizer(self, part: str) -> tuple[Path, str | None]:
        """The folder of its `tokenizer` or `tokenizer_2`, and the padding where that is not the folder's own."""
        own = self.settings / part
        return (own, None) if own.is_dir() else (TOKENIZER, PADDING[self.family].get(part))


def open_checkpoint(path: Path) -> Checkpoint:
    """Find out what a checkpoint is, from its names.

    Raises an error, mostly ValueError, for a file that is not a whole Stable Diffusion: damaged, unsafe, another thing.
    """
    check_files(path.parent, [path.name])
    shapes = _shapes(path)
    family = _family(shapes)
    if problem := input_problem(shapes[FIRST_LAYER][1], latent_channels=4):
        raise ValueError(problem)
    is_beside = (path.parent / INDEX).is_file()
    return Checkpoint(path, family, path.parent if is_beside else FAMILIES / family)


def load_checkpoint(checkpoint: Checkpoint, parts: Collection[str], dtype: torch.dtype) -> dict[str, nn.Module]:
    """The wanted `parts`, through diffusers. Raises an error of some kind if tensors of them are missing."""
    others = {"tokenizer", "scheduler", "feature_extractor", *WEIGHTS} - {*parts}
    with without_warnings(), without_progress_bars(), _readable(checkpoint.path):
        import diffusers.pipelines as pipelines  # slow to import, and most models are folders

        pipeline_class: Any = pipelines.StableDiffusionPipeline
        if checkpoint.family == "stable-diffusion-xl":
            pipeline_class = pipelines.StableDiffusionXLPipeline
            others |= {"tokenizer_2", "image_encoder", *({SECOND} - {*parts})}
        else:
            others |= {"safety_checker"}
        try:
            pipeline = pipeline_class.from_single_file(
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
    for start, family in TEXT_ENCODERS.items():
        if FIRST_LAYER in names and any(name.startswith(start) for name in names):
            return family
    raise ValueError(
        "it holds no whole Stable Diffusion 1.x, 2.x or XL (U-Net, VAE, text encoders under latent-diffusion names); a "
        "LoRA, an embedding, a VAE, a U-Net alone or a refiner is no base model"
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
