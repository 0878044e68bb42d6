"""Textual Inversion embeddings as other tools exchange them, read and written.

    diffusers (`learned_embeds.safetensors`, `.bin`)    {token: tensor}
    web UIs (`.pt`)                                     {"string_to_param": {"*": tensor}, "name": token, ...}
    web UIs (`.safetensors`)                            {"emb_params": tensor}; the token is the file's name
    the Textual Inversion paper's code (`.pt`)          {"string_to_param": nn.ParameterDict, ...}; likewise

The tensor is [D], or [n, D] for a token of n vectors. None of them says reliably which base model it belongs to.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ...utils.errors import UserError
from ...utils.files import write_atomically
from ..backbone.backbone import Backbone
from ..conditioning.tokens import check_placeholder
from ..methods import Start, TextualInversion, WordVectorsConfig
from .concept import Concept
from .restricted_pickle import read_pickle

CONTENT = "a Textual Inversion embedding file"
SUFFIXES = (".safetensors", ".bin", ".pt")
WEB_UI_TOKEN_ID = 265  # the id of "*" in CLIP's vocabulary, which web UIs store and nobody reads
PARAMETER_DICT = "torch.nn.modules.container.ParameterDict"


class _PickledParameters:
    """Stands in for the ParameterDict of the paper's code; what it holds arrives in `__dict__`."""


def load_embedding(path: str | Path, backbone: Backbone, placeholder: str | None = None) -> Concept:
    """The concept in an embedding file, for the base model it was trained on (its weights are not needed).

    placeholder: the word it shall answer to; None takes the file's own.
    Raises UserError for a file that is missing, broken or of another kind, asks to execute code, holds several vectors
    for the token, or is of another text width than `backbone`; and for a word that cannot be a placeholder.
    """
    token, vectors = read_embedding(Path(path))
    if len(vectors) != 1:
        raise UserError(
            f"{path}: its token {token!r} stands for {len(vectors)} vectors; several vectors per token are not "
            "supported, take an embedding of one vector"
        )
    width = vectors.shape[1]
    if width != backbone.frame.text_width:
        raise UserError(
            f"{path}: has text width {width}, but the base model {backbone.name} has {backbone.frame.text_width}; name "
            "the base model it was trained on"
        )
    placeholder = token if placeholder is None else placeholder
    check_placeholder(backbone.tokenizer, placeholder)
    method = TextualInversion.create(WordVectorsConfig(), backbone.frame, Start(vectors[0]))
    return Concept(method.eval(), placeholder, super_category="", metadata={"base_model": backbone.name})


def save_embedding(concept: Concept, path: str | Path) -> None:
    """Write a Textual Inversion concept: `.safetensors` and `.bin` as diffusers does, `.pt` as web UIs do; float32.

    Raises UserError for a concept of another method or another suffix, and if the place cannot be written to.
    """
    method, path = concept.method, Path(path)
    if not isinstance(method, TextualInversion):
        raise UserError(
            f"concept {concept.placeholder}: an embedding file holds one vector for all layers and timesteps, and a "
            f"concept of method '{method.name}' has different ones; approximate it first, by mean_embedding or "
            "layer_embeddings"
        )
    check_output(path)
    vectors = method.words.detach().cpu().float()[0].contiguous()  # [1,D]
    base_model = str(concept.metadata.get("base_model", ""))
    if path.suffix == ".safetensors":
        about = {"format": "pt", "base_model": base_model, "text_width": str(method.frame.text_width)}
        content = safetensors.torch.save({concept.placeholder: vectors}, metadata=about)
    elif path.suffix == ".bin":
        content = _pickled({concept.placeholder: vectors})
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


def read_embedding(path: Path) -> tuple[str, Tensor]:
    """The token in an embedding file and its vectors [n, D] in float32; UserError as in `load_embedding`."""
    if not path.is_file():
        raise UserError(f"{path}: no such embedding file")
    if path.suffix == ".safetensors":
        try:
            content: Any = safetensors.torch.load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a complete .safetensors file ({error}); take another copy") from error
    else:
        content = read_pickle(path, CONTENT, [(_PickledParameters, PARAMETER_DICT)])
    token, vectors = _find_vectors(path, content)
    if not isinstance(vectors, Tensor) or vectors.ndim not in (1, 2) or not vectors.is_floating_point():
        raise UserError(f"{path}: not {CONTENT}; nothing in it is a vector per token")
    return token, torch.atleast_2d(vectors.detach().float())


def _find_vectors(path: Path, content: Any) -> tuple[str, Any]:
    """The token and what should be its vectors, whichever of the formats it is."""
    content = content if isinstance(content, Mapping) else {}
    if {"clip_l", "clip_g"} <= content.keys():
        raise UserError(f"{path}: an embedding for Stable Diffusion XL, whose two text encoders are not supported")
    if "string_to_param" in content:
        found = content["string_to_param"]
        params = vars(found).get("_parameters") if isinstance(found, _PickledParameters) else found
        if isinstance(params, Mapping) and len(params) == 1:
            return str(content.get("name") or path.stem), next(iter(params.values()))
    elif len(content) == 1:
        [(token, vectors)] = content.items()
        return path.stem if token == "emb_params" else str(token), vectors
    raise UserError(
        f"{path}: not {CONTENT}, which holds exactly one token, as diffusers' {{token: tensor}} or as the web UIs' "
        "string_to_param or emb_params"
    )


def _pickled(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
