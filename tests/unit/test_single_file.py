"""A whole Stable Diffusion in one file, under the names of the latent-diffusion code."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from model_files import POINTER, Hostile, one_file, same_numbers
from safetensors.torch import save_file
from tiny_xl import build_tiny_xl, parts_of
from torch import Tensor

from neti.models.backbone.backbone import Backbone
from neti.models.backbone.files.locate import find_model
from neti.models.backbone.files.single_file import FIRST_LAYER
from neti.models.backbone.loading import check_text_to_image, load_parts, model_hash
from neti.utils.errors import UserError


@pytest.fixture
def settings(tiny_backbone_folder: Path, tmp_path: Path) -> Path:
    """A folder with settings and tokenizer, and no weights."""
    return Path(
        shutil.copytree(tiny_backbone_folder, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    )


@pytest.fixture
def tensors(tiny_backbone: Backbone) -> dict[str, Tensor]:
    return one_file(tiny_backbone)


def test_a_safetensors_file(tiny_backbone: Backbone, settings: Path, tensors: dict[str, Tensor]) -> None:
    path = settings / "tiny.safetensors"
    save_file(tensors, path)
    loaded = Backbone.from_pretrained(str(path))
    assert same_numbers(loaded, tiny_backbone)
    assert loaded.name == str(path)
    text = "a photo of a teddy"
    assert loaded.tokenizer(text).input_ids == tiny_backbone.tokenizer(text).input_ids
    assert {p.dtype for p in Backbone.from_pretrained(str(path), dtype=torch.float16).unet.parameters()} == {torch.half}


def test_a_relative_path_that_looks_like_a_hub_name(
    tiny_backbone: Backbone, settings: Path, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(tensors, settings / "tiny.safetensors")
    monkeypatch.chdir(settings.parent)
    assert same_numbers(Backbone.from_pretrained("model/tiny.safetensors"), tiny_backbone)
    with pytest.raises(UserError, match=r"model 'model/other.safetensors': no such file"):
        Backbone.from_pretrained("model/other.safetensors")


def test_a_ckpt_with_the_records_of_its_training(
    tiny_backbone: Backbone, settings: Path, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of 2022 keep PyTorch Lightning's callbacks by their classes, which weights_only alone refuses."""
    lightning = type("ModelCheckpoint", (), {"__module__": "pytorch_lightning.callbacks.model_checkpoint"})
    module: Any = type(sys)("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = lightning
    path = settings / "tiny.ckpt"
    with monkeypatch.context() as patched:
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
            patched.setitem(sys.modules, name, module)
        torch.save({"state_dict": tensors, "global_step": 470000, "callbacks": {lightning: {"every": 1}}}, path)
    assert same_numbers(Backbone.from_pretrained(str(path)), tiny_backbone)


def test_the_parts_that_are_not_wanted_are_not_read(settings: Path, tensors: dict[str, Tensor]) -> None:
    path = settings / "tiny.safetensors"
    save_file({name: value for name, value in tensors.items() if "output_blocks" not in name}, path)
    loaded = Backbone.from_pretrained(str(path), components=["text_encoder"])
    assert next(loaded.unet.parameters()).is_meta and loaded.word_embedding("teddy").shape == (32,)
    with pytest.raises(UserError, match=r"tensors of its U-Net or VAE are missing\); it is incomplete"):
        Backbone.from_pretrained(str(path))


@pytest.mark.parametrize("name", ["embeddings.position_embedding.weight", "encoder.layers.1.layer_norm1.bias"])
def test_a_text_encoder_that_lacks_a_tensor(settings: Path, tensors: dict[str, Tensor], name: str) -> None:
    del tensors[f"cond_stage_model.transformer.text_model.{name}"]
    save_file(tensors, settings / "tiny.safetensors")
    with pytest.raises(UserError, match=r"cannot load its weights .*missing.*; it is incomplete") as caught:
        Backbone.from_pretrained(str(settings / "tiny.safetensors"), components=["text_encoder"])
    assert "\n" not in str(caught.value)


def test_the_text_encoder_of_stable_diffusion_2(tiny_backbone: Backbone, settings: Path) -> None:
    """OpenCLIP's names, queries, keys and values in one matrix."""
    save_file(one_file(tiny_backbone, "2"), settings / "tiny.safetensors")
    assert same_numbers(Backbone.from_pretrained(str(settings / "tiny.safetensors")), tiny_backbone)


@pytest.fixture
def xl_settings(tmp_path: Path) -> Path:
    """The same of a tiny Stable Diffusion XL."""
    whole, folder = tmp_path / "whole", tmp_path / "xl"
    StableDiffusionXLPipeline(**parts_of(build_tiny_xl())).save_pretrained(whole)
    return Path(shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("*.safetensors")))


