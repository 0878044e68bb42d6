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
from neti.models.methods import NeTI, NeTIConfig
from neti.utils.errors import UserError

TIMESTEPS = torch.tensor([0, 137, 999])


def make_concept(text_width: int = 32, seed: int = 0, **settings: Any) -> Concept:
    method = created(NeTI, NeTIConfig(**settings), 16, torch.ones(text_width), torch.Generator().manual_seed(seed))
    return Concept(method.eval(), "<toy>", "teddy", {"base_model": "tiny", "step": 7, "training_config": {"a": [1]}})


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
    metadata = Concept.read_metadata(path)
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
    with pytest.raises(UserError, match=r"none\.safetensors: no such concept file"):
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
        ({"config": None}, "damaged or was edited"),
    ],
)
def test_an_edited_header_is_refused(tmp_path: Path, edit: dict[str, Any], message: str) -> None:
    path = tmp_path / "concept.safetensors"
    make_concept().save(path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["neti"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata={"neti": json.dumps({**header, **edit})})
    with pytest.raises(UserError, match=message) as caught:
        Concept.load(path)
    assert "\n" not in str(caught.value)


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
