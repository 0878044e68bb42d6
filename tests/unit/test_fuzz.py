"""Whatever is in a file, reading it gives a value or ONE short line: thousands of files that nobody would write.

The same files at every run (`derandomize`). To look for more, take that out, and give `fuzz` more examples.
"""

from __future__ import annotations

import functools
import io
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import pytest
import safetensors.torch
import torch
from frames import created
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from neti.models.backbone.backbone import Backbone
from neti.models.backbone.frame import Frame
from neti.models.concepts.concept import Concept
from neti.models.concepts.embeddings import load_embedding
from neti.models.concepts.public_code import load_reference_concept
from neti.models.conditioning.prompts import Prompt, read_prompts, safe_name
from neti.models.generation.config import InferenceConfig
from neti.models.generation.gallery import Gallery
from neti.models.generation.recipes import ImageRecipe, read_recipe
from neti.models.methods import XTI, NeTI, NeTIConfig, TextualInversion, WordVectorsConfig
from neti.training.config.run import RunConfig
from neti.utils.config.parsing import parse_config, save_yaml, to_plain_dict
from neti.utils.errors import UserError
from neti.utils.images.png import write_png

REFERENCE = Path(__file__).parents[1] / "data" / "reference" / "default"
D = 32
T = TypeVar("T")


def fuzz(examples: int) -> Callable[[Any], Any]:
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=checks)


