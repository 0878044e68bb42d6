"""Encoders on disk: ours, the official ones, and everything that is not one."""

from __future__ import annotations

import shutil
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers.models import UNet2DConditionModel
from tiny_elite import tiny_encoder

from neti.models.attention.layers import cross_attention_layers
from neti.models.backbone.frame import Frame
from neti.models.methods.elite.files import check_mapper, load_encoder, read_mapper, save_encoder, save_vision
from neti.models.methods.elite.mappers import GlobalMapper, LocalMapper
from neti.utils.errors import UserError


@pytest.fixture
def frame(tiny_backbone) -> Frame:
    return tiny_backbone.frame


@pytest.fixture
def folder(frame, tmp_path) -> Path:
    """A tiny encoder on disk."""
    save_encoder(tiny_encoder(frame.layers, frame.text_width), tmp_path / "encoder", base_model="tiny")
    return tmp_path / "encoder"


@pytest.fixture
def official(frame, tmp_path) -> Path:
    """A folder as the official weights come, with a tower of its own beside them."""
    encoder = tiny_encoder(frame.layers, frame.text_width)
    made = tmp_path / "official"
    made.mkdir()
    torch.save(OrderedDict(encoder.of_words.state_dict()), made / "global_mapper.pt")
    torch.save(OrderedDict(encoder.of_patches.state_dict()), made / "local_mapper.pt")
    save_vision(encoder.vision, tmp_path / "tower", torch.float32)
    return made


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(t, states[1][k]) for k, t in states[0].items())


def test_an_encoder_comes_back_as_it_was_saved(frame, folder):
    saved, loaded = tiny_encoder(frame.layers, frame.text_width), load_encoder(folder, frame)
    assert equal(saved.of_words, loaded.of_words) and equal(saved.of_patches, loaded.of_patches)
    assert equal(saved.vision, loaded.vision) and loaded.vision.layers == saved.vision.layers
    assert torch.equal(loaded.vision.mean, saved.vision.mean)
    assert not any(parameter.requires_grad for parameter in loaded.of_words.parameters())


def test_saving_replaces_an_older_encoder(frame, folder):
    save_encoder(tiny_encoder(frame.layers, frame.text_width, local=False, seed=9), folder, base_model="tiny")
    loaded = load_encoder(folder, frame)
    assert loaded.of_patches is None
    assert equal(loaded.of_words, tiny_encoder(frame.layers, frame.text_width, seed=9).of_words)
    assert [path.name for path in folder.parent.iterdir()] == ["encoder"]


def test_official_files_load_by_their_names(frame, official, tmp_path):
    loaded = load_encoder(official, frame, vision=str(tmp_path / "tower"))
    wanted = tiny_encoder(frame.layers, frame.text_width)
    assert equal(loaded.of_words, wanted.of_words) and equal(loaded.of_patches, wanted.of_patches)


def test_the_global_file_is_enough(frame, official, tmp_path):
    (official / "local_mapper.pt").unlink()
    assert load_encoder(official, frame, vision=str(tmp_path / "tower")).of_patches is None
    (official / "global_mapper.pt").unlink()
    with pytest.raises(UserError, match=r"official: no encoder \(global_mapper.safetensors or global_mapper.pt"):
        load_encoder(official, frame, vision=str(tmp_path / "tower"))


def test_swapped_files_are_found_by_their_metadata_and_by_their_names(folder, official):
    with pytest.raises(UserError, match="this is the local mapper, and the global one is needed"):
        read_mapper(official / "local_mapper.pt", "global")
    shutil.copy(folder / "local_mapper.safetensors", folder / "global_mapper.safetensors")
    with pytest.raises(UserError, match="this is the local mapper, and the global one is needed"):
        read_mapper(folder / "global_mapper.safetensors", "global")


@pytest.mark.parametrize("name", ["global_mapper.safetensors", "global_mapper.pt"])
def test_a_truncated_file_is_one_line(folder, official, name):
    path = (folder if name.endswith("safetensors") else official) / name
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match=name) as caught:
        read_mapper(path, "global")
    assert "\n" not in str(caught.value)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    path = tmp_path / "global_mapper.pt"
    torch.save({"mapping_0.0.weight": SimpleNamespace()}, path)
    with pytest.raises(UserError, match="SimpleNamespace"):
        read_mapper(path, "global")


def test_missing_and_foreign_tensors_are_counted(frame):
    mapper = GlobalMapper(frame.layers, 16, frame.text_width)
    state = mapper.state_dict()
    del state["mapping_3.0.weight"]
    state["extra"] = torch.zeros(1)
    with pytest.raises(
        UserError, match=r"131 of the 132 tensors are there, 1 others \(mapping_3.0.weight is missing\)"
    ):
        check_mapper(state, mapper, Path("mapper.pt"))


def test_a_mapper_for_another_text_width_says_so(frame):
    of_sd2 = GlobalMapper(frame.layers, 16, 64)
    with pytest.raises(UserError, match=r"made for another model: .* text width is 32") as caught:
        check_mapper(of_sd2.state_dict(), GlobalMapper(frame.layers, 16, frame.text_width), Path("mapper.pt"))
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_encoder_is_one_line(frame, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load_encoder(tmp_path / "nothing", frame)
    with pytest.raises(UserError, match="no encoder"):
        load_encoder(tmp_path, frame)


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
        state = read_mapper(tmp_path / f"{role}_mapper.pt", role)
        check_mapper(state, mapper, tmp_path)
        assert all(torch.equal(tensor, mapper.state_dict()[name]) for name, tensor in state.items())
