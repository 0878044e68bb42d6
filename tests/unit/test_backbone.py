"""Loading the frozen model, and saying what is wrong when that cannot be done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch

from neti.models.backbone.backbone import Backbone
from neti.models.backbone.loading import check_text_to_image, model_folder
from neti.utils.errors import UserError


@pytest.fixture
def folder_copy(tiny_backbone_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_backbone_folder, tmp_path / "model"))


def test_a_folder_loads_as_it_was_saved(tiny_backbone: Backbone, tiny_backbone_folder: Path) -> None:
    loaded = Backbone.from_pretrained(str(tiny_backbone_folder))
    assert loaded.name == str(tiny_backbone_folder)
    for part in ("text_encoder", "vae", "unet"):
        before, after = getattr(tiny_backbone, part).state_dict(), getattr(loaded, part).state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    scheduler: Any = loaded.scheduler
    assert scheduler.config["clip_sample"] is False
    assert scheduler.config["beta_schedule"] == "scaled_linear"


def test_every_part_is_frozen_and_in_eval_mode(tiny_backbone_folder: Path) -> None:
    loaded = Backbone.from_pretrained(str(tiny_backbone_folder))
    for part in (loaded.text_encoder, loaded.vae, loaded.unet):
        assert not part.training
        assert not any(parameter.requires_grad for parameter in part.parameters())


def test_sizes_come_from_the_parts(tiny_backbone: Backbone, make_tiny_backbone: Callable[..., Backbone]) -> None:
    b = tiny_backbone
    assert (b.frame.sizes, b.frame.tokens, b.latent_channels, b.latent_size) == ((16, (32,)), 77, 4, 8)
    assert (b.vae_scale_factor, b.image_size) == (8, 64)
    assert make_tiny_backbone(text_width=64).frame.text_width == 64


def test_dtype_reaches_every_part(tiny_backbone_folder: Path) -> None:
    loaded = Backbone.from_pretrained(str(tiny_backbone_folder), dtype=torch.float16)
    assert {part.dtype for part in (loaded.text_encoder, loaded.vae, loaded.unet)} == {torch.float16}


def test_parts_that_are_not_wanted_are_known_without_weights(folder_copy: Path) -> None:
    for part in ("unet", "vae"):
        (folder_copy / part / "diffusion_pytorch_model.safetensors").unlink()
    loaded = Backbone.from_pretrained(str(folder_copy), components=["text_encoder"])
    assert len(loaded.frame.layers) == 16
    assert next(loaded.unet.parameters()).is_meta and next(loaded.vae.parameters()).is_meta
    assert loaded.image_size == 64
    assert loaded.word_embedding("teddy").shape == (32,)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "stable-diffusion", "~/nowhere", "a/b/c", ""])
def test_a_missing_folder_is_named(name: str) -> None:
    with pytest.raises(UserError, match=f"model '{name}': no such folder"):
        Backbone.from_pretrained(name)


def test_a_repository_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError) as caught:
        Backbone.from_pretrained("CompVis/stable-diffusion-v1-4", revision="fp16")
    message = str(caught.value)
    assert "'CompVis/stable-diffusion-v1-4' (revision fp16)" in message
    assert "pass the path of a local folder" in message
    assert "\n" not in message


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae", "tokenizer", "scheduler"])
def test_an_incomplete_folder_names_the_part(folder_copy: Path, part: str) -> None:
    shutil.rmtree(folder_copy / part)
    with pytest.raises(UserError, match=f"cannot load its {part} from .*no {part} folder"):
        Backbone.from_pretrained(str(folder_copy))


@pytest.mark.parametrize("file", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_damaged_weights_name_the_part(folder_copy: Path, file: str, damage: str) -> None:
    path = folder_copy / file
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=f"cannot load its {path.parent.name} ") as caught:
        Backbone.from_pretrained(str(folder_copy))
    assert "\n" not in str(caught.value)


def test_weights_of_another_text_encoder_are_refused(folder_copy: Path) -> None:
    """transformers alone would fill what is missing with random numbers and only warn."""
    foreign = folder_copy / "vae" / "diffusion_pytorch_model.safetensors"
    shutil.copy(foreign, folder_copy / "text_encoder" / "model.safetensors")
    with pytest.raises(UserError, match=r"cannot load its text_encoder .*weights are missing"):
        Backbone.from_pretrained(str(folder_copy))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_asked_for_but_absent(tiny_backbone_folder: Path) -> None:
    with pytest.raises(UserError, match="sees no CUDA device"):
        Backbone.from_pretrained(str(tiny_backbone_folder), device="cuda")


def test_an_unset_prompt_length_is_bounded_by_the_position_table(folder_copy: Path) -> None:
    config = folder_copy / "tokenizer" / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"model_max_length": 77', '"model_max_length": 1000000000'))
    assert Backbone.from_pretrained(str(folder_copy)).tokenizer.model_max_length == 77


def test_bundled_names_resolve_inside_the_package() -> None:
    for name, folder in (("miniature", "sd"), ("miniature-judge", "judge")):
        try:
            assert model_folder(name).parts[-2:] == ("miniature", folder)
        except UserError as error:
            assert "bundled weights are missing" in str(error)


def test_super_category_of_one_token(tiny_backbone: Backbone) -> None:
    embedding = tiny_backbone.word_embedding("teddy")
    table = tiny_backbone.text_encoder.embeddings.token_embedding.weight
    assert torch.equal(embedding, table[710])
    embedding.zero_()
    assert table[710].norm() > 0, "the table is not handed out"


def test_super_category_of_several_tokens(tiny_backbone: Backbone) -> None:
    with pytest.raises(UserError, match=r"super category 'photo toy': 2 tokens \('photo</w>', 'toy</w>'\)"):
        tiny_backbone.word_embedding("photo toy")
    photo, toy = tiny_backbone.word_embedding("photo"), tiny_backbone.word_embedding("toy")
    mean = tiny_backbone.word_embedding("photo toy", rule="mean")
    assert mean.norm() == pytest.approx(((photo.norm() + toy.norm()) / 2).item(), rel=1e-5)
    torch.testing.assert_close(torch.cosine_similarity(mean, photo + toy, dim=0), torch.tensor(1.0))


def test_super_category_of_no_token(tiny_backbone: Backbone) -> None:
    for rule in ("single", "mean"):
        with pytest.raises(UserError, match=r"super category ' ': 0 tokens"):
            tiny_backbone.word_embedding(" ", rule=rule)  # type: ignore[arg-type]


def set_settings(folder: Path, part: str, **changes: Any) -> None:
    path = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("unet", {"in_channels": 9}, "9 input channels, not the 4 .* a mask and a masked picture"),
        ("unet", {"in_channels": 5}, "5 input channels, not the 4 .* a depth map"),
        ("unet", {"in_channels": 8}, "8 input channels, not the 4 .* a picture to edit"),
        ("unet", {"in_channels": 12}, "12 input channels, not the 4 of its VAE's latents; train and"),
        ("unet", {"time_cond_proj_dim": 256}, "wants the guidance scale"),
        ("unet", {"class_embed_type": "timestep"}, "wants a class, a noise level or an image"),
        ("unet", {"num_class_embeds": 1000}, "wants a class or a noise level"),
        ("unet", {"addition_embed_type": "text"}, "wants more than text and time"),
        ("unet", {"cross_attention_dim": 64}, "reads text of width 64, its text encoder writes 32"),
        ("unet", {"sample_size": [8, 12]}, r"sample_size is \[8, 12\]"),
        ("unet", {"sample_size": None}, "sample_size is None"),
        ("scheduler", {"prediction_type": "sample"}, "prediction_type is 'sample'; epsilon and v_prediction are known"),
        ("scheduler", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "is a FlowMatchEulerDiscreteScheduler"),
    ],
)
def test_a_model_that_is_not_text_to_image(folder_copy: Path, part: str, changes: Any, message: str) -> None:
    """Decided by its settings, so that a dry run says what training would."""
    set_settings(folder_copy, part, **changes)
    for check in (check_text_to_image, Backbone.from_pretrained):
        with pytest.raises(UserError, match=f"model '{folder_copy}': .*{message}") as caught:
            check(str(folder_copy))
        assert "\n" not in str(caught.value)
    assert Backbone.from_pretrained(str(folder_copy), components=()).frame.num_places == 16, "its sizes can be read"
