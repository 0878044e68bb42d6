"""The models that judge images, by name: any CLIP of transformers, and DINO or another ViT.

All features are unit vectors in float32 on the CPU, so a dot product is a cosine similarity.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from huggingface_hub import snapshot_download
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModel, CLIPModel, CLIPTokenizer

from ...utils.errors import UserError
from ..backbone.loading import BUNDLED, HUB_NAME
from .input import JudgeInput
from .resizing import Resizing

WEIGHT_FILES = ("*.safetensors", "*.bin")


class ImageJudge:
    """A frozen vision transformer that turns images into unit features: the CLS state after its last norm (DINO, ViT).

    name: what it was loaded by; digest: SHA-256 of its weights, which tells two models of one name apart.
    """

    pooling: ClassVar[str] = "cls"
    families: ClassVar[tuple[str, ...]] = ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")

    def __init__(self, model: Any, judge_input: JudgeInput, name: str, device: str | torch.device = "cpu") -> None:
        self.digest = weights_digest(model)
        self.model = model.float().eval().requires_grad_(False).to(device)
        self.input = judge_input
        self.name = name

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        *,
        resizing: Resizing = Resizing.pil,
        revision: str | None = None,
        device: str | torch.device = "cpu",
        key: str = "dino",
    ) -> Any:
        """Load a transformers model by hub name, local folder or bundled name ("miniature-judge").

        key: the config key that names the model, for messages. Raises UserError if there is no such model (or neither a
        network nor a cached copy), if it is of another family, and if its folder is not complete.
        """
        folder = _folder(name_or_path, revision, key)
        try:
            family = AutoConfig.from_pretrained(folder).model_type
            if family not in cls.families:
                raise UserError(f"{key} {name_or_path!r} is a {family} model; allowed are: {', '.join(cls.families)}")
            judge_input = JudgeInput(folder, resizing)
            has_weights = any(any(folder.glob(pattern)) for pattern in WEIGHT_FILES)
            source, version = (folder, None) if has_weights else (name_or_path, revision)
            return cls(**cls._load(source, version, folder), judge_input=judge_input, name=name_or_path, device=device)
        except UserError:
            raise
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise UserError(
                f"{key} {name_or_path!r}: cannot be loaded from {folder} ({_first_line(error)}); a complete "
                "transformers folder is needed: config, weights, preprocessor_config.json and, for CLIP, the tokenizer"
            ) from error

    @classmethod
    def _load(cls, source: str | Path, revision: str | None, folder: Path) -> dict[str, Any]:
        return {"model": _complete(AutoModel, source, revision, unused="pooler")}

    @property
    def record(self) -> dict[str, Any]:
        """Everything that decides the features."""
        return {"name": self.name, "digest": self.digest, "pooling": self.pooling, "input": self.input.record}

    @torch.inference_mode()
    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit features [N,D] of RGB images of any size, in one batch."""
        pixels = self.input(images).to(self.model.device)
        return F.normalize(self._embed(pixels), dim=-1).float().cpu()

    def _embed(self, pixels: Tensor) -> Tensor:
        return self.model(pixel_values=pixels).last_hidden_state[:, 0]


class CLIPJudge(ImageJudge):
    """A frozen CLIP: images and texts in one space, the pooled states after their projections."""

    pooling = "projected"
    families = ("clip",)

    def __init__(
        self,
        model: CLIPModel,
        judge_input: JudgeInput,
        tokenizer: CLIPTokenizer,
        name: str,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(model, judge_input, name, device)
        self.tokenizer = tokenizer

    @classmethod
    def _load(cls, source: str | Path, revision: str | None, folder: Path) -> dict[str, Any]:
        version: dict[str, Any] = {"revision": revision} if revision else {}
        tokenizer = CLIPTokenizer.from_pretrained(source, **version)
        return {"model": _complete(CLIPModel, source, revision), "tokenizer": tokenizer}

    def _embed(self, pixels: Tensor) -> Tensor:
        return self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output)

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Unit features [N,D] of texts; what is beyond the model's length is cut, as every CLIP evaluation does."""
        length = self.model.config.text_config.max_position_embeddings
        batch = self.tokenizer(
            list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).to(self.model.device)
        pooled = self.model.text_model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).pooler_output
        return F.normalize(self.model.text_projection(pooled), dim=-1).float().cpu()


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 over the names and float32 values of the model's weights: the same wherever they were loaded from."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().float().cpu().numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def _folder(name_or_path: str, revision: str | None, key: str) -> Path:
    """The folder that holds at least the model's configs; those of a hub repository are fetched, weights are not."""
    folder = BUNDLED.get(name_or_path, Path(name_or_path).expanduser())
    if name_or_path and folder.is_dir():
        return folder
    if name_or_path in BUNDLED:
        raise UserError(f"{key} {name_or_path!r}: the bundled weights are missing from {folder}; reinstall the project")
    if not HUB_NAME.fullmatch(name_or_path):
        raise UserError(
            f"{key} {name_or_path!r}: no such folder; give a transformers folder, a hub name such as "
            "'openai/clip-vit-base-patch32', or 'miniature-judge'"
        )
    try:
        return Path(snapshot_download(name_or_path, revision=revision, allow_patterns=["*.json", "*.txt"]))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{key} {name_or_path!r}: no such folder here, and the hub repository could not be fetched and is not "
            f"cached ({_first_line(error)}); check the name and the network, or pass the path of a local folder"
        ) from error


def _complete(model_class: Any, source: str | Path, revision: str | None, unused: str = "\0") -> Any:
    """The model, refused if weights are missing (transformers fills them with random numbers and only warns)."""
    version = {"revision": revision} if revision else {}
    model, info = model_class.from_pretrained(source, dtype=torch.float32, output_loading_info=True, **version)
    if missing := sorted(name for name in info["missing_keys"] if unused not in name):
        raise ValueError(f"weights are missing, such as {missing[0]}")
    return model


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
