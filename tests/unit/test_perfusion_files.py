"""Concepts and covariances of the unofficial Perfusion codes: converted faithfully, or refused by name in one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from load_script import load_script
from perfusion_concepts import changed, denoise, make_perfusion
from torch import nn

from neti.models.backbone.backbone import Backbone
from neti.models.concepts.concept import Concept
from neti.models.concepts.perfusion_files import convert_perfusion, read_covariance
from neti.models.methods import Perfusion
from neti.models.methods.perfusion.covariance import find_covariance
from neti.utils.errors import UserError


def lucidrains(method: Perfusion, order: Sequence[int]) -> dict[str, Any]:
    """What perfusion-pytorch saves of a concept, its layers listed in this order: parameters, pairs [i*, o*], C^-1."""
    assert method.covariance is not None
    layers = method.frame.layers
    pairs = [
        [
            nn.Parameter(method.key[None].clone()),
            nn.Parameter(method.target(side, layers[index]).detach()[None].clone()),
        ]
        for index in order
        for side in ("key", "value")
    ]
    inverse = torch.linalg.inv(method.covariance.matrix.double()).float()
    return {
        "embed_params": nn.Parameter(method.word.detach()[None].clone()),
        "key_value_params": pairs,
        "C_inv": inverse,
    }


def by_position(method: Perfusion) -> dict[str, Any]:
    """What ChenDarYen's code saves: a target for each of 77 positions, and a ParameterDict for the word."""
    targets = {
        f"input_blocks.1.1.transformer_blocks.0.attn2.to_{side}.target_output": torch.zeros(77, 16) for side in "kv"
    }
    embedding = {
        "initializer_words": ["teddy"],
        "string_to_token": {"*": torch.tensor(265)},
        "string_to_param": nn.ParameterDict({"*": nn.Parameter(torch.zeros(1, 32))}),
    }
    return {
        "global_step": 400,
        "C_inv": torch.eye(32),
        "target_input": method.key.clone(),
        "embedding": embedding,
        "target_output": targets,
    }


@pytest.fixture
def method(tiny_backbone: Backbone) -> Perfusion:
    return changed(make_perfusion(tiny_backbone))


@pytest.fixture
def orders(tiny_backbone: Backbone) -> dict[str, list[int]]:
    layers = tiny_backbone.frame.layers
    executed = list(range(len(layers)))
    return {"executed": executed, "listed": sorted(executed, key=lambda i: layers[i].path.startswith("mid_block"))}


@pytest.mark.parametrize("kind", ["executed", "listed"])
def test_a_converted_concept_predicts_what_it_predicted(
    tiny_backbone: Backbone,
    tiny_backbone_folder: Path,
    method: Perfusion,
    orders: dict[str, list[int]],
    kind: str,
    tmp_path: Path,
) -> None:
    torch.save(lucidrains(method, orders[kind]), tmp_path / "toy.pt")
    words = ["convert", "--base_model", str(tiny_backbone_folder), "--placeholder", "<toy>"]
    words += [str(tmp_path / "toy.pt"), str(tmp_path / "toy.safetensors")]
    assert load_script("concept").main(words) == 2, "nobody says what its super category is"
    assert {path.name for path in tmp_path.iterdir()} == {"toy.pt"}
    assert load_script("concept").main([*words, "--super_category", "teddy"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"toy.pt", "toy.safetensors", "toy_covariance.safetensors"}
    find_covariance.cache_clear()
    loaded = Concept.load(tmp_path / "toy.safetensors", backbone=tiny_backbone)
    assert (loaded.placeholder, loaded.super_category) == ("<toy>", "teddy")
    for name, tensor in method.state_dict().items():
        assert torch.equal(loaded.method.state_dict()[name], tensor), name
    torch.testing.assert_close(
        denoise(tiny_backbone, {"{}": loaded.method}), denoise(tiny_backbone, {"{}": method}), atol=1e-5, rtol=0
    )


def test_values_by_position_are_refused_by_name(
    tiny_backbone_folder: Path, method: Perfusion, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(by_position(method), tmp_path / "teddy.ckpt")
    words = [
        "convert",
        "--base_model",
        str(tiny_backbone_folder),
        str(tmp_path / "teddy.ckpt"),
        str(tmp_path / "a.safetensors"),
    ]
    assert load_script("concept").main(words) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "a checkpoint of ChenDarYen's Perfusion code" in line and "train it from its photos" in line
    assert not (tmp_path / "a.safetensors").exists()


def test_what_cannot_be_one_concept_is_refused(
    tiny_backbone: Backbone, method: Perfusion, orders: dict[str, list[int]]
) -> None:
    content = lucidrains(method, orders["executed"])
    pairs: list[Any] = content["key_value_params"]
    other_key = [[pairs[0][0] + 1, pairs[0][1]], *pairs[1:]]
    for changes, problem in (
        ({"embed_params": torch.zeros(2, 32)}, r"one concept, \[1, D\]"),
        ({"key_value_params": pairs[:-1]}, "must hold 32 pairs"),
        ({"key_value_params": other_key}, "its layers have different keys"),
        ({"key_value_params": [*pairs[2:], *pairs[:2]]}, "widths of its targets"),
        ({"C_inv": torch.eye(8)}, r"shape \[8, 8\], .* has width 32"),
        ({"C_inv": torch.full((32, 32), torch.nan)}, "C_inv holds NaN"),
    ):
        with pytest.raises(ValueError, match=problem):
            convert_perfusion({**content, **changes}, tiny_backbone, "<toy>", "teddy")


def test_covariances_of_other_tools_become_ours(
    tiny_backbone: Backbone, tiny_backbone_folder: Path, method: Perfusion, tmp_path: Path
) -> None:
    assert method.covariance is not None
    matrix = method.covariance.matrix
    torch.save(matrix, tmp_path / "covariance_CLIP.pt")
    np.save(tmp_path / "C_inv.npy", torch.linalg.inv(matrix.double()).numpy())
    for name in ("covariance_CLIP.pt", "C_inv.npy"):
        read = read_covariance(tmp_path / name, tiny_backbone)
        torch.testing.assert_close(read.matrix, matrix, atol=1e-5, rtol=0)
        assert read.belongs_to(tiny_backbone.text)
    output = tmp_path / "covariance.safetensors"
    words = ["--model", tiny_backbone_folder, "--convert", tmp_path / "C_inv.npy", "--output", output]
    assert load_script("make_covariance").main([str(word) for word in words]) == 0
    torch.save(torch.eye(8), tmp_path / "small.pt")
    np.save(tmp_path / "objects.npy", np.array([print], dtype=object), allow_pickle=True)
    (tmp_path / "torn.npy").write_bytes((tmp_path / "C_inv.npy").read_bytes()[:500])
    torch.save(-torch.eye(32), tmp_path / "negative.pt")
    for name, problem in (
        ("small.pt", "has width 32"),
        ("objects.npy", "not a covariance file that can be read"),
        ("torn.npy", "not a covariance file that can be read"),
        ("negative.pt", "the covariance is singular"),
        ("none.pt", "does not exist"),
    ):
        with pytest.raises(UserError, match=problem) as caught:
            read_covariance(tmp_path / name, tiny_backbone)
        assert name in str(caught.value) and "\n" not in str(caught.value)
