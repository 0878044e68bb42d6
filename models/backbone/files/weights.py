"""The weight files of one part of a model, in every form that diffusers and transformers write."""

from __future__ import annotations

import json
import pickle
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.serialization import get_unsafe_globals_in_checkpoint

from ....utils.errors import first_line
from ....utils.files import LFS_POINTER

WEIGHTS = ("text_encoder", "vae", "unet")  # the parts of a model that have weights
SECOND = "text_encoder_2"  # of SDXL; it comes and goes with the first
CHECKER = "safety_checker"  # one more, which some models bring along
INDEX = "model_index.json"  # what a model is made of
# part -> the names of its weight files without ending: as safetensors, as a pickle
STEMS = {
    "text_encoder": ("model", "pytorch_model"),
    SECOND: ("model", "pytorch_model"),
    "vae": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "unet": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    CHECKER: ("model", "pytorch_model"),
}
VARIANTS = (None, "fp16", "bf16", "fp32")  # the first form that is there is read


@dataclass(frozen=True)
class WeightFiles:
    """names: the files in the part's folder, an index before its shards. options: what `from_pretrained` takes."""

    names: tuple[str, ...]
    options: dict[str, Any]


def find_weights(part: str, folder: Path, listing: Collection[str] | None = None) -> WeightFiles:
    """The weight files of `part`, in this order: full precision before half, safetensors before pickles.

    listing: the names in its folder where more are known than lie on the disk yet (on the hub); indexes of shards are
    read from the disk.
    Raises FileNotFoundError if there is no form of them; OSError, ValueError, KeyError for an index that is none.
    """
    names = set(listing) if listing is not None else {path.name for path in folder.glob("*")}
    for options, single, index in _forms(part):
        if index in names:
            shards = read_settings(folder / index)["weight_map"].values()
            return WeightFiles((index, *dict.fromkeys(shards)), options)
        if single in names:
            return WeightFiles((single,), options)
    safe, pickled = STEMS[part]
    raise FileNotFoundError(f"it has no {safe}.safetensors or {pickled}.bin, whole, in shards, or as a variant fp16")


def _forms(part: str) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Options, whole file and index of shards of each form, the preferred first."""
    safe, pickled = STEMS[part]
    for variant in VARIANTS:
        mark = f".{variant}" if variant else ""
        for stem, ending in ((safe, "safetensors"), (pickled, "bin")):
            options = {"use_safetensors": ending == "safetensors", "variant": variant}
            yield options, f"{stem}{mark}.{ending}", f"{stem}.{ending}.index{mark}.json"


def read_settings(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError if there is none in it (some libraries would then look on the hub)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is no valid JSON: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    return content


def check_files(folder: Path, names: Collection[str]) -> None:
    """ValueError for what the libraries would not name: files missing or not the files themselves, unsafe pickles."""
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ValueError(f"{', '.join(missing)} missing: copied or downloaded only in part")
    for path in (folder / name for name in names):
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise ValueError(f"{path.name} is a Git LFS pointer, not the file itself; run git lfs pull there")
        if path.suffix in (".bin", ".ckpt"):
            check_pickle(path)
        elif path.suffix == ".json":
            read_settings(path)


def check_pickle(path: Path) -> list[str]:
    """The classes in a PyTorch pickle for which shells must be given to the restricted unpickler.

    Those are PyTorch Lightning's, whose callbacks left records in old checkpoints.
    Raises ValueError, naming what else a pickle asks for; nothing in it is executed.
    """
    try:
        names = get_unsafe_globals_in_checkpoint(str(path))
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError):
        return []  # from before PyTorch 1.6, or no pickle at all: reading it will tell
    harmless = [name for name in names if name.startswith("pytorch_lightning.")]
    if unsafe := sorted({*names} - {*harmless}):
        raise ValueError(f"{path.name} refused, nothing was executed: the pickle asks for {', '.join(unsafe)}")
    return harmless