def test_stable_diffusion_xl(xl_settings: Path) -> None:
    """Two text encoders, several transformer blocks in a place, the added embedding."""
    xl, path = build_tiny_xl(), xl_settings / "tiny.safetensors"
    save_file(one_file(xl, "xl"), path)
    loaded = Backbone.from_pretrained(str(path))
    assert same_numbers(xl, loaded) and loaded.frame == xl.frame and loaded.zeros_for_empty_prompt
    planned = Backbone.from_pretrained(str(path), components=["text_encoder"])
    assert torch.equal(planned.word_embedding("teddy"), xl.word_embedding("teddy"))
    assert next(planned.unet.parameters()).is_meta


SIZES = {
    "1": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "2": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "xl": {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
}


@pytest.mark.parametrize("family", SIZES)
def test_without_settings_beside_it_has_those_of_its_family(
    tiny_backbone: Backbone, tmp_path: Path, family: str
) -> None:
    path = tmp_path / "alone.safetensors"
    save_file(one_file(build_tiny_xl() if family == "xl" else tiny_backbone, family), path)
    check_text_to_image(str(path))
    parts = load_parts(str(path), revision=None, dtype=torch.float32, weights=())
    assert {part: sum(p.numel() for p in parts[part].parameters()) for part in SIZES[family]} == SIZES[family]
    assert parts["tokenizer"]("a photo of a cat.").input_ids == [49406, 320, 1125, 539, 320, 2368, 269, 49407]
    assert parts["tokenizer"].pad_token_id == (0 if family == "2" else 49407)
    assert parts["scheduler"].config["prediction_type"] == ("v_prediction" if family == "2" else "epsilon")
    if family == "xl":
        assert parts["tokenizer_2"].pad_token_id == 0 and parts["zeros_for_empty_prompt"]
    with pytest.raises(UserError, match=r"cannot load its weights from .*alone.safetensors") as caught:
        Backbone.from_pretrained(str(path))  # tiny weights are not of its sizes
    assert "\n" not in str(caught.value)


YAML = "model:\n  params:\n    image_size: 64\n    parameterization: {}\n"
VELOCITIES, NOISE = ({"prediction_type": "v_prediction"}, None), ({"prediction_type": "epsilon"}, 64)


@pytest.mark.parametrize(
    ("yaml", "metadata", "marks", "expected"),
    [
        (YAML.format("eps"), {}, {}, NOISE),
        (YAML.format('"v"'), {"modelspec.prediction_type": "epsilon"}, {}, VELOCITIES),
        ("model: {params: {image_size: 64}}", {}, {}, NOISE),  # as web UIs ship it for the base model
        ("", {"modelspec.prediction_type": "epsilon"}, {}, NOISE),
        ("", {"modelspec.prediction_type": "v"}, {}, VELOCITIES),
        ("", {}, {"global_step": 875000}, NOISE),
        ("", {}, {"global_step": 140000}, None),
        ("", {}, {}, None),
    ],
)
def test_whether_a_stable_diffusion_2_predicts_noise_or_velocities(
    tiny_backbone: Backbone, tmp_path: Path, yaml: str, metadata: dict[str, str], marks: dict[str, Any], expected: Any
) -> None:
    """Names and shapes do not say it; where nothing does, the 768-pixel model is assumed, and that is said."""
    path = tmp_path / ("alone.ckpt" if marks else "alone.safetensors")
    tensors = one_file(tiny_backbone, "2")
    if marks:
        torch.save({"state_dict": tensors, **marks}, path)
    else:
        save_file(tensors, path, metadata=metadata)
    before = model_hash(str(path))
    if yaml:
        path.with_suffix(".yaml").write_text(yaml)
        assert model_hash(str(path)) != before
    notes = check_text_to_image(str(path))
    assert ["put alone.yaml beside it" in note for note in notes] == ([] if expected else [True])
    checkpoint = find_model(str(path)).checkpoint
    assert checkpoint is not None
    assert (checkpoint.schedule, checkpoint.latent_side) == (expected or ({}, None))


def test_a_stable_diffusion_2_that_predicts_noise_draws_smaller(tiny_backbone: Backbone, tmp_path: Path) -> None:
    save_file(one_file(tiny_backbone, "2"), tmp_path / "base.safetensors", {"modelspec.prediction_type": "epsilon"})
    parts = load_parts(str(tmp_path / "base.safetensors"), revision=None, dtype=torch.float32, weights=())
    assert (parts["scheduler"].config["prediction_type"], parts["unet"].config["sample_size"]) == ("epsilon", 64)


@pytest.mark.parametrize("yaml", ["", "[]", "model: 3", YAML.format("x0"), "\tx"])
def test_a_yaml_of_another_form_is_named(tiny_backbone: Backbone, tmp_path: Path, yaml: str) -> None:
    save_file(one_file(tiny_backbone), tmp_path / "alone.safetensors")
    (tmp_path / "alone.yaml").write_text(yaml)
    with pytest.raises(UserError, match=r"alone.yaml beside it has no model: \{params: \{parameterization"):
        check_text_to_image(str(tmp_path / "alone.safetensors"))


def test_an_xl_model_of_velocities_is_marked(xl_settings: Path) -> None:
    """By two empty tensors, as fine-tunes for web UIs are: what it predicts, and that its noise ends without signal."""
    xl, path = build_tiny_xl(), xl_settings / "tiny.safetensors"
    save_file(one_file(xl, "xl") | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, path)
    assert Backbone.from_pretrained(str(path)).scheduler.config["prediction_type"] == "epsilon", "settings beside it"
    (xl_settings / "model_index.json").unlink()
    scheduler = load_parts(str(path), revision=None, dtype=torch.float32, weights=())["scheduler"]
    assert scheduler.config["prediction_type"] == "v_prediction" and scheduler.alphas_cumprod[-1] == 0


def test_the_digest_counts_the_file(settings: Path, tensors: dict[str, Tensor]) -> None:
    path = settings / "tiny.safetensors"
    save_file(tensors, path)
    before = model_hash(str(path))
    assert model_hash(str(shutil.copy(path, path.with_name("other.safetensors")))) == before
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert model_hash(str(path)) != before


LORA = {"lora_unet_down_blocks_0.lora_up.weight": torch.zeros(2, 2)}
REFINER = {"conditioner.embedders.0.model.ln_final.bias": torch.zeros(2), FIRST_LAYER: torch.zeros(8, 4, 3, 3)}
TOO_FEW = {"conditioner.embedders.1.model.ln_final.bias": torch.zeros(2), FIRST_LAYER: torch.zeros(8, 4, 3, 3)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LORA, "it holds no whole Stable Diffusion"),
        (REFINER, "it holds no whole Stable Diffusion"),
        (TOO_FEW, "it is incomplete"),
        (POINTER.encode(), "is a Git LFS pointer"),
        (b"", "model "),
        (b"\xff" * 100, "model "),
    ],
)
@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_what_is_no_checkpoint(tmp_path: Path, ending: str, content: Any, message: str) -> None:
    path = tmp_path / f"file.{ending}"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif ending == "ckpt":
        torch.save({"state_dict": content}, path)
    else:
        save_file(content, path)
    with pytest.raises(UserError, match=message) as caught:
        Backbone.from_pretrained(str(path))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("channels", [5, 8, 9])
