"""C, the second moments of a text encoder's outputs: what the keys of concepts are compared by.

    C = (1/n) sum e e^T    over the encodings e [D] of the tokens of many captions; not centred

One C serves every concept of a text encoder. It is an asset of its own (2.4 MB on SD 1.x), not a part of a concept: a
concept keeps its digest and refuses another one. `scripts/make_covariance.py` makes it, see `second_moments`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ....utils.errors import UserError
from ....utils.files import write_atomically

if TYPE_CHECKING:
    from ...backbone.text import TextStack

FORMAT_VERSION = 1
METADATA_KEY = "neti_covariance"
BUNDLED = (Path(__file__).parents[2] / "miniature" / "covariance.safetensors",)
WORST_CONDITION = 1e6  # largest eigenvalue by smallest; beyond it float32 cannot hold the inverse (SD 1.x: 4e3)
NAMES = "*covariance*.safetensors"  # how a covariance must be called to be found
PROBE_TOLERANCE = 0.05  # relative; bfloat16 moves an encoding by less, another encoder by more than 1


@dataclass(frozen=True)
class Covariance:
    """matrix [D, D]: C, float32 on the CPU, any scale. probe [D]: what its text encoder makes of an empty text, at the
    end token, by which the encoder is recognised. metadata: JSON values about where it comes from (`second_moments`).
    """

    matrix: Tensor
    probe: Tensor
    metadata: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """`sha256:<hex>` of the matrix: what a concept knows its C by."""
        return f"sha256:{hashlib.sha256(self.matrix.contiguous().numpy().tobytes()).hexdigest()}"

    @cached_property
    def inverse(self) -> Tensor:
        """P = C^-1 [D, D], inverted in float64, given in float32. UserError where float32 cannot hold it."""
        matrix = self.matrix.double()
        values = torch.linalg.eigvalsh(matrix)
        if values[0] * WORST_CONDITION <= values[-1]:
            raise UserError(
                f"the covariance is singular (its smallest eigenvalue is {values[0] / values[-1]:.1e} of its largest): "
                "give more and more varied captions, or a ridge such as --ridge 1e-3"
            )
        inverse = torch.linalg.inv(matrix)
        return ((inverse + inverse.T) / 2).float()

    def save(self, path: Path) -> None:
        """Write it, atomically. Equal ones give equal bytes."""
        header = json.dumps({"format_version": FORMAT_VERSION, **self.metadata}, sort_keys=True)
        tensors = {"covariance": self.matrix.contiguous(), "probe": self.probe.contiguous()}
        content = safetensors.torch.save(tensors, metadata={METADATA_KEY: header})
        write_atomically(path, lambda file: file.write(content))

    @classmethod
    def load(cls, path: Path) -> Covariance:
        """Read it. UserError for a file that is missing, broken or something else."""
        if not path.is_file():
            raise UserError(f"{path}: no such covariance file; scripts/make_covariance.py makes one")
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get(METADATA_KEY, "null"))
            if header is None or header.pop("format_version") != FORMAT_VERSION:
                raise UserError(f"{path}: not a covariance file of this version; scripts/make_covariance.py makes one")
            tensors = safetensors.torch.load_file(path)
            return cls(tensors["covariance"], tensors["probe"], header)
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path}: the covariance file is damaged ({error}); take another copy") from error

    def belongs_to(self, text: TextStack) -> bool:
        """Whether it was measured on this text encoder, whatever precision that runs in now."""
        own = probe(text)
        return self.probe.shape == own.shape and bool(
            torch.linalg.vector_norm(own - self.probe) < PROBE_TOLERANCE * torch.linalg.vector_norm(self.probe)
        )


@lru_cache(maxsize=8)
def find_covariance(digest: str, folder: Path) -> Covariance:
    """The covariance with this digest: in `folder`, where the concept lies, in the working directory, or the project's.

    Concept files hold no paths, so a file is looked at if its name contains "covariance".
    Raises UserError if there is none.
    """
    places = list(dict.fromkeys([folder.resolve(), Path.cwd()]))
    others = []
    for path in [*(path for place in places for path in sorted(place.glob(NAMES))), *BUNDLED]:
        covariance = Covariance.load(path)
        if covariance.digest == digest:
            return covariance
        others += [path.name] if path not in BUNDLED else []
    there = f"only another one, {', '.join(others)}," if others else f"no {NAMES}"
    raise UserError(
        f"the covariance that the concept was trained with ({digest[:19]}...) is missing: there is {there} in "
        f"{' or '.join(map(str, places))}; put its file there"
    )


def covariance_for(text: TextStack, given: str | None, model: str) -> Covariance:
    """The covariance to train with on a text encoder: the one `given`, or the one that comes with the project.

    Raises UserError for one of another text encoder, and if there is none.
    """
    if given:
        covariance = Covariance.load(Path(given))
        if not covariance.belongs_to(text):
            raise UserError(
                f"model.perfusion.covariance = {given}: measured on another text encoder "
                f"({covariance.metadata.get('model', 'unknown')}) than that of {model}; make one with "
                f"scripts/make_covariance.py --model {model}"
            )
        return covariance
    for path in BUNDLED:
        covariance = Covariance.load(path)
        if covariance.belongs_to(text):
            return covariance
    raise UserError(
        f"model.perfusion.covariance is not given, and none comes with the project for {model}; make one with "
        f"scripts/make_covariance.py --model {model} (docs/perfusion.md)"
    )


@torch.no_grad()
def probe(text: TextStack) -> Tensor:
    """The encoding [D] of an empty text at its end token, float32 on the CPU."""
    tokenizer = text.tokenizer
    ids = torch.tensor([[tokenizer.bos_token_id, tokenizer.eos_token_id]], device=text.device)
    return text.finish(text.states(text.embeddings(ids)))[0, -1].float().cpu()
