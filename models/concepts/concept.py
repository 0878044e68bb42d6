"""One learned concept in one `.safetensors` file: the method's tensors, and everything else as JSON metadata."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ...utils.config.records import from_plain
from ...utils.errors import UserError, shown
from ...utils.files import write_atomically
from ..backbone.backbone import Backbone
from ..backbone.loading import BUNDLED
from ..conditioning.tokens import check_placeholder
from ..methods import METHODS, Method
from .header import ABOUT, FORMAT_VERSION, damaged, read_header, write_header
from .tensors import fill, read_safetensors

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

    def __post_init__(self) -> None:
        self.method.word_for_keys = self.super_category

    def save(self, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write the concept to `path`, atomically: an old file there survives any failure.

        dtype: of the stored tensors (float16 halves the file); loading always gives float32.
        Equal concepts give equal bytes. Of local paths in the metadata only the last name is stored. Raises UserError
        for NaN or infinite numbers, and if the place cannot be written to or the disk is full.
        """
        tensors = {
            name: tensor.detach().cpu().to(torch.float32 if name.endswith(FLOAT32_TENSORS) else dtype).contiguous()
            for name, tensor in self.method.state_dict().items()
        }
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise UserError(f"{path}: not written, {name} is not finite in {dtype}; take an earlier step, or fp32")
        entries = {
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
        content = safetensors.torch.save(tensors, metadata=write_header(entries))
        write_atomically(Path(path), lambda file: file.write(content))

    @classmethod
    def load(cls, path: str | Path, *, backbone: Backbone | None = None) -> Concept:
        """Read a concept, on the CPU, in float32 and eval mode; with `backbone`, check that it fits (`check_fits`).

        Raises UserError as `read_header` does, and for an unknown method, settings or tensors that are not those of the
        method, NaN among them, and a concept that does not fit.
        """
        header, entries = read_header(path)
        if header.method not in METHODS:
            raise UserError(
                f"{path}: the concept's method is {shown(header.method)}, known are {', '.join(METHODS)}; "
                "update the project"
            )
        method_class = METHODS[header.method]
        tensors = read_safetensors(path)
        try:
            with torch.device("meta"):  # nothing is drawn or allocated: the tensors of the file become the parameters
                method = method_class(from_plain(method_class.config_class, header.config), header.sizes)
            fill(method, tensors)
            method.folder = Path(path).parent
        except (ValueError, RuntimeError) as error:
            raise damaged(path, error) from error
        metadata = {key: value for key, value in entries.items() if key not in ABOUT}
        concept = cls(method.eval(), header.placeholder, header.super_category, metadata)
        if backbone is not None:
            concept.check_fits(backbone, source=str(path))
        return concept

    def base_model(self, source: Path, option: str) -> str:
        """The base model it was trained on. UserError, with the option that names one, where the file does not say what
        or where that is."""
        name = self.metadata.get("base_model")
        if not name:
            raise UserError(f"{source} does not name its base model: pass {option}")
        if "/" not in name and name not in BUNDLED and not os.path.isdir(name):
            raise UserError(
                f"{source} was trained on a local model called {name}, and a concept file does not say where that "
                f"lies: pass {option} FOLDER"
            )
        return name

    def check_fits(self, backbone: Backbone, source: str | None = None) -> None:
        """Raise UserError unless the concept has the backbone's text width and number of layers, and the backbone does
        not know the placeholder as an ordinary word."""
        own, wanted = self.method.frame.sizes, backbone.frame.sizes
        if own != wanted:
            raise UserError(
                f"{source or self.placeholder}: trained on {self.metadata.get('base_model', 'another base model')} "
                f"with text width {sum(own[1])} and {own[0]} layers, but {backbone.name} has {sum(wanted[1])} and "
                f"{wanted[0]}; use the base model the concept was trained on"
            )
        try:
            check_placeholder(backbone.tokenizer, self.placeholder)
        except UserError as error:
            raise UserError(f"{source or 'concept'}: {error}") from None
