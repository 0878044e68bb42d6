"""Textual Inversion embeddings as other tools exchange them, read and written.

    diffusers (`learned_embeds.safetensors`, `.bin`)    {token: tensor}
    web UIs (`.pt`)                                     {"string_to_param": {"*": tensor}, "name": token, ...}
    web UIs and kohya (`.safetensors`)                  {"emb_params": tensor}; the token is the file's name
    OneTrainer (`.safetensors`)                         {"emp_params": tensor}; likewise
    diffusers' advanced scripts                         {"clip_l": tensor}; likewise
    Stable Diffusion XL, all tools                      {"clip_l": tensor, "clip_g": tensor}; likewise
    kohya's XTI                                         {"IN01": tensor, ..., "OUT11": tensor}; likewise
    the Textual Inversion paper's code (`.pt`)          {"string_to_param": nn.ParameterDict, ...}; likewise

A tensor is [D], or [n, D] for a token of n vectors, which takes n positions of the prompt. None of the files says
reliably which base model it belongs to. What is in a file decides how it is read, not the ending of its name.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ...utils.errors import UserError, shorten
from ...utils.files import require_file, write_atomically
from ..backbone.backbone import Backbone
from ..backbone.frame import Frame
from ..conditioning.tokens import check_placeholder
from ..methods import XTI, TextualInversion, WordVectorsConfig
from .concept import Concept
from .files import without_paths
from .restricted_pickle import read_pickle
from .tensors import plain, read_safetensors

WHAT = "Textual Inversion embedding file"
SUFFIXES = (".safetensors", ".bin", ".pt")
WEB_UI_TOKEN_ID = 265  # the id of "*" in CLIP's vocabulary, which web UIs store and nobody reads
PARAMETER_DICT = "torch.nn.modules.container.ParameterDict"
ALL = "all"  # places, where they are not told apart
TOWERS = ("clip_l", "clip_g")  # what the tools call Stable Diffusion XL's text encoders, in the order of their widths
NAMELESS = {"emb_params", "emp_params", "clip_l"}  # keys of one tensor whose token is the file's name
PLACE = re.compile(r"(IN|MID|OUT)\d*")
PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8")


class _PickledParameters:
    """Stands in for the ParameterDict of the paper's code; what it holds arrives in `__dict__`."""


@dataclass(frozen=True)
class Embedding:
    """What is in an embedding file. word: that it answers to.

    widths: of the text towers. words: one entry [n, D] for all places, or by the places' names (XTI).
    """

    word: str
    widths: tuple[int, ...]
    words: Mapping[str, Tensor]

    def check_fits(self, frame: Frame, base_model: str) -> None:
        """ValueError unless a model of this frame can read it."""
        if self.widths != frame.text_widths:
            own, wanted = (" and ".join(map(str, widths)) for widths in (self.widths, frame.text_widths))
            family = "an embedding for Stable Diffusion XL, of " if len(self.widths) > 1 else "has "
            raise ValueError(
                f"{family}text width {own}, but the base model {base_model} has {wanted}; name the base model it was "
                "trained on"
            )
        if ALL not in self.words and self.words.keys() != set(frame.place_names):
            raise ValueError(
                f"has vectors for the layers {', '.join(self.words)}, but those of the base model {base_model} are "
                f"{shorten(', '.join(frame.place_names))}"
            )


def load_embedding(path: str | Path, backbone: Backbone, placeholder: str | None = None) -> Concept:
    """The concept in an embedding file, for the base model it was trained on (its weights are not needed).

    placeholder: the word it shall answer to; None takes the file's own.
    Raises UserError for a file that is missing, broken or of another kind, asks to execute code, holds NaN, or is of
    other text widths or layers than `backbone`; and for a word that cannot be a placeholder.
    """
    frame, embedding = backbone.frame, read_embedding(Path(path))
    word = embedding.word if placeholder is None else placeholder
    try:
        embedding.check_fits(frame, backbone.name)
        check_placeholder(backbone.tokenizer, word)
        places = [ALL] if ALL in embedding.words else frame.place_names
        words = torch.stack([embedding.words[name] for name in places])  # [1|P, n, D]
        method = (TextualInversion if ALL in embedding.words else XTI)(WordVectorsConfig(words.shape[1]), frame)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    method.load_state_dict({"words": words.reshape(method.words.shape)})
    return Concept(method.eval(), word, super_category="", metadata={"base_model": backbone.name})


