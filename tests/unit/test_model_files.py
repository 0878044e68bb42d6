"""Models in the forms they have on people's disks: every one loads to the same numbers, or one line says why not."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from model_files import POINTER, Hostile, make_counterfeit, same_numbers
from safetensors.torch import load_file, save_file
from tiny_xl import build_tiny_xl, parts_of
from transformers import CLIPTokenizer

from neti.models.backbone.backbone import Backbone
from neti.models.backbone.files.weights import STEMS
from neti.models.backbone.loading import WEIGHTS, check_text_to_image, model_hash
from neti.utils.errors import UserError


@pytest.fixture
def folder(tiny_backbone_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_backbone_folder, tmp_path / "model"))


def weight_file(folder: Path, part: str) -> Path:
    return folder / part / f"{STEMS[part][0]}.safetensors"


def as_bin(folder: Path) -> None:
    for part in WEIGHTS:
        torch.save(load_file(weight_file(folder, part)), folder / part / f"{STEMS[part][1]}.bin")
        weight_file(folder, part).unlink()


def as_variant(folder: Path) -> None:
    for part in WEIGHTS:
        weight_file(folder, part).rename(folder / part / f"{STEMS[part][0]}.fp16.safetensors")


def as_bin_variant(folder: Path) -> None:
    as_bin(folder)
    for part in WEIGHTS:
        pickled = folder / part / f"{STEMS[part][1]}.bin"
        pickled.rename(pickled.with_name(f"{STEMS[part][1]}.fp16.bin"))


def in_shards(folder: Path, variant: str | None = None, pickles: bool = False) -> None:
    backbone = Backbone.from_pretrained(str(folder))
    for part in WEIGHTS:
        weight_file(folder, part).unlink()
        size = "200KB" if part == "unet" else "40KB"
        getattr(backbone, part).save_pretrained(folder / part, max_shard_size=size, variant=variant)


def in_shards_of_a_variant(folder: Path) -> None:
    in_shards(folder, "fp16")


@pytest.mark.parametrize("form", [as_bin, as_variant, as_bin_variant, in_shards, in_shards_of_a_variant])
def test_every_form_of_weights_loads(tiny_backbone: Backbone, folder: Path, form: Any) -> None:
    form(folder)
    assert same_numbers(Backbone.from_pretrained(str(folder)), tiny_backbone)


def test_shards_are_shards(folder: Path) -> None:
    in_shards(folder)
    assert all(len(list((folder / part).glob("*-of-*"))) > 1 for part in WEIGHTS)


@pytest.mark.parametrize("pickles", [True, False])
def test_the_model_of_2022(tiny_backbone: Backbone, tiny_backbone_folder: Path, tmp_path: Path, pickles: bool) -> None:
    """Old names of the VAE's attention, text_model. in front, a buffer of positions, JSON files of five lines."""
    folder = make_counterfeit(tmp_path / "sd-v1-4", tiny_backbone_folder, pickles=pickles)
    loaded = Backbone.from_pretrained(str(folder))
    assert same_numbers(loaded, tiny_backbone)
    assert loaded.image_size == 512
    stock: Any = StableDiffusionPipeline.from_pretrained(folder, feature_extractor=None, safety_checker=None)
    assert torch.equal(stock.vae.decoder.conv_in.weight, loaded.vae.decoder.conv_in.weight)


def test_whole_precision_is_preferred(tiny_backbone: Backbone, folder: Path) -> None:
    for part in WEIGHTS:
        halved = {name: value / 2 for name, value in load_file(weight_file(folder, part)).items()}
        save_file(halved, folder / part / f"{STEMS[part][0]}.fp16.safetensors", metadata={"format": "pt"})
        torch.save(halved, folder / part / f"{STEMS[part][1]}.bin")
    assert same_numbers(Backbone.from_pretrained(str(folder)), tiny_backbone)


def test_a_missing_shard_is_named(folder: Path) -> None:
    in_shards(folder)
    lost = sorted((folder / "unet").glob("*-of-*"))[1]
    lost.unlink()
    with pytest.raises(UserError, match=rf"cannot load its unet .*{lost.name} missing: copied or downloaded only in"):
        Backbone.from_pretrained(str(folder))


def test_a_tokenizer_in_one_file(tiny_backbone: Backbone, folder: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
        (folder / "tokenizer" / name).unlink(missing_ok=True)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    loaded = Backbone.from_pretrained(str(folder), components=())
    text = "a photo of a teddy on the beach"
    assert loaded.tokenizer(text).input_ids == tiny_backbone.tokenizer(text).input_ids


@pytest.mark.parametrize("kept", ["vocab.json", "merges.txt", None])
def test_half_a_tokenizer_is_refused(folder: Path, kept: str | None) -> None:
    """transformers makes a tokenizer that knows no words of what is left."""
    for path in (folder / "tokenizer").iterdir():
        if path.name not in (kept, "tokenizer_config.json"):
            path.unlink()
    with pytest.raises(UserError, match=r"cannot load its tokenizer .*missing"):
        Backbone.from_pretrained(str(folder), components=())


@pytest.mark.parametrize(
    "file",
    [
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/pytorch_model.bin",
        "vae/config.json",
        "tokenizer/tokenizer_config.json",
        "scheduler/scheduler_config.json",
    ],
)
def test_a_git_lfs_pointer_is_named(folder: Path, file: str) -> None:
    if file.endswith(".bin"):
        weight_file(folder, "text_encoder").unlink()
    (folder / file).write_text(POINTER)
    with pytest.raises(UserError, match=rf"{Path(file).name} is a Git LFS pointer.*run git lfs pull"):
        Backbone.from_pretrained(str(folder))


@pytest.mark.parametrize("part", WEIGHTS)
def test_a_hostile_pickle_is_refused_and_not_run(folder: Path, tmp_path: Path, part: str) -> None:
    weights = load_file(weight_file(folder, part))
    weight_file(folder, part).unlink()
    torch.save({**weights, "more": Hostile(tmp_path / "run")}, folder / part / f"{STEMS[part][1]}.bin")
    with pytest.raises(UserError, match=f"cannot load its {part} .*refused, nothing was executed: .*Path") as caught:
        Backbone.from_pretrained(str(folder))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({"a": 1}), b"\x80\x02}q\x00."])