def one_line(read: Callable[[], T], lines: int = 1) -> T | None:
    """What `read` gives; None after a UserError, whose message must be fit for a terminal."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read()
    except UserError as error:
        expected = str(error).split("\n")
        assert 1 <= len(expected) <= lines, expected
        assert all(0 < len(line) < 1500 for line in expected), expected
        assert str(error).encode("utf-8", "surrogateescape"), expected
        return None


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path)


# --- values -----------------------------------------------------------------------------------------------------------
NUMBERS = st.sampled_from([0, 1, -1, 2, 10**9, 2**63, 10**400, 0.5, 1e-300, 1e308, -1e308, float("nan"), float("inf")])
WORDS = st.sampled_from(
    ["", " ", "a", "{}", "{a}", "<toy>", "a photo", "null", "~", "yes", "\0", "\ud800", "é", "\u202e", "-1", "x" * 300]
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, st.integers(), st.floats(), WORDS, st.text(max_size=8))
JSON = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(WORDS | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
DEEP = st.integers(1, 3000).map(lambda levels: "[" * levels + "]" * levels)


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A copy of JSON with something else in one place or two."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 2))):
        inner, path = value, []
        while isinstance(inner, (dict, list)) and inner and (not path or draw(st.booleans())):
            path.append(draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner)))))
            inner = inner[path[-1]]
        if not path:
            return draw(JSON)
        parent = functools.reduce(lambda part, key: part[key], path[:-1], value)
        if isinstance(parent, dict) and draw(st.integers(0, 3)) == 0:
            del parent[path[-1]]
        else:
            parent[path[-1]] = draw(JSON)
    return value


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """A copy of a file, cut short, or with some bytes exchanged, mostly where its headers are."""
    place = st.one_of(st.integers(0, min(400, len(content) - 1)), st.integers(0, len(content) - 1))
    edits = st.lists(st.tuples(place, st.binary(min_size=1, max_size=4)), min_size=1, max_size=3)

    def apply(edits: list[tuple[int, bytes]]) -> bytes:
        new = bytearray(content)
        for at, piece in edits:
            new[at : at + len(piece)] = piece
        return bytes(new)

    return st.one_of(place.map(lambda end: content[:end]), edits.map(apply))


# --- YAML and options -------------------------------------------------------------------------------------------------
def pieces_of(text: str) -> st.SearchStrategy[str]:
    return st.sampled_from(text.split(" "))


KEYS = pieces_of(
    "prompts seeds concepts mixtures style_mixing truncation_idxs steps input_dir batch_size guidance_scale log data "
    "model optim eval max_train_steps seed pe_sigmas exp_name num_denoising_steps validation_prompts method "
    "negative_prompt inference_dir revision word log.exp_name log.exp_dir data.super_category_token model.revision"
)
SIGNS = (
    pieces_of("[ ] { } , : - ? & * ! | > % @ ` ' \" # <<: &a *a !!python/name:os \n") | st.just(": ") | st.just("- ")
)
VALUES = pieces_of(
    rf'[1,[2]] 0-99999999 {{a:b}} {{concept:a}} "\0" "\ud800" {"9" * 400} {"9" * 5000} {{a:{"9" * 5000}}}'
)
PIECES = st.one_of(KEYS, WORDS, SIGNS, VALUES)
TREES = st.dictionaries(KEYS | st.text(max_size=4), JSON, max_size=4)


ENOUGH = {  # what a config needs, so that the keys that are fuzzed decide
    InferenceConfig: 'concept: x\nprompts: "a {}"',
    RunConfig: "log: {exp_name: toy}\ndata: {train_data_dir: images, placeholder_token: <toy>}",
}


def config_of(kind: type, folder: Path, text: str) -> None:
    (folder / "enough.yaml").write_text(ENOUGH[kind])
    (folder / "c.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    files = [f"--config_path={folder / name}.yaml" for name in ("enough", "c")]
    config = one_line(lambda: parse_config(kind, files), lines=25)
    if config is not None:
        held = json.dumps(to_plain_dict(config), ensure_ascii=False)
        assert held.encode() and "\\u0000" not in held, "no file could have such a name"
        save_yaml(config, folder / "again.yaml")
        assert parse_config(kind, ["--config_path", str(folder / "again.yaml")]) == config


@fuzz(250)
@given(kind=st.sampled_from([InferenceConfig, RunConfig]), pieces=st.lists(PIECES, max_size=25))
def test_yaml_of_any_pieces(folder: Path, kind: type, pieces: list[str]) -> None:
    config_of(kind, folder, "".join(pieces))


@fuzz(200)
@given(kind=st.sampled_from([InferenceConfig, RunConfig]), tree=TREES, key=KEYS, leaf=LEAVES)
def test_yaml_of_any_tree(folder: Path, kind: type, tree: dict[str, Any], key: str, leaf: Any) -> None:
    for written in (tree, {key: tree}, {key: leaf}):
        config_of(kind, folder, json.dumps(written))


@fuzz(200)
@given(words=st.lists(st.one_of(KEYS.map("--{}".format), PIECES, st.just("--")), max_size=6))
def test_options_of_any_words(words: list[str]) -> None:
    one_line(lambda: parse_config(InferenceConfig, words), lines=25)


@fuzz(200)
@given(text=st.lists(PIECES, max_size=10).map("".join))
def test_prompts_of_any_text(folder: Path, text: str) -> None:
    (folder / "prompts.txt").write_bytes(text.encode("utf-8", "surrogatepass"))
    for prompt in one_line(lambda: read_prompts(folder / "prompts.txt")) or []:
        one_line(lambda prompt=prompt: Prompt.parse(prompt, "<toy>"))
        (folder / safe_name(prompt)).touch()


# --- concepts ---------------------------------------------------------------------------------------------------------
@functools.cache
def concept_content(kind: str) -> bytes:
    if kind == "neti":
        config: Any = NeTIConfig(hidden_dim=4, num_frequencies=2, num_time_anchors=1)
        method: Any = created(NeTI, config, 4, torch.ones(D), torch.Generator().manual_seed(0))
    else:
        method = (XTI if kind == "xti" else TextualInversion)(WordVectorsConfig(2), Frame.of_sizes(4, [D]))
    metadata = {"base_model": "tiny", "step": 3, "training_config": {"data": {"repeats": 2}}}
    with tempfile.TemporaryDirectory() as folder:
        Concept(method.eval(), "<toy>", "teddy", metadata).save(f"{folder}/a.safetensors")
        return Path(f"{folder}/a.safetensors").read_bytes()


def header_of(content: bytes) -> dict[str, Any]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["neti"])


def with_header(content: bytes, text: str) -> bytes:
    return safetensors.torch.save(safetensors.torch.load(content), metadata={"neti": text})


def check_concept(path: Path, content: bytes) -> None:
    """A concept that loads can be used, and saved again as it is."""
    path.write_bytes(content)
    concept = one_line(lambda: Concept.load(path))
    if concept is not None:
        vectors = concept.method.vectors(torch.tensor([0, 999]))
        assert vectors.words.shape[0] in (1, concept.method.frame.num_places)
        concept.save(path)
        again = Concept.load(path)
        assert (again.placeholder, again.method.config) == (concept.placeholder, concept.method.config)


@fuzz(500)
@given(data=st.data(), kind=st.sampled_from(["neti", "xti", "textual_inversion"]))
def test_concept_headers(folder: Path, data: st.DataObject, kind: str) -> None:
    content = concept_content(kind)
    header = data.draw(st.one_of(changed(header_of(content)).map(json.dumps), DEEP, st.text(max_size=20)))
    check_concept(folder / "a.safetensors", with_header(content, header))


@fuzz(200)
@given(data=st.data(), kind=st.sampled_from(["neti", "xti"]))
def test_concept_files_of_any_bytes(folder: Path, data: st.DataObject, kind: str) -> None:
    check_concept(folder / "a.safetensors", data.draw(damaged(concept_content(kind))))


# --- embeddings and pickles -------------------------------------------------------------------------------------------
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, D, 64]), max_size=3)
TENSORS = st.builds(
    lambda shape, dtype, value, kind: KINDS[kind](torch.full(shape, value).to(dtype)),
    SHAPES | st.just([D]) | st.just([2, D]),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool]),
    st.sampled_from([0.1, 0.0, 1e30, float("nan"), float("inf")]),
    st.sampled_from(["plain", "plain", "sparse", "meta", "repeated", "parameter"]),
)
KINDS: dict[str, Callable[[torch.Tensor], Any]] = {
    "plain": lambda tensor: tensor,
    "sparse": lambda tensor: tensor.to_sparse(),
    "meta": lambda tensor: tensor.to("meta"),
    "repeated": lambda tensor: torch.zeros(1).expand(2**40, D),
    "parameter": lambda tensor: torch.nn.Parameter(tensor, requires_grad=tensor.is_floating_point()),
}
NAMES = st.sampled_from(
    ["<toy>", "emb_params", "emp_params", "clip_l", "clip_g", "string_to_param", "name", "*", "IN01", "MID", "a b", ""]
)
PICKLES = st.recursive(
    st.one_of(LEAVES, TENSORS),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(NAMES | LEAVES, inner, max_size=3)),
    max_leaves=5,
)


@functools.cache
def embedding_content(suffix: str) -> bytes:
    content = {"<toy>": torch.ones(2, D)}
    if suffix == ".safetensors":
        return safetensors.torch.save(content)
    buffer = io.BytesIO()
    torch.save({"string_to_param": {"*": content["<toy>"]}, "name": "<toy>"}, buffer)
    return buffer.getvalue()


@fuzz(300)
@given(content=st.dictionaries(NAMES, PICKLES | TENSORS, max_size=3) | PICKLES, suffix=st.sampled_from([".pt", ".bin"]))
def test_embeddings_in_pickles(folder: Path, tiny_backbone: Backbone, content: Any, suffix: str) -> None:
    torch.save(content, folder / f"a{suffix}")
    one_line(lambda: load_embedding(folder / f"a{suffix}", tiny_backbone))


@fuzz(150)
@given(content=st.dictionaries(NAMES, TENSORS, max_size=3))
def test_embeddings_in_safetensors(folder: Path, tiny_backbone: Backbone, content: dict[str, torch.Tensor]) -> None:
    whole = {name: t.detach().clone() for name, t in content.items() if t.numel() < 10**6 and not t.is_sparse}
    whole = {name: tensor for name, tensor in whole.items() if tensor.device.type == "cpu"}
    (folder / "a.safetensors").write_bytes(safetensors.torch.save(whole))
    concept = one_line(lambda: load_embedding(folder / "a.safetensors", tiny_backbone, "<new>"))
    if concept is not None:
        assert concept.method.vectors(torch.tensor([3])).words.isfinite().all()


@fuzz(300)
@given(data=st.data(), suffix=st.sampled_from([".safetensors", ".pt"]))
def test_embeddings_of_any_bytes(folder: Path, tiny_backbone: Backbone, data: st.DataObject, suffix: str) -> None:
    content = data.draw(damaged(embedding_content(suffix)) | st.binary(max_size=60))
    (folder / f"a{suffix}").write_bytes(content)
    one_line(lambda: load_embedding(folder / f"a{suffix}", tiny_backbone))


@fuzz(60)
@given(data=st.data())
def test_checkpoints_of_the_public_code_of_any_bytes(folder: Path, data: st.DataObject) -> None:
    whole = (REFERENCE / "learned_embeds-steps-7.bin").read_bytes()
    (folder / "learned_embeds-steps-7.bin").write_bytes(data.draw(damaged(whole)))
    one_line(lambda: load_reference_concept(REFERENCE / "mapper-steps-7.pt", folder / "learned_embeds-steps-7.bin"))


# --- recipes ----------------------------------------------------------------------------------------------------------
@fuzz(300)
@given(recipe=changed(asdict(ImageRecipe("a {}", seed=3))))
def test_recipes(folder: Path, recipe: Any) -> None:
    gallery, mine = Gallery(folder), ImageRecipe("a {}", seed=3)
    path = gallery.path(mine)
    try:
        write_png(Image.new("RGB", (2, 2)), path, {"recipe": recipe})
    except UnicodeEncodeError:  # no PNG can hold a lone surrogate
        return
    read = one_line(lambda: read_recipe(path))
    if read is not None:
        one_line(lambda: read.parsed)
    one_line(lambda: gallery.unfinished([mine]))


@fuzz(150)
@given(data=st.data())
def test_images_of_any_bytes(folder: Path, data: st.DataObject) -> None:
    gallery, mine = Gallery(folder), ImageRecipe("a {}", seed=3)
    gallery.add(Image.new("RGB", (2, 2)), mine, {})
    gallery.path(mine).write_bytes(data.draw(damaged(gallery.path(mine).read_bytes())))
    one_line(lambda: read_recipe(gallery.path(mine)))
    one_line(lambda: gallery.unfinished([mine]))