def test_one_that_wants_more_than_latents(settings: Path, tensors: dict[str, Tensor], channels: int) -> None:
    first = tensors[FIRST_LAYER]
    tensors[FIRST_LAYER] = torch.zeros(first.shape[0], channels, 3, 3)
    save_file(tensors, settings / "tiny.safetensors")
    with pytest.raises(UserError, match=f"has {channels} input channels"):
        Backbone.from_pretrained(str(settings / "tiny.safetensors"), components=())


def test_a_hostile_ckpt(settings: Path, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"state_dict": tensors, "callbacks": Hostile(tmp_path / "run")}, settings / "tiny.ckpt")
    with pytest.raises(UserError, match=r"refused, nothing was executed: .*Path"):
        Backbone.from_pretrained(str(settings / "tiny.ckpt"))
    assert not (tmp_path / "run").exists()


def test_another_ending(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no model")
    with pytest.raises(
        UserError, match=r"is a file; give a folder, or a checkpoint that ends in .safetensors or .ckpt"
    ):
        Backbone.from_pretrained(str(tmp_path / "notes.txt"))


def test_a_folder_that_holds_a_checkpoint_only(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, tmp_path / "tiny.safetensors")
    with pytest.raises(UserError, match=r"to use the checkpoint in this folder, give its path: .*tiny.safetensors"):
        Backbone.from_pretrained(str(tmp_path))