def test_a_pickle_that_is_none(folder: Path, content: bytes) -> None:
    weight_file(folder, "text_encoder").unlink()
    (folder / "text_encoder" / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(UserError, match="cannot load its text_encoder") as caught:
        Backbone.from_pretrained(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", WEIGHTS)
def test_weights_that_lack_a_tensor_are_refused(folder: Path, part: str) -> None:
    """The libraries put random numbers, or none, in its place, and only warn."""
    path = weight_file(folder, part)
    weights = load_file(path)
    lost = sorted(weights)[3]
    save_file({name: value for name, value in weights.items() if name != lost}, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"cannot load its {part} .*1 of its weights are missing, such as {lost}"):
        Backbone.from_pretrained(str(folder))


NO_SETTINGS = ["", "{", "[]", "3"]
WRONG = '{"block_out_channels": "wide", "hidden_size": -1, "vocab_size": "x", "beta_schedule": "wild"}'


@pytest.mark.parametrize("content", [*NO_SETTINGS, WRONG])
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "scheduler"])
def test_settings_that_are_none(folder: Path, part: str, content: str) -> None:
    (folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")).write_text(content)
    with pytest.raises(UserError, match=f"cannot load its {part} |its U-Net reads text of width") as caught:
        Backbone.from_pretrained(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("unet/config.json", "layers_per_block", 10**9),  # the library would build them, for hours
        ("unet/config.json", "attention_head_dim", True),
        ("unet/config.json", "in_channels", []),
        ("unet/config.json", "block_out_channels", [8, 16, "x", 16]),
        ("unet/config.json", "sample_size", 10**9),
        ("vae/config.json", "scaling_factor", None),
        ("vae/config.json", "norm_num_groups", -1),
        ("text_encoder/config.json", "hidden_size", "x"),
        ("text_encoder/config.json", "num_attention_heads", -1),
        ("scheduler/scheduler_config.json", "beta_end", 0),
    ],
)
def test_a_number_that_no_model_has_is_named(folder: Path, file: str, key: str, value: object) -> None:
    settings = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**settings, key: value}))
    with pytest.raises(UserError, match=rf"cannot load its {Path(file).parent} .*{key} is .*; it must be a ") as caught:
        check_text_to_image(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "null", "[" * 6000, POINTER])
def test_a_damaged_index_is_not_taken_for_none(folder: Path, content: str) -> None:
    """It says whether there is a safety checker."""
    (folder / "model_index.json").write_text(content)
    with pytest.raises(UserError, match=r"cannot load its model_index\.json ") as caught:
        check_text_to_image(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["[]", "null", '{"a":' * 6000])
def test_a_tokenizer_of_another_shape_is_named(folder: Path, file: str, content: str) -> None:
    (folder / "tokenizer" / file).write_text(content)
    with pytest.raises(UserError, match=rf"cannot load its tokenizer .*{file} (holds no JSON object|is no valid JSON)"):
        Backbone.from_pretrained(str(folder), components=())


@pytest.mark.parametrize(
    ("version", "size", "corrected"),
    [("0.2.2", 32, 64), ("0.8.0", 8, 64), ("0.9.0", 8, 8), ("0.42.1", [8, 8], 8), ("0.42.1", 8, 8)],
)
def test_sample_sizes_mean_what_stock_pipelines_make_of_them(
    folder: Path, version: str, size: Any, corrected: int
) -> None:
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_diffusers_version": version, "sample_size": size}))
    assert Backbone.from_pretrained(str(folder), components=()).latent_size == corrected


def test_the_digest_is_that_of_the_files_in_use(tiny_backbone_folder: Path, folder: Path) -> None:
    before = model_hash(str(tiny_backbone_folder))
    assert before == model_hash(str(folder)), "wherever the folder lies"
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "model.safetensors").write_bytes(b"more")
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"more")
    (folder / "notes.txt").write_text("more")
    assert before == model_hash(str(folder)), "what is not used does not count"
    weight_file(folder, "vae").write_bytes(weight_file(folder, "vae").read_bytes()[:-1] + b"x")
    assert before != model_hash(str(folder))
    assert model_hash(str(folder), parts=["unet"]) == model_hash(str(tiny_backbone_folder), parts=["unet"])
    weight_file(folder, "vae").unlink()
    with pytest.raises(UserError, match=r"incomplete in .*it has no diffusion_pytorch_model"):
        model_hash(str(folder))


def test_the_hash_of_a_model_with_two_text_encoders(tmp_path: Path) -> None:
    StableDiffusionXLPipeline(**parts_of(build_tiny_xl())).save_pretrained(tmp_path / "xl")
    before = model_hash(str(tmp_path / "xl"))
    for file in ("text_encoder_2/model.safetensors", "tokenizer_2/tokenizer_config.json", "model_index.json"):
        path = tmp_path / "xl" / file
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        assert model_hash(str(tmp_path / "xl")) != before, file
        path.write_bytes(content)
    assert model_hash(str(tmp_path / "xl")) == before


@pytest.mark.parametrize("name", ["/nowhere/at/all", "models/moved", "moved.safetensors"])
def test_a_model_that_was_moved(name: str) -> None:
    with pytest.raises(UserError, match="pretrained_model_name_or_path"):
        Backbone.from_pretrained(name)
