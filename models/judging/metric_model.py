"""The metric models, by name: any CLIP of transformers, and DINO or another ViT.

All features are unit vectors in float32 on the CPU, so a dot product is a cosine similarity.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModel, CLIPModel, CLIPTokenizer

from ...utils.errors import UserError, first_line
from ...utils.hashing import weights_hash
from ..backbone.files.hub import snapshot
from ..backbone.files.quiet import without_progress_bars, without_warnings
from ..backbone.files.weights import check_files
from ..backbone.loading import BUNDLED, HUB_NAME
from .input import MetricInput
from .resizing import Resizing

WEIGHT_FILES = ("*.safetensors", "*.bin")
SETTINGS = ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json")
TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # either of them is enough
UNREADABLE = (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError)  # what damaged files raise
AT_ONCE = 64  # images or texts in one batch, which bounds memory


class MetricModel:
    """A frozen vision transformer that turns images into unit features: the CLS state after its last norm (DINO, ViT).

    name: what it was loaded by; digest: SHA-256 of its weights, which tells two models of one name apart.
    """

    pooling: ClassVar[str] = "cls"
    families: ClassVar[tuple[str, ...]] = ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")

    def __init__(self, model: Any, metric_input: MetricInput, name: str, device: str | torch.device = "cpu") -> None:
        weights = model.state_dict()
        if broken := [name for name, weight in weights.items() if not weight.isfinite().all()]:
            raise ValueError(f"its weights hold NaN or infinity, in {broken[0]}")
        self.digest = weights_hash(weights)
        self.model = model.float().eval().requires_grad_(False).to(device)
        self.input = metric_input
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

        Code that the folder brings is never run. key: the config key that names the model, for messages. Raises
        UserError if there is no such model (or neither a network nor a cached copy), if it is of another family, and if
        its folder is not complete.
        """
        folder = _folder(name_or_path, revision, key)
        try:
            check_files(folder, [name for name in SETTINGS if (folder / name).is_file()])
            family = AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type
            if family not in cls.families:
                raise UserError(f"{key} {name_or_path!r} is a {family} model; allowed are: {', '.join(cls.families)}")
            metric_input = MetricInput(folder, resizing)
            has_weights = any(any(folder.glob(pattern)) for pattern in WEIGHT_FILES)
            source, version = (folder, None) if has_weights else (name_or_path, revision)
            with without_progress_bars(), without_warnings():  # what is missing is reported below
                parts = cls._load(source, version, folder)
            model = cls(**parts, metric_input=metric_input, name=name_or_path, device=device)
            model.image_features([Image.new("RGB", (8, 8))])  # sizes that do not fit each other are found now
            return model
        except UserError:
            raise
        except (*UNREADABLE, SafetensorError, pickle.UnpicklingError) as error:
            raise UserError(
                f"{key} {name_or_path!r}: cannot be loaded from {folder} ({first_line(error)}); a complete "
                "transformers folder is needed: config, weights, preprocessor_config.json and, for CLIP, the tokenizer"
            ) from error

    @classmethod
    def _load(cls, source: str | Path, revision: str | None, folder: Path) -> dict[str, Any]:
        return {"model": _complete(AutoModel, source, revision, unused="pooler", trust_remote_code=False)}

    @property
    def record(self) -> dict[str, Any]:
        """Everything that decides the features: kinds of devices differ in the last digits."""
        return {
            "name": self.name,
            "digest": self.digest,
            "pooling": self.pooling,
            "input": self.input.record,
            "device": self.model.device.type,
            "precision": "float32",
        }

    @torch.inference_mode()
    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit features [N,D] of RGB images of any size."""
        return self._unit(lambda part: self._embed(self.input(part).to(self.model.device)), images)

    def _embed(self, pixels: Tensor) -> Tensor:
        return self.model(pixel_values=pixels).last_hidden_state[:, 0]

    def _unit(self, embed: Any, items: Sequence[Any]) -> Tensor:
        with _exact_float32():
            parts = [embed(list(items[k : k + AT_ONCE])) for k in range(0, len(items), AT_ONCE)]
        return F.normalize(torch.cat(parts), dim=-1).float().cpu()


class CLIPMetricModel(MetricModel):
    """A frozen CLIP: images and texts in one space, the pooled states after their projections."""

    pooling = "projected"
    families = ("clip",)

    def __init__(
        self,
        model: CLIPModel,
        metric_input: MetricInput,
        tokenizer: CLIPTokenizer,
        name: str,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(model, metric_input, name, device)
        self.tokenizer = tokenizer

    @classmethod
    def _load(cls, source: str | Path, revision: str | None, folder: Path) -> dict[str, Any]:
        model = _complete(CLIPModel, source, revision)
        return {"model": model, "tokenizer": _tokenizer(folder, model.config.text_config.vocab_size)}

    def _embed(self, pixels: Tensor) -> Tensor:
        return self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output)

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Unit features [N,D] of texts; what is beyond the model's length is cut, as every CLIP evaluation does."""
        return self._unit(self._embed_texts, texts)

    def _embed_texts(self, texts: list[str]) -> Tensor:
        length = self.model.config.text_config.max_position_embeddings
        batch = self.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        ids, mask = (batch[key].to(self.model.device) for key in ("input_ids", "attention_mask"))
        return self.model.text_projection(self.model.text_model(input_ids=ids, attention_mask=mask).pooler_output)


def _folder(name_or_path: str, revision: str | None, key: str) -> Path:
    """The folder that holds at least the model's configs; those of a hub repository are fetched, weights are not."""
    folder = BUNDLED.get(name_or_path, Path(name_or_path).expanduser())
    if name_or_path and os.path.isdir(folder):
        return folder
    if name_or_path in BUNDLED:
        raise UserError(f"{key} {name_or_path!r}: the bundled weights are missing from {folder}; reinstall the project")
    if not HUB_NAME.fullmatch(name_or_path):
        raise UserError(
            f"{key} {name_or_path!r}: no such folder; give a transformers folder, a hub name such as "
            "'openai/clip-vit-base-patch32', or 'miniature-judge'"
        )
    return snapshot(name_or_path, revision, ["*.json", "*.txt"], key)


def _complete(model_class: Any, source: str | Path, revision: str | None, unused: str = "\0", **options: Any) -> Any:
    """The model, refused if weights are missing (transformers fills them with random numbers and only warns)."""
    if revision:
        options["revision"] = revision
    model, info = model_class.from_pretrained(source, dtype=torch.float32, output_loading_info=True, **options)
    if missing := sorted(name for name in info["missing_keys"] if unused not in name):
        raise ValueError(f"weights are missing, such as {missing[0]}")
    return model


def _tokenizer(folder: Path, vocabulary: int) -> CLIPTokenizer:
    """The folder's tokenizer, refused without its words: transformers would make one that knows none, and go on."""
    if not any(all((folder / name).is_file() for name in names) for names in TOKENIZER_FILES):
        raise ValueError("the tokenizer is missing: tokenizer.json, or vocab.json and merges.txt")
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    words = set(tokenizer("a photo", add_special_tokens=False)["input_ids"]) - {tokenizer.unk_token_id}
    if not words or len(tokenizer) > vocabulary:
        raise ValueError(f"the tokenizer, of {len(tokenizer)} tokens, is not that of this model, of {vocabulary}")
    return tokenizer


@contextmanager
def _exact_float32() -> Iterator[None]:
    """Without TensorFloat-32: CUDA uses it in convolutions unless told otherwise, and features differ by 1e-3."""
    switches: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = False
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value
