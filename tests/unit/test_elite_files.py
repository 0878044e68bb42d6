"""Encoders on disk: ours, the official ones, and everything that is not one."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers.models import UNet2DConditionModel
from safetensors.torch import save_file
from tiny_elite import tiny_encoder

from neti.models.attention.layers import cross_attention_layers
from neti.models.backbone.frame import Frame
from neti.models.methods.elite.files import (
    check_mapper,
    find_encoder,
    load_encoder,
    read_about,
    read_official,
    read_role,
    save_encoder,
    write_encoder,
)
from neti.models.methods.elite.mappers import GlobalMapper, LocalMapper
from neti.utils.errors import UserError


@pytest.fixture
def frame(tiny_backbone) -> Frame:
    return tiny_backbone.frame


@pytest.fixture
def file(frame, tmp_path) -> Path:
    """A tiny encoder on disk."""
    save_encoder(tiny_encoder(frame.layers, frame.text_width), tmp_path / "encoder.safetensors", base_model="tiny")
    return tmp_path / "encoder.safetensors"


@pytest.fixture
def official(frame, tmp_path) -> Path:
    """A folder as the official weights come, with a tower in transformers layout beside it."""
    encoder = tiny_encoder(frame.layers, frame.text_width)
    made = tmp_path / "official"
    made.mkdir()
    torch.save(OrderedDict(encoder.of_words.state_dict()), made / "global_mapper.pt")
    torch.save(OrderedDict(encoder.of_patches.state_dict()), made / "local_mapper.pt")
    encoder.vision.tower.save_pretrained(tmp_path / "tower")
    return made


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(t, states[1][k]) for k, t in states[0].items())


def test_an_encoder_comes_back_as_it_was_saved(frame, file):
    saved, loaded = tiny_encoder(frame.layers, frame.text_width), load_encoder(file, frame)
    assert equal(saved.of_words, loaded.of_words) and equal(saved.of_patches, loaded.of_patches)
    assert equal(saved.vision, loaded.vision) and loaded.vision.layers == saved.vision.layers
    assert torch.equal(loaded.vision.mean, saved.vision.mean)
    assert not any(parameter.requires_grad for parameter in loaded.of_words.parameters())
    pixels = torch.rand(1, 3, 40, 50)
    assert torch.equal(loaded.words(pixels), saved.words(pixels))


def test_a_tower_of_the_hub_is_named_and_not_stored(frame, file, tmp_path):
    encoder = tiny_encoder(frame.layers, frame.text_width, local=False)
    encoder.tower = "openai/clip-vit-large-patch14"
    save_encoder(encoder, tmp_path / "small.safetensors", base_model="tiny")
    assert read_about(tmp_path / "small.safetensors")["tower"] == "openai/clip-vit-large-patch14"
    assert read_role(tmp_path / "small.safetensors", "vision") == {}
    assert len(read_role(file, "vision")) == len(encoder.vision.tower.state_dict())


def test_official_files_load_by_their_names(frame, official, tmp_path):
    loaded = load_encoder(official, frame, vision=str(tmp_path / "tower"))
    wanted = tiny_encoder(frame.layers, frame.text_width)
    assert equal(loaded.of_words, wanted.of_words) and equal(loaded.of_patches, wanted.of_patches)


def test_the_global_file_is_enough(frame, official, tmp_path):
    (official / "local_mapper.pt").unlink()
    assert load_encoder(official, frame, vision=str(tmp_path / "tower")).of_patches is None
    (official / "global_mapper.pt").unlink()
    with pytest.raises(UserError, match=r"the folder holds no global_mapper.pt"):
        load_encoder(official, frame, vision=str(tmp_path / "tower"))


def test_swapped_files_are_found_by_their_names(official):
    with pytest.raises(UserError, match="this is the local mapper, and the global one is needed"):
        read_official(official / "local_mapper.pt", "global")


def test_a_truncated_file_is_one_line(frame, file, official):
    for path in (file, official / "global_mapper.pt"):
        path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"encoder.safetensors: not a complete") as ours:
        load_encoder(file, frame)
    with pytest.raises(UserError, match=r"global_mapper.pt") as theirs:
        load_encoder(official, frame, vision=str(official.parent / "tower"))
    assert "\n" not in str(ours.value) + str(theirs.value)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    path = tmp_path / "global_mapper.pt"
    torch.save({"mapping_0.0.weight": SimpleNamespace()}, path)
    with pytest.raises(UserError, match="SimpleNamespace"):
        read_official(path, "global")


def test_missing_and_foreign_tensors_are_counted(frame):
    mapper = GlobalMapper(frame.layers, 16, frame.text_width)
    state = mapper.state_dict()
    del state["mapping_3.0.weight"]
    state["extra"] = torch.zeros(1)
    with pytest.raises(
        UserError, match=r"131 of the 132 tensors are there, 1 others \(mapping_3.0.weight is missing\)"
    ):
        check_mapper(state, mapper, "mapper.pt")


def test_a_mapper_for_another_text_width_says_so(frame):
    of_sd2 = GlobalMapper(frame.layers, 16, 64)
    with pytest.raises(UserError, match=r"made for another model: .* text width is 32") as caught:
        check_mapper(of_sd2.state_dict(), GlobalMapper(frame.layers, 16, frame.text_width), "mapper.pt")
    assert "\n" not in str(caught.value)


def test_what_is_no_encoder_is_one_line(frame, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_encoder(tmp_path / "nothing", frame)
    with pytest.raises(UserError, match="no such file"):
        find_encoder("")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="not an ELITE encoder of this version"):
        load_encoder(tmp_path / "other.safetensors", frame)
    about = {"tower": "", "vision_config": {}, "feature_layers": [1] * 5, "image_mean": [0] * 3, "image_std": [1] * 3}
    write_encoder(tmp_path / "hollow.safetensors", {}, about, torch.float32)
    with pytest.raises(UserError, match="vision tower is damaged"):
        load_encoder(tmp_path / "hollow.safetensors", frame)


def sd14_layers() -> tuple:
    with torch.device("meta"):
        return cross_attention_layers(UNet2DConditionModel(cross_attention_dim=768))


def test_official_names_and_sizes():
    layers = sd14_layers()
    for mapper_class in (GlobalMapper, LocalMapper):
        with torch.device("meta"):
            state = mapper_class(layers, 1024, 768).state_dict()
        assert len(state) == 132 and sum(tensor.numel() for tensor in state.values()) == 48_074_240
        matrices = [name for name in state if "_to_" in name]
        assert len(matrices) == 32
        assert "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.weight" in matrices
        assert state["mid_block_attentions_0_transformer_blocks_0_attn2_to_v.weight"].shape == (1280, 768)
        mlps = {
            f"mapping{patch}_{i}.{m}.{kind}"
            for patch in ("", "_patch")
            for i in range(5)
            for m in (0, 1, 3, 4, 6)
            for kind in ("weight", "bias")
        }
        assert set(state) == mlps | set(matrices)


@pytest.mark.slow
def test_full_size_official_files_load(tmp_path):
    frame, mappers = Frame(sd14_layers(), (768,), 77), {}
    for role, mapper_class in (("global", GlobalMapper), ("local", LocalMapper)):
        mappers[role] = mapper_class(frame.layers, 1024, 768)
        torch.save(OrderedDict(mappers[role].state_dict()), tmp_path / f"{role}_mapper.pt")
        assert abs((tmp_path / f"{role}_mapper.pt").stat().st_size - 192_296_960) < 100_000
    for role, mapper in mappers.items():
        state = read_official(tmp_path / f"{role}_mapper.pt", role)
        check_mapper(state, mapper, "official")
        assert all(torch.equal(tensor, mapper.state_dict()[name]) for name, tensor in state.items())
