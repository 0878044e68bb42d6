"""Embedding files that diffusers and the web UIs exchange: read and written as they do, and never executed."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from frames import created
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_backbone import stock_pipeline

from neti.models.backbone.backbone import Backbone
from neti.models.backbone.frame import Frame
from neti.models.concepts.concept import Concept
from neti.models.concepts.embeddings import load_embedding, read_embedding, save_embedding
from neti.models.conditioning.conditioning import condition
from neti.models.conditioning.tokens import tokenize
from neti.models.methods import METHODS, XTI, TextualInversion, WordVectorsConfig
from neti.utils.errors import UserError

D = 32
VECTOR = torch.randn(D, generator=torch.Generator().manual_seed(0))
VECTORS = torch.randn(3, D, generator=torch.Generator().manual_seed(1))


def make_concept(vector: torch.Tensor = VECTOR) -> Concept:
    count = 1 if vector.dim() == 1 else len(vector)
    method = TextualInversion(WordVectorsConfig(count), Frame.of_sizes(16, [D]))
    method.load_state_dict({"words": vector.reshape(method.words.shape)})
    return Concept(method.eval(), "<toy>", "teddy", {"base_model": "tiny", "step": 500})


def nested(levels: int) -> list[Any]:
    return [] if levels == 0 else [nested(levels - 1)]


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
    ("style-x.safetensors", {"emp_params": VECTOR[None]}, "style-x"),
    ("style-x.safetensors", {"clip_l": VECTOR[None]}, "style-x"),
    ("three.safetensors", {"<cat-toy>": VECTORS}, "<cat-toy>"),
    ("style-3.safetensors", {"clip_l": VECTORS}, "style-3"),
    ("style-3.pt", web_ui({"*": VECTORS}, name="my-style"), "my-style"),
]


@pytest.mark.parametrize(("name", "content", "word"), FOREIGN)
def test_what_other_tools_write_is_read(
    tmp_path: Path, tiny_backbone: Backbone, name: str, content: Any, word: str
) -> None:
    concept = load_embedding(write(tmp_path / name, content), tiny_backbone)
    assert (concept.placeholder, concept.metadata) == (word, {"base_model": "tiny"})
    assert concept.method.frame.sizes == (16, (D,))
    expected = VECTORS if "3" in name or "three" in name else VECTOR
    expected = expected.half().float() if name == "half.safetensors" else expected
    assert torch.equal(concept.method.vectors(torch.tensor([3])).words[0, 0], expected)
    assert concept.method.positions == (1 if expected.dim() == 1 else len(expected))
    assert load_embedding(tmp_path / name, tiny_backbone, placeholder="<new>").placeholder == "<new>"


@pytest.mark.parametrize("vector", [VECTOR, VECTORS], ids=["one", "three"])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt"])
def test_what_is_written_reads_back(tmp_path: Path, tiny_backbone: Backbone, suffix: str, vector: torch.Tensor) -> None:
    save_embedding(make_concept(vector), tmp_path / f"toy{suffix}")
    concept = load_embedding(tmp_path / f"toy{suffix}", tiny_backbone)
    assert concept.placeholder == "<toy>"
    assert torch.equal(concept.method.vectors(torch.tensor([3])).words[0, 0], vector)


def test_embeddings_of_two_text_encoders(tmp_path: Path) -> None:
    """As all tools write them for Stable Diffusion XL."""
    frame = Frame.of_sizes(11, [D, 64])
    words = torch.randn(2, D + 64, generator=torch.Generator().manual_seed(2))
    method = TextualInversion(WordVectorsConfig(2), frame)
    method.load_state_dict({"words": words[None, None]})
    for suffix in (".safetensors", ".bin", ".pt"):
        save_embedding(Concept(method.eval(), "<toy>", "teddy"), tmp_path / f"toy{suffix}")
        read = read_embedding(tmp_path / f"toy{suffix}")
        assert (read.word, read.widths) == ("toy", (D, 64))
        assert torch.equal(read.words["all"], words)
        read.check_fits(frame, "xl")
    written = load_file(tmp_path / "toy.safetensors")
    assert torch.equal(torch.cat([written["clip_l"], written["clip_g"]], dim=1), words)


@pytest.mark.parametrize("vector", [VECTOR, VECTORS], ids=["one", "three"])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt"])
def test_stock_diffusers_reads_what_is_written(
    tmp_path: Path, tiny_backbone: Backbone, suffix: str, vector: torch.Tensor
) -> None:
    concept = make_concept(vector)
    path = tmp_path / f"toy{suffix}"
    save_embedding(concept, path)
    prompt = "a photo of a <toy> and a teddy"
    tokens = tokenize(tiny_backbone.tokenizer, [prompt], {"<toy>": concept.method.positions})
    vectors = {"<toy>": concept.method.vectors(torch.tensor([3]))}
    with torch.no_grad():
        expected = condition(tiny_backbone.text, tokens, vectors, tiny_backbone.frame).keys[0]

    pipeline = stock_pipeline(tiny_backbone)
    pipeline.load_textual_inversion(str(path))
    encoding, _ = pipeline.encode_prompt(prompt, torch.device("cpu"), 1, False)
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
    ("name", "content", "message"),
    [
        ("wide.safetensors", {"<toy>": torch.zeros(1024)}, "text width 1024, but the base model tiny has 32"),
        ("known.bin", {"teddy": VECTOR}, "already a word of the model's vocabulary"),
        ("my style.safetensors", {"emb_params": VECTOR}, "placeholder 'my style': must be one word"),
        (
            "xl.safetensors",
            {"clip_l": VECTOR[None], "clip_g": torch.zeros(1, 64)},
            "Stable Diffusion XL, of text width",
        ),
        ("lora.safetensors", {"a": VECTOR, "b": VECTOR + 1}, "exactly one token"),
        ("list.pt", [VECTOR], "exactly one token"),
        ("both.pt", web_ui({"*": VECTOR, "+": VECTOR}), "exactly one token"),
        ("matrix.bin", {"<toy>": torch.zeros(1, 1, D)}, "vector per token"),
        ("numbers.bin", {"<toy>": [1.0, 2.0]}, "<toy> is no tensor of numbers"),
        ("integers.bin", {"<toy>": torch.zeros(D, dtype=torch.long)}, "<toy> is no tensor of numbers"),
        ("empty.bin", {"<toy>": torch.zeros(0, D)}, "vector per token"),
        ("nan.safetensors", {"<toy>": VECTOR * float("nan")}, "<toy> holds NaN or infinite numbers"),
        ("nan.bin", {"<toy>": VECTOR.double() * 1e300}, "<toy> holds NaN or infinite numbers"),
        ("sparse.bin", {"<toy>": VECTOR[None].to_sparse()}, "<toy> is no ordinary tensor"),
        ("meta.bin", {"<toy>": torch.zeros(2**40, D, device="meta")}, "<toy> is no ordinary tensor"),
        ("huge.bin", {"<toy>": torch.zeros(1, 1).expand(2**40, D)}, "<toy> has more numbers than the file"),
        ("many.safetensors", {"<toy>": torch.zeros(76, D)}, "num_vectors 76: must lie in 1..75"),
        ("half_xl.safetensors", {"clip_g": torch.zeros(1, 64)}, "clip_l is missing"),
        ("odd_xl.safetensors", {"clip_l": torch.zeros(2, D), "clip_g": torch.zeros(1, 64)}, "clip_l has 2 vectors"),
        ("flux.safetensors", {"clip_l": VECTOR[None], "t5": torch.zeros(1, 64)}, "it holds clip_l, t5"),
        ("layers.safetensors", {"IN01": VECTOR, "MID": VECTOR + 1}, "vectors for the layers IN01, MID, but those of"),
        ("uneven.safetensors", {"IN01": VECTOR, "MID": VECTOR[None].repeat(2, 1)}, "different numbers of vectors"),
        ("deep.bin", {"<toy>": nested(400)}, "<toy> is no tensor of numbers"),
    ],
)
def test_what_cannot_be_a_concept_is_refused(
    tmp_path: Path, tiny_backbone: Backbone, name: str, content: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_embedding(write(tmp_path / name, content), tiny_backbone)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


PICTURE = b"\x89PNG\r\n\x1a\n" + b"\0" * 100
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 3840\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("toy.png", PICTURE, "is a picture; an embedding hidden inside one is not read"),
        ("toy.pt", PICTURE, "is a picture"),
        ("toy.bin", b"RIFF\x00\x00\x00\x00WEBPVP8 ", "is a picture"),
        ("toy.bin", POINTER, "is a Git LFS pointer, not the file itself; run `git lfs pull`"),
        ("toy.safetensors", POINTER, "is a Git LFS pointer"),
    ],
)
def test_what_is_no_embedding_file_at_all_is_named(
    tmp_path: Path, tiny_backbone: Backbone, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_embedding(tmp_path / name, tiny_backbone)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, tiny_backbone: Backbone) -> None:
    path = write(tmp_path / "toy.bin", {"<toy>": VECTOR})
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(tmp_path / "bomb.bin", "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in whole.namelist():
            bomb.writestr(entry, whole.read(entry) + (b"\0" * 2**26 if entry.endswith("data.pkl") else b""))
    assert (tmp_path / "bomb.bin").stat().st_size < 100_000
    with pytest.raises(UserError, match="an archive that unpacks to 64 MiB"):
        load_embedding(tmp_path / "bomb.bin", tiny_backbone)


def test_content_decides_and_not_the_ending(tmp_path: Path, tiny_backbone: Backbone) -> None:
    write(tmp_path / "a.safetensors", {"<toy>": VECTOR}).rename(tmp_path / "a.bin")
    write(tmp_path / "b.bin", {"<toy>": VECTOR}).rename(tmp_path / "b.safetensors")
    for name in ("a.bin", "b.safetensors"):
        assert load_embedding(tmp_path / name, tiny_backbone).placeholder == "<toy>"


def test_one_vector_per_layer_is_an_xti_concept(tmp_path: Path, tiny_backbone: Backbone) -> None:
    names = tiny_backbone.frame.place_names
    for n in (1, 2):
        words = torch.randn(16, n, D, generator=torch.Generator().manual_seed(n))
        write(tmp_path / "xti.safetensors", dict(zip(reversed(names), reversed(words.clone().unbind()), strict=True)))
        concept = load_embedding(tmp_path / "xti.safetensors", tiny_backbone, "<toy>")
        assert isinstance(concept.method, XTI) and concept.method.positions == n
        assert torch.equal(concept.method.words.reshape(words.shape), words)
        concept.save(tmp_path / "concept.safetensors")
        loaded = Concept.load(tmp_path / "concept.safetensors", backbone=tiny_backbone)
        assert torch.equal(loaded.method.vectors(torch.tensor([3])).words, concept.method.words)


@pytest.mark.parametrize("name", ["broken.safetensors", "broken.pt", "broken.bin"])
def test_a_broken_or_missing_file_is_one_line(tmp_path: Path, tiny_backbone: Backbone, name: str) -> None:
    with pytest.raises(UserError, match="does not exist"):
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


@pytest.mark.parametrize("name", ["neti", "xti"])
def test_only_one_vector_for_everything_can_be_written(tmp_path: Path, name: str) -> None:
    method_class = METHODS[name]
    method = created(method_class, method_class.config_class(), 16, VECTOR)
    with pytest.raises(UserError, match=f"method '{name}' has different ones"):
        save_embedding(Concept(method, "<toy>", "teddy"), tmp_path / "toy.bin")
    with pytest.raises(UserError, match="ending chooses the format"):
        save_embedding(make_concept(), tmp_path / "toy.ckpt")
    assert list(tmp_path.iterdir()) == []
