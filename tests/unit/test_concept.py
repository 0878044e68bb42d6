"""The concept file: complete, small, and refused with one line when it is anything else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from frames import created
from safetensors import safe_open
from safetensors.torch import save_file

from neti.models.backbone.backbone import Backbone
from neti.models.concepts.concept import Concept
from neti.models.concepts.files import without_paths
from neti.models.concepts.header import read_header
from neti.models.methods import NeTI, NeTIConfig
from neti.utils.errors import UserError

TIMESTEPS = torch.tensor([0, 137, 999])


def make_concept(text_width: int = 32, seed: int = 0, **settings: Any) -> Concept:
    method = created(NeTI, NeTIConfig(**settings), 16, torch.ones(text_width), torch.Generator().manual_seed(seed))
    return Concept(method.eval(), "<toy>", "teddy", {"base_model": "tiny", "step": 7, "training_config": {"a": [1]}})


def small_concept() -> Concept:
    return make_concept(hidden_dim=8, num_frequencies=2, num_time_anchors=1)


@pytest.mark.parametrize(
    "settings", [{}, {"output_bypass": False, "norm_rule": "base"}, {"use_positional_encoding": False}]
)
def test_loading_gives_the_same_concept(tmp_path: Path, settings: dict[str, Any]) -> None:
    concept = make_concept(**settings)
    concept.save(tmp_path / "concept.safetensors")
    loaded = Concept.load(tmp_path / "concept.safetensors")
    assert (loaded.placeholder, loaded.super_category, loaded.metadata) == ("<toy>", "teddy", concept.metadata)
    assert loaded.method.config == concept.method.config
    before, after = concept.method.vectors(TIMESTEPS), loaded.method.vectors(TIMESTEPS)
    assert torch.equal(after.words, before.words)
    if before.bypass is not None:
        assert after.bypass is not None and torch.equal(after.bypass, before.bypass)
    assert all(parameter.requires_grad for parameter in loaded.method.parameters()), "it can be trained further"


def test_metadata_is_read_from_the_header_alone(tmp_path: Path) -> None:
    path = tmp_path / "concept.safetensors"
    make_concept().save(path)
    header, metadata = read_header(path)
    assert header.sizes == make_concept().method.frame
    assert metadata["format_version"] == 1 and metadata["method"] == "neti"
    assert (metadata["placeholder"], metadata["super_category"], metadata["step"]) == ("<toy>", "teddy", 7)
    assert (metadata["text_width"], metadata["num_layers"]) == (32, 16)
    assert metadata["config"]["target_norm"] == pytest.approx(32**0.5)
    assert metadata["libraries"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_sizes_on_stable_diffusion_1(tmp_path: Path) -> None:
    concept = make_concept(text_width=768)
    concept.save(tmp_path / "full.safetensors")
    concept.save(tmp_path / "half.safetensors", torch.float16)
    full, half = ((tmp_path / f"{name}.safetensors").stat().st_size / 2**20 for name in ("full", "half"))
    assert 2.14 < full < 2.17
    assert 1.06 < half < 1.10


def test_half_precision_file_keeps_the_frequencies_and_loads_in_float32(tmp_path: Path) -> None:
    concept = make_concept()
    concept.save(tmp_path / "half.safetensors", torch.float16)
    loaded = Concept.load(tmp_path / "half.safetensors")
    assert isinstance(loaded.method, NeTI) and isinstance(concept.method, NeTI)
    assert {tensor.dtype for tensor in loaded.method.state_dict().values()} == {torch.float32}
    states = (concept.method.state_dict(), loaded.method.state_dict())
    assert torch.equal(*(state["mapper.encoding.frequencies"] for state in states))
    before, after = (method.vectors(TIMESTEPS).words for method in (concept.method, loaded.method))
    assert torch.cosine_similarity(before, after, dim=-1).min() > 0.9999


def test_equal_concepts_give_equal_bytes(tmp_path: Path) -> None:
    contents = []
    for i in range(4):
        make_concept().save(tmp_path / f"{i}.safetensors")
        contents.append((tmp_path / f"{i}.safetensors").read_bytes())
    assert len(set(contents)) == 1


def test_a_concept_of_another_backbone_is_refused(
    tmp_path: Path, tiny_backbone: Backbone, make_tiny_backbone: Callable[..., Backbone]
) -> None:
    path = tmp_path / "concept.safetensors"
    make_concept().save(path)
    Concept.load(path, backbone=tiny_backbone)
    with pytest.raises(UserError, match="trained on tiny with text width 32 and 16 layers, but tiny has 64 and 16"):
        Concept.load(path, backbone=make_tiny_backbone(text_width=64))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the concept file .*none\.safetensors does not exist"):
        Concept.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize("kept", [0, 5, 300, 20_000, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "concept.safetensors"
    make_concept().save(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"concept\.safetensors: not a complete"):
        Concept.load(path)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    text, tensors = tmp_path / "text.safetensors", tmp_path / "tensors.safetensors"
    text.write_text("this is no concept at all, but long enough to have a header")
    save_file({"weight": torch.zeros(3)}, tensors)
    with pytest.raises(UserError, match=r"text.safetensors: not a complete \.safetensors file"):
        Concept.load(text)
    with pytest.raises(UserError, match="not a concept written by this project"):
        Concept.load(tensors)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"method": "dreambooth"}, "method is 'dreambooth', known are"),
        ({"format_version": 2}, "concept format 2, this version reads 1; update"),
        ({"text_width": 48}, "damaged or was edited"),
        ({"text_width": 10**9}, "damaged or was edited"),
        ({"num_layers": "many"}, "damaged or was edited"),
        ({"config": {"hidden_dim": 128, "colour": "red"}}, "damaged or was edited"),
        ({"config": {"norm_rule": "half"}}, "damaged or was edited"),
        ({"config": None}, "config is None; must be an object"),
        ({"config": {"hidden_dim": "128"}}, "hidden_dim is '128'; must be a whole number"),
        ({"config": {"hidden_dim": True}}, "hidden_dim is True; must be a whole number"),
        ({"config": {"sigma_t": float("nan")}}, "nan is no number"),
        ({"config": {}}, "target_norm"),
        ({"method": ["neti"]}, "method is ['neti']; must be text"),
        ({"format_version": True}, "format_version is True; must be a whole number"),
        ({"format_version": "x" * 12_000}, "concept format 'xxx"),
        ({"placeholder": None}, "placeholder is None; must be text"),
        ({"placeholder": ""}, "placeholder '' must be one word without spaces"),
        ({"placeholder": "a"}, "placeholder 'a' is one character"),
        ({"placeholder": "a photo"}, "placeholder 'a photo' must be one word without spaces"),
        ({"placeholder": "{}"}, "placeholder '{}' must have no braces"),
        ({"placeholder": "{mug}"}, "placeholder '{mug}' must have no braces"),
        ({"placeholder": "<to\0y>"}, "must be one word without spaces"),
        ({"placeholder": "<\u202etoy>"}, "must be one word without spaces"),
        ({"placeholder": "x" * 12_000}, "has more than 100 characters"),
        ({"placeholder": "\ud800"}, "is no valid Unicode"),
        ({"super_category": 3}, "super_category is 3; must be text"),
        ({"step": "7"}, "step is '7'; must be a whole number or null"),
        ({"step": -1}, "step -1 is below 0"),
        ({"training_config": "x"}, "training_config is 'x'; must be an object {...} or null"),
        ({"base_model": ["x"]}, "base_model is ['x']; must be text"),
        ({"libraries": []}, "libraries is []; must be an object"),
        ({"frame": []}, "frame is []; must be an object {...} or null"),
        ({"frame": {}}, "layers is missing"),
        ({"frame": {"layers": [], "text_widths": [32], "tokens": 77}}, "places are not numbered from 0"),
        ({"frame": {"layers": [[0, "a", "", 1, 0, 9]], "text_widths": [32], "tokens": 77}}, "not numbered from 0"),
        ({"frame": {"layers": [[0, "a", "", 1, 0, 0]], "text_widths": [], "tokens": 77}}, "has no text"),
        ({"frame": {"layers": [[0, "a", "", 1, 0, 0]], "text_widths": [32], "tokens": 77}}, "not those of the frame"),
        ({"frame": {"layers": [[0, "a"]], "text_widths": [32], "tokens": 77}}, "layers is [0, 'a']; must be a list"),
        ({"frame": None, "num_layers": 10**9}, "num_layers 1000000000 and text_width 32 are of no model"),
        ({"frame": None, "num_layers": 15}, "has the shape"),
        ({"training_config": [[[[]]] * 3] * 3 + [{"a": 10**400}]}, "a whole number of more than 64 bits"),
    ],
)
def test_an_edited_header_is_refused(tmp_path: Path, edit: dict[str, Any], message: str) -> None:
    path = tmp_path / "concept.safetensors"
    small_concept().save(path)
    edit_header(path, lambda header: json.dumps({**header, **edit}))
    line = refusal(path)
    assert message in line


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "3", '{"format_version": 1', '{"a": ' * 50_000, '{"format_version": ' + "9" * 5000 + "}"]
)
def test_a_header_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "concept.safetensors"
    small_concept().save(path)
    edit_header(path, lambda _: text)
    assert "the concept file is damaged or was edited" in refusal(path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t * float("nan"), "mapper.output_layer.bias holds NaN or infinite numbers"),
        (lambda t: t.double() + 1e300, "mapper.output_layer.bias holds NaN or infinite numbers"),
        (lambda t: t.long(), "mapper.output_layer.bias is no tensor of numbers"),
        (lambda t: t[1:].clone(), "mapper.output_layer.bias has the shape [63], not [64]"),
        (lambda t: None, "mapper.output_layer.bias is missing"),
    ],
)
def test_tensors_that_are_no_weights_are_refused(
    tmp_path: Path, edit: Callable[[torch.Tensor], torch.Tensor | None], message: str
) -> None:
    path = tmp_path / "concept.safetensors"
    small_concept().save(path)
    edit_header(path, json.dumps, {"mapper.output_layer.bias": edit})
    assert message in refusal(path)


def test_what_is_not_finite_is_not_written(tmp_path: Path) -> None:
    concept = make_concept()
    concept.save(tmp_path / "concept.safetensors")
    before = (tmp_path / "concept.safetensors").read_bytes()
    with torch.no_grad():
        next(concept.method.parameters()).view(-1)[0] = 1e5
    with pytest.raises(UserError, match=r"is not finite in torch\.float16"):
        concept.save(tmp_path / "concept.safetensors", torch.float16)
    assert (tmp_path / "concept.safetensors").read_bytes() == before


def test_a_placeholder_that_the_model_knows_as_a_word_is_refused(tmp_path: Path, tiny_backbone: Backbone) -> None:
    concept = make_concept()
    concept.placeholder = "photo"
    concept.save(tmp_path / "concept.safetensors")
    with pytest.raises(UserError, match=r"concept\.safetensors: placeholder 'photo': already a word"):
        Concept.load(tmp_path / "concept.safetensors", backbone=tiny_backbone)


def test_a_file_made_to_be_shared_holds_no_local_path(tmp_path: Path) -> None:
    private = {
        "base_model": "/home/alice/models/sd-v1-4",
        "training_config": {
            "data": {"train_data_dir": "/home/alice/photos/mug", "prompts": ["A photo of a {}", "~/x", "..\\y"]},
            "log": {"exp_dir": "../alice/runs", "logging_dir": "C:\\Users\\alice\\logs"},
            "steps": 3,
        },
    }
    path = tmp_path / "concept.safetensors"
    concept = make_concept()
    concept.metadata = private
    concept.save(path)
    assert b"alice" not in path.read_bytes()
    metadata = Concept.load(path).metadata
    assert metadata["base_model"] == "sd-v1-4"
    assert metadata["training_config"] == {
        "data": {"train_data_dir": "mug", "prompts": ["A photo of a {}", "x", "y"]},
        "log": {"exp_dir": "runs", "logging_dir": "logs"},
        "steps": 3,
    }
    for harmless in (
        "CompVis/stable-diffusion-v1-4",
        "models/miniature/sd",
        "photos/mug",
        "http://x.y/z",
        "",
        "a/../b",
    ):
        assert without_paths(harmless) == harmless


def edit_header(
    path: Path, edit: Callable[[dict[str, Any]], str], tensors: dict[str, Callable[[Any], Any]] | None = None
) -> None:
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["neti"])
        content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    content |= {name: change(content.get(name)) for name, change in (tensors or {}).items()}
    save_file({name: t for name, t in content.items() if t is not None}, path, metadata={"neti": edit(header)})


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        Concept.load(path)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 600
    return line


def test_a_place_that_cannot_be_written_to_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="cannot write"):
        make_concept().save(tmp_path / "file" / "concept.safetensors")


FULL_DISK = """
import resource, sys
sys.path[:0] = [{folder!r}, {folder!r} + "/.."]
from test_concept import make_concept
from neti.utils.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # stands in for a full disk: writing fails half way
try:
    make_concept(seed=1).save({path!r})
except UserError as error:
    print("refused:", error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX resource limits")
def test_a_full_disk_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "concept.safetensors"
    make_concept(seed=0).save(path)
    before = path.read_bytes()
    code = FULL_DISK.format(folder=str(Path(__file__).parent), path=str(path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "refused: cannot write" in done.stdout
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["concept.safetensors"], "and nothing half-written behind"
