"""Models by the name of a hub repository: what is fetched, what is found offline, what is said when neither works."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from hub_server import COMMIT, Hub, serve
from model_files import make_counterfeit, same_numbers

from neti.models.backbone.backbone import Backbone
from neti.models.backbone.loading import model_hash
from neti.models.backbone.safety import SafetyChecker, has_safety_checker
from neti.utils.errors import UserError

NAME = "someone/tiny-sd"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    constants = huggingface_hub.constants
    with serve() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        online(monkeypatch, True)
        yield hub


def online(monkeypatch: pytest.MonkeyPatch, is_online: bool) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", not is_online)


@pytest.fixture
def repository(hub: Hub, tiny_backbone_folder: Path, tmp_path: Path) -> Path:
    hub.repositories[NAME] = Path(shutil.copytree(tiny_backbone_folder, tmp_path / "repository"))
    return hub.repositories[NAME]


def snapshot() -> Path:
    cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
    return cache / f"models--{NAME.replace('/', '--')}" / "snapshots" / COMMIT


def test_one_form_of_the_wanted_weights_is_fetched(
    hub: Hub, repository: Path, tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        for other in (f"{stem}.fp16.safetensors", f"{stem}.bin", "flax_model.msgpack"):
            (repository / part / other).write_bytes(b"another form")
    (repository / "v1.ckpt").write_bytes(b"another form")
    loaded = Backbone.from_pretrained(NAME, components=["text_encoder"])
    assert next(loaded.unet.parameters()).is_meta
    assert not any("unet" in path and not path.endswith(".json") for path in hub.fetched)
    assert same_numbers(Backbone.from_pretrained(NAME), tiny_backbone)
    weights = {path for path in hub.fetched if not path.endswith((".json", ".txt"))}
    assert weights == {
        "text_encoder/model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
    }
    online(monkeypatch, False)
    assert same_numbers(Backbone.from_pretrained(NAME), tiny_backbone)
    assert model_hash(NAME) == model_hash(str(repository))


def test_a_repository_of_2022(
    hub: Hub, tiny_backbone_folder: Path, tiny_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pickles only; and the safety checker comes along, so that drawing needs no network after training."""
    hub.repositories[NAME] = make_counterfeit(tmp_path / "repository", tiny_backbone_folder)
    assert same_numbers(Backbone.from_pretrained(NAME), tiny_backbone)
    online(monkeypatch, False)
    assert has_safety_checker(NAME)
    assert isinstance(SafetyChecker.from_pretrained(NAME), SafetyChecker)


def test_shards_are_fetched(repository: Path, tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    tiny_backbone.unet.save_pretrained(repository / "unet", max_shard_size="200KB")
    shards = sorted(path.name for path in (repository / "unet").glob("*-of-*"))
    assert len(shards) > 1
    assert same_numbers(Backbone.from_pretrained(NAME), tiny_backbone)
    (snapshot() / "unet" / shards[1]).unlink()
    online(monkeypatch, False)
    with pytest.raises(UserError, match=rf"{shards[1]} missing.*the hub's cache may hold it only in part"):
        Backbone.from_pretrained(NAME)
    online(monkeypatch, True)
    assert same_numbers(Backbone.from_pretrained(NAME), tiny_backbone), "the missing one is fetched again"


def test_without_a_network_other_complete_weights_will_do(
    repository: Path, tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another program may have left them in the cache."""
    unet = repository / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(unet, unet.with_name("diffusion_pytorch_model.fp16.safetensors"))
    Backbone.from_pretrained(NAME)
    (snapshot() / "unet" / unet.name).rename(snapshot() / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    online(monkeypatch, False)
    assert same_numbers(Backbone.from_pretrained(NAME), tiny_backbone)


def test_a_download_that_was_interrupted(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Backbone.from_pretrained(NAME, components=["text_encoder"])  # settings and one part
    online(monkeypatch, False)
    with pytest.raises(UserError, match=r"cannot load its vae .*the hub's cache may hold it only in part: connect"):
        Backbone.from_pretrained(NAME)


def test_a_checker_of_which_only_the_settings_are_there(
    hub: Hub, tiny_backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories[NAME] = make_counterfeit(tmp_path / "repository", tiny_backbone_folder)
    assert has_safety_checker(NAME)
    assert not any(path.endswith(".bin") for path in hub.fetched)
    online(monkeypatch, False)
    with pytest.raises(UserError, match=r"cannot load its safety_checker .*--safety_checker false"):
        SafetyChecker.from_pretrained(NAME)


def test_a_cache_without_a_listing(
    hub: Hub, tiny_backbone_folder: Path, tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an older hub library, or copied by hand."""
    online(monkeypatch, False)
    shutil.copytree(tiny_backbone_folder, snapshot())
    refs = snapshot().parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    assert same_numbers(Backbone.from_pretrained(NAME), tiny_backbone)
    (snapshot() / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"cannot load its vae .*the hub's cache may hold it only in part"):
        Backbone.from_pretrained(NAME)


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("someone/gated", None, "is gated: accept its terms at https://huggingface.co/someone/gated, then log in with"),
        ("someone/removed", None, "no such repository: check the name .*removed.*hf auth login"),
        ("runwayml/stable-diffusion-v1-5", None, "it is called 'stable-diffusion-v1-5/stable-diffusion-v1-5' now"),
        (NAME, "fp16", r"\(revision fp16\): .*no such revision"),
    ],
)
def test_what_the_hub_refuses(hub: Hub, repository: Path, name: str, revision: str | None, message: str) -> None:
    hub.gated.add("someone/gated")
    with pytest.raises(UserError, match=message) as caught:
        Backbone.from_pretrained(name, revision=revision)
    assert "\n" not in str(caught.value)


def test_a_hub_that_does_not_answer(hub: Hub, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"could not be fetched and is not cached .*pretrained_model_name_or_path"):
        Backbone.from_pretrained(NAME)
