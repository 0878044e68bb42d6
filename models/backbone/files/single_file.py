"""A whole Stable Diffusion in one file, `.safetensors` or `.ckpt`, under the names of the latent-diffusion code.

Such a file holds weights only. Settings and tokenizer are those that lie beside it (the layout of the hub's
repositories: `model_index.json`, `unet/config.json`, `tokenizer/`), else those of its family, which come along here.
Whether its U-Net predicts noise or velocities is in neither names nor shapes: see `_prediction`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
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
PREDICTIONS = {"v": "v_prediction", "v_prediction": "v_prediction", "eps": "epsilon", "epsilon": "epsilon"}
BASE_STEP = 875000  # of its training, at which the published `.ckpt` of Stable Diffusion 2's base model was saved


@dataclass(frozen=True)
class Checkpoint:
    """path: the file. family: which Stable Diffusion it is. settings: the folder with its settings. schedule: what its
    noise schedule has different from these. latent_side: of its latents, where it is another. note: what was assumed.
    """

    path: Path
    family: str
    settings: Path
    schedule: Mapping[str, Any] = field(default_factory=dict)
    latent_side: int | None = None
    note: str | None = None

    def tokenizer(self, part: str) -> tuple[Path, str | None]:
        """The folder of its `tokenizer` or `tokenizer_2`, and the padding where that is not the folder's own."""
        own = self.settings / part
        return (own, None) if own.is_dir() else (TOKENIZER, PADDING[self.family].get(part))


def open_checkpoint(path: Path) -> Checkpoint:
    """Find out what a checkpoint is, from its names.

    Raises an error, mostly ValueError, for a file that is not a whole Stable Diffusion: damaged, unsafe, another thing.
    """
    check_files(path.parent, [path.name])
    shapes, about = _contents(path)
    family = _family(shapes)
    if problem := input_problem(shapes[FIRST_LAYER][1], latent_channels=4):
        raise ValueError(problem)
    if (path.parent / INDEX).is_file():
        return Checkpoint(path, family, path.parent)
    schedule: dict[str, Any] = {}
    side, note = None, None
    if prediction := _prediction(path, shapes, about):
        schedule["prediction_type"] = prediction
        side = 64 if family == "stable-diffusion-2" and prediction == "epsilon" else None
    elif family == "stable-diffusion-2":
        note = (
            f"{path.name} does not say whether it predicts velocities (Stable Diffusion 2.x of 768 pixels, which is "
            f"assumed) or noise (a base model of 512); if it is a base model, put {parameters(path).name} beside it, "
            'as web UIs want it, with "model: {params: {parameterization: eps}}"'
        )
    if "ztsnr" in shapes:
        schedule["rescale_betas_zero_snr"] = True
    return Checkpoint(path, family, FAMILIES / family, schedule, side, note)


def parameters(path: Path) -> Path:
    """The file beside a checkpoint in which web UIs look up what kind of model it is."""
    return path.with_suffix(".yaml")


def _prediction(path: Path, names: Collection[str], about: Mapping[str, Any]) -> str | None:
    """What its U-Net predicts, by whatever says so: the `.yaml` of web UIs, the mark `v_pred` among the tensors, the
    metadata of the modelspec standard, the step of the training. None if nothing does.

    ValueError for a `.yaml` of another form.
    """
    file = parameters(path)
    if file.is_file():
        try:
            settings = yaml.safe_load(file.read_text("utf-8"))["model"]["params"]
            return PREDICTIONS[settings.get("parameterization", "eps")]
        except Exception as error:  # anybody's file
            wanted = "model: {params: {parameterization: eps or v}}"
            raise ValueError(f"{file.name} beside it has no {wanted}") from error
    if "v_pred" in names:
        return "v_prediction"
    if (written := str(about.get("modelspec.prediction_type")).lower()) in PREDICTIONS:
        return PREDICTIONS[written]
    return "epsilon" if about.get("global_step") == BASE_STEP else None


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


def _contents(path: Path) -> tuple[dict[str, Sequence[int]], Mapping[str, Any]]:
    """Name -> shape of the tensors in a checkpoint, and what it says about itself; no values are read."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  (no mapping)
            return shapes, file.metadata() or {}
    with _readable(path):
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    tensors = content.get("state_dict", content)
    return {name: tensor.shape for name, tensor in tensors.items() if isinstance(tensor, Tensor)}, content


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Let `torch.load(weights_only=True)` read the records of PyTorch Lightning's callbacks as empty shells."""
    lightning = check_pickle(path) if path.suffix == ".ckpt" else []
    shells: list[Any] = [(type("Shell", (), {}), name) for name in lightning]
    with safe_globals(shells):
        yield