def save_embedding(concept: Concept, path: str | Path) -> None:
    """Write a Textual Inversion concept: `.safetensors` and `.bin` as diffusers does, `.pt` as web UIs do; float32.

    Raises UserError for a concept of another method or another suffix, and if the place cannot be written to.
    """
    method, path = concept.method, Path(path)
    if method.projection() is not None:
        raise UserError(
            f"concept {concept.placeholder}: an embedding file holds a word, and a concept of method '{method.name}' "
            "is an edit of the attention layers too; it cannot be exported"
        )
    if not isinstance(method, TextualInversion):
        raise UserError(
            f"concept {concept.placeholder}: an embedding file holds one vector for all layers and timesteps, and a "
            f"concept of method '{method.name}' has different ones; approximate it first, by mean_embedding or "
            "layer_embeddings"
        )
    check_output(path)
    frame = method.frame
    vectors = method.words.detach().cpu().float().reshape(-1, frame.text_width)  # [n, D]
    parts = [part.contiguous() for part in vectors.split(list(frame.text_widths), dim=1)]
    named = dict(zip(TOWERS, parts, strict=True)) if len(parts) > 1 else {concept.placeholder: parts[0]}
    base_model = without_paths(str(concept.metadata.get("base_model", "")))
    if path.suffix == ".safetensors":
        about = {"format": "pt", "base_model": base_model, "text_width": str(frame.text_width)}
        content = safetensors.torch.save(named, metadata=about)
    elif path.suffix == ".bin" or len(parts) > 1:
        content = _pickled(named)
    else:
        content = _pickled(
            {
                "string_to_token": {"*": WEB_UI_TOKEN_ID},
                "string_to_param": {"*": vectors},
                "name": concept.placeholder,
                "step": concept.metadata.get("step"),
                "sd_checkpoint": None,
                "sd_checkpoint_name": base_model,
            }
        )
    write_atomically(path, lambda file: file.write(content))


def check_output(path: Path) -> None:
    """Raise UserError unless the ending of `path` names a format that can be written."""
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"output {path}: its ending chooses the format; use .safetensors or .bin (diffusers, web UIs) or .pt (web "
            "UIs)"
        )


def read_embedding(path: Path) -> Embedding:
    """What is in an embedding file, in float32; UserError as in `load_embedding`."""
    content = read_content(path)
    try:
        return _find_words(path.stem, content)
    except ValueError as error:
        raise UserError(f"{path}: not a {WHAT} that can be read; {error}") from None


def read_content(path: Path) -> Any:
    """All of an embedding file, as it is; UserError for one that is missing, broken, or asks to execute code."""
    require_file(path, WHAT)
    with open(path, "rb") as file:
        start = file.read(9)
    if start.startswith(PICTURES):
        raise UserError(
            f"{path}: is a picture; an embedding hidden inside one is not read: let the tool that made it save it as "
            ".safetensors or .pt"
        )
    if start[8:] == b"{":  # behind the length of a safetensors header
        return read_safetensors(path)
    return read_pickle(path, WHAT, [(_PickledParameters, PARAMETER_DICT)])


def _find_words(stem: str, content: Any) -> Embedding:
    """Whichever of the formats it is; ValueError if it is none. stem: of the file's name."""
    content = content if isinstance(content, Mapping) else {}
    keys = {str(key) for key in content}
    if "string_to_param" in keys:
        found = content["string_to_param"]
        params = vars(found).get("_parameters") if isinstance(found, _PickledParameters) else found
        if isinstance(params, Mapping) and len(params) == 1:
            words = _vectors("string_to_param", next(iter(params.values())))
            return Embedding(str(content.get("name") or stem), (words.shape[1],), {ALL: words})
    elif keys == set(TOWERS):
        towers = [_vectors(name, content[name]) for name in TOWERS]
        if len(towers[0]) != len(towers[1]):
            raise ValueError(f"clip_l has {len(towers[0])} vectors and clip_g {len(towers[1])}")
        return Embedding(stem, tuple(tower.shape[1] for tower in towers), {ALL: torch.cat(towers, dim=1)})
    elif keys == {"clip_g"}:
        raise ValueError("of Stable Diffusion XL's two text encoders it has one, clip_g; clip_l is missing")
    elif len(keys) == 1:
        [(token, value)] = content.items()
        words = _vectors(str(token), value)
        return Embedding(stem if token in NAMELESS else str(token), (words.shape[1],), {ALL: words})
    elif keys and all(PLACE.fullmatch(key) for key in keys):
        layers = {str(key): _vectors(str(key), value) for key, value in content.items()}
        shapes = {tuple(words.shape) for words in layers.values()}
        if len(shapes) > 1:
            raise ValueError("its layers have different numbers of vectors")
        return Embedding(stem, (next(iter(shapes))[1],), layers)
    raise ValueError(
        "it must hold exactly one token, as diffusers' {token: tensor}, as the web UIs' string_to_param or emb_params, "
        "or as clip_l with clip_g" + (f", and it holds {shorten(', '.join(sorted(keys)))}" if keys else "")
    )


def _vectors(name: str, value: Any) -> Tensor:
    """[n, D]; ValueError for anything else."""
    words = torch.atleast_2d(plain(shorten(name), value))
    if words.ndim != 2 or not words.numel():
        raise ValueError(f"{shorten(name)} is not a vector per token, but has the shape {list(words.shape)}")
    return words


def _pickled(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
