"""One learned concept in one `.safetensors` file: the method's tensors, and everything else as JSON metadata."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from ...utils.errors import UserError
from ...utils.files import write_atomically
from ..backbone.backbone import Backbone
from ..backbone.frame import Frame
from ..methods import METHODS, Method

FORMAT_VERSION = 1
ABOUT = {  # what a header says about the concept itself; the rest is `metadata`
    "format_version",
    "method",
    "config",
    "num_layers",
    "text_width",
    "frame",
    "placeholder",
    "super_category",
    "libraries",
}
METADATA_KEY = "neti"
LIBRARIES = ("torch", "diffusers", "transformers")
FLOAT32_TENSORS = ("frequencies",)  # rounded to 16 bits, w*t would be off by up to 0.04 rad


@dataclass
class Concept:
    """A trained method and the word it answers to.

    metadata: JSON values about where it comes from; by convention `base_model`, `step` and `training_config`.
    """

    method: Method
    placeholder: str
    super_category: str
    metadata: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write the concept to `path`, atomically: an old file there survives any failure.

        dtype: of the stored tensors (float16 halves the file); loading always gives float32.
        Equal concepts give equal bytes. Raises UserError if the place cannot be written to or the disk is full.
        """
        tensors = {
            name: tensor.detach().cpu().to(torch.float32 if name.endswith(FLOAT32_TENSORS) else dtype).contiguous()
            for name, tensor in self.method.state_dict().items()
        }
        header = {
            "format_version": FORMAT_VERSION,
            "method": self.method.name,
            "config": asdict(self.method.config),
            # read by versions that know no frame
            "num_layers": self.method.frame.num_places,
            "text_width": self.method.frame.text_width,
            "frame": self.method.frame.record(),
            "placeholder": self.placeholder,
            "super_category": self.super_category,
            "libraries": {name: version(name) for name in LIBRARIES},
            **self.metadata,
        }
        # one metadata key: safetensors writes several in an order that changes from run to run
        content = safetensors.torch.save(tensors, metadata={METADATA_KEY: json.dumps(header, sort_keys=True)})
        write_atomically(Path(path), lambda file: file.write(content))

    @classmethod
    def load(cls, path: str | Path, *, backbone: Backbone | None = None) -> Concept:
        """Read a concept, on the CPU, in float32 and eval mode; with `backbone`, check that it fits (`check_fits`).

        Raises UserError for a file that is missing, truncated, foreign, of an unknown method or version, or unfit.
        """
        header = cls.read_metadata(path)
        method_class = METHODS.get(header.get("method", ""))
        if method_class is None:
            raise UserError(
                f"{path}: the concept's method is {header.get('method')!r}, known are {', '.join(METHODS)}; "
                "update the project"
            )
        try:
            with torch.device("meta"):  # nothing is drawn or allocated: the tensors of the file become the parameters
                config = method_class.config_class(**header["config"])
                if "frame" in header:
                    frame = Frame.from_record(header["frame"])
                    if (frame.num_places, frame.text_width) != (header["num_layers"], header["text_width"]):
                        raise ValueError("its frame and its sizes disagree")
                else:  # written by an earlier version
                    frame = Frame.of_sizes(header["num_layers"], [header["text_width"]])
                method = method_class(config, frame)
            tensors = safetensors.torch.load_file(path)
            method.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
            placeholder, super_category = header["placeholder"], header["super_category"]
        except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{path}: the concept file is damaged or was edited ({reason}); take another copy"
            ) from error
        metadata = {key: value for key, value in header.items() if key not in ABOUT}
        concept = cls(method.eval(), placeholder, super_category, metadata)
        if backbone is not None:
            concept.check_fits(backbone, source=str(path))
        return concept

    def check_fits(self, backbone: Backbone, source: str | None = None) -> None:
        """Raise UserError unless the concept has the backbone's text width and number of layers."""
        own, wanted = self.method.frame.sizes, backbone.frame.sizes
        if own != wanted:
            raise UserError(
                f"{source or self.placeholder}: trained on {self.metadata.get('base_model', 'another base model')} "
                f"with text width {sum(own[1])} and {own[0]} layers, but {backbone.name} has {sum(wanted[1])} and "
                f"{wanted[0]}; use the base model the concept was trained on"
            )

    @staticmethod
    def read_metadata(path: str | Path) -> dict[str, Any]:
        """All that the file says about the concept, read from its header only.

        Keys: those of ABOUT and those of `metadata`. Raises UserError as `load` does.
        """
        if not Path(path).is_file():
            raise UserError(f"{path}: no such concept file")
        try:
            with safe_open(path, framework="pt") as file:
                text = (file.metadata() or {}).get(METADATA_KEY)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a complete .safetensors file ({error}); take another copy") from error
        if text is None:
            raise UserError(
                f"{path}: a .safetensors file, but not a concept written by this project; a Textual Inversion "
                "embedding becomes one by `scripts/concept.py convert --base_model`"
            )
        header = json.loads(text)
        if header.get("format_version") != FORMAT_VERSION:
            raise UserError(
                f"{path}: concept format {header.get('format_version')!r}, this version reads {FORMAT_VERSION}; "
                "update the project"
            )
        return header
