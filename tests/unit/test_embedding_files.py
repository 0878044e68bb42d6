"""Embedding files that diffusers and the web UIs exchange: read and written as they do, and never executed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from frames import created
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from neti.models.backbone.backbone import Backbone
from neti.models.concepts.concept import Concept
from neti.models.concepts.embeddings import load_embedding, save_embedding
from neti.models.conditioning.conditioning import condition
from neti.models.conditioning.tokens import tokenize
from neti.models.methods import METHODS, TextualInversion, WordVectorsConfig
from neti.utils.errors import UserError

D = 32
VECTOR = torch.randn(D, generator=torch.Generator().manual_seed(0))


def make_concept(vector: torch.Tensor = VECTOR) -> Concept:
    method = created(TextualInversion, WordVectorsConfig(), 16, vector)
    return Concept(method.eval(), "<toy>", "teddy", {"base_model": "tiny", "step": 500})


def web_ui(param: Any, **others: Any) -> dict[str, Any]:
    return {"string_to_token": {"*": 265}, "string_to_param": param, **others}


def write(path: Path, content: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


FOREIGN: list[tuple[str, Any, str]] = [  # file name, content, the word the concept then answers to
    ("learned_embeds.bin", {"<cat-toy>": VECTOR}, "<cat-toy>"),
    ("learned_embeds.safetensors", {"<cat-toy>": VECTOR[None]}, "<cat-toy>"),
    ("half.safetensors", {"<cat-toy>": VECTOR.half()}, "<cat-toy>"),
    ("style-x.pt", web_ui({"*": VECTOR[None].clone().requires_grad_()}, name="my-style", step=7), "my-style"),
    ("style-x.pt", web_ui({"*": VECTOR[None]}, name=None), "style-x"),
    ("style-x.pt", web_ui(torch.nn.ParameterDict({"*": VECTOR[None]})), "style-x"),
    ("style-x.safetensors", {"emb_params": VECTOR[None]}, "style-x"),
]


@pytest.mark.parametrize(("name", "content", "word"), FOREIGN)
def test_what_other_tools_write_is_read(
    tmp_path: Path, tiny_backbone: Backbone, name: str, content: Any, word: str
) -> None:
    concept = load_embedding(write(tmp_path / name, content), tiny_backbone)
    assert (concept.placeholder, concept.metadata) == (word, {"base_model": "tiny"})
    assert concept.method.frame.sizes == (16, (D,))
    expected = VECTOR.half().float() if name == "half.safetensors" else VECTOR
    assert torch.equal(concept.method.vectors(torch.tensor([3])).words[0, 0], expected)
    assert load_embedding(tmp_path / name, tiny_backbone, placeholder="<new>").placeholder == "<new>"


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt"])
def test_what_is_written_reads_back(tmp_path: Path, tiny_backbone: Backbone, suffix: str) -> None:
    save_embedding(make_concept(), tmp_path / f"toy{suffix}")
    concept = load_embedding(tmp_path / f"toy{suffix}", tiny_backbone)
    assert concept.placeholder == "<toy>"
    assert torch.equal(concept.method.vectors(torch.tensor([3])).words[0, 0], VECTOR)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt"])
def test_stock_diffusers_reads_what_is_written(tmp_path: Path, tiny_backbone: Backbone, suffix: str) -> None:
    concept = make_concept()
    path = tmp_path / f"toy{suffix}"
    save_embedding(concept, path)
    tokens = tokenize(tiny_backbone.tokenizer, ["a photo of a <toy> and a teddy"], ["<toy>"])
    vectors = {"<toy>": concept.method.vectors(torch.tensor([3]))}
    with torch.no_grad():
        expected = condition(tiny_backbone.text, tokens, vectors, tiny_backbone.frame).keys[0]

    pipeline = StableDiffusionPipeline(
        vae=tiny_backbone.vae,
        text_encoder=tiny_backbone.text_encoder,
        tokenizer=tiny_backbone.tokenizer,
        unet=tiny_backbone.unet,
        scheduler=tiny_backbone.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.load_textual_inversion(str(path))
    encoding, _ = pipeline.encode_prompt("a photo of a <toy> and a teddy", torch.device("cpu"), 1, False)
    torch.testing.assert_close(encoding, expected, atol=1e-5, rtol=0)


def test_the_formats_in_detail(tmp_path: Path) -> None:
    for suffix in (".safetensors", ".bin", ".pt"):
        save_embedding(make_concept(), tmp_path / f"toy{suffix}")
    assert torch.equal(load_file(tmp_path / "toy.safetensors")["<toy>"], VECTOR[None])
    with safe_open(tmp_path / "toy.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "base_model": "tiny", "text_width": str(D)}
    assert list(torch.load(tmp_path / "toy.bin", weights_only=True)) == ["<toy>"]
    web = torch.load(tmp_path / "toy.pt", weights_only=True)
    assert torch.equal(web["string_to_param"]["*"], VECTOR[None])
    assert (web["name"], web["step"], web["sd_checkpoint_name"]) == ("<toy>", 500, "tiny")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("two.bin", {"<toy>": torch.zeros(2, D)}, "several vectors per token are not supported"),
        ("wide.safetensors", {"<toy>": torch.zeros(1024)}, "text width 1024, but the base model tiny has 32"),
        ("known.bin", {"teddy": VECTOR}, "already a word of the model's vocabulary"),
        ("xl.safetensors", {"clip_l": VECTOR[None], "clip_g": torch.zeros(1, 64)}, "Stable Diffusion XL"),
        ("lora.safetensors", {"a": VECTOR, "b": VECTOR + 1}, "exactly one token"),
        ("list.pt", [VECTOR], "exactly one token"),
        ("both.pt", web_ui({"*": VECTOR, "+": VECTOR}), "exactly one token"),
        ("matrix.bin", {"<toy>": torch.zeros(1, 1, D)}, "vector per token"),
        ("numbers.bin", {"<toy>": [1.0, 2.0]}, "vector per token"),
        ("integers.bin", {"<toy>": torch.zeros(D, dtype=torch.long)}, "vector per token"),
    ],
)
def test_what_cannot_be_a_concept_is_refused(
    tmp_path: Path, tiny_backbone: Backbone, name: str, content: Any, told: str
) -> None:
    with pytest.raises(UserError, match=told) as caught:
        load_embedding(write(tmp_path / name, content), tiny_backbone)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["broken.safetensors", "broken.pt", "broken.bin"])
def test_a_broken_or_missing_file_is_one_line(tmp_path: Path, tiny_backbone: Backbone, name: str) -> None:
    with pytest.raises(UserError, match="no such embedding file"):
        load_embedding(tmp_path / name, tiny_backbone)
    (tmp_path / name).write_bytes(b"not an embedding")
    with pytest.raises(UserError, match=name) as caught:
        load_embedding(tmp_path / name, tiny_backbone)
    assert "\n" not in str(caught.value)


class Hostile:
    """Unpickling it creates a folder: the harmless stand-in for arbitrary code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["learned_embeds.bin", "style.pt"])
def test_a_hostile_pickle_is_refused_and_executes_nothing(tmp_path: Path, tiny_backbone: Backbone, name: str) -> None:
    evil, trace = tmp_path / name, tmp_path / "trace"
    torch.save({"<toy>": VECTOR} | {"string_to_param": Hostile(trace)}, evil)
    with pytest.raises(UserError, match=r"refused, nothing was executed.*mkdir"):
        load_embedding(evil, tiny_backbone)
    assert not trace.exists()
    torch.load(evil, weights_only=False)  # the very file does harm when read without restriction
    assert trace.exists()


@pytest.mark.parametrize("name", [name for name in METHODS if name != "textual_inversion"])
def test_only_one_vector_for_everything_can_be_written(tmp_path: Path, name: str) -> None:
    method_class = METHODS[name]
    method = created(method_class, method_class.config_class(), 16, VECTOR)
    with pytest.raises(UserError, match=f"method '{name}' has different ones"):
        save_embedding(Concept(method, "<toy>", "teddy"), tmp_path / "toy.bin")
    with pytest.raises(UserError, match="ending chooses the format"):
        save_embedding(make_concept(), tmp_path / "toy.ckpt")
    assert list(tmp_path.iterdir()) == []
