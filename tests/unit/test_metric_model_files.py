"""A metric model's folder: its code is never run, and whatever is missing or wrong in it is one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_judge import picture, save_clip, save_vit
from transformers import CLIPTokenizer

from neti.models.backbone.loading import BUNDLED
from neti.models.judging.metric_model import CLIPMetricModel, MetricModel
from neti.utils.errors import UserError


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


BAIT = """
import pathlib
pathlib.Path({path!r}).write_text("executed")
class Bait: pass
"""


def baited(folder: Path, bait: Path) -> Path:
    """The folder, with code that would write the file `bait`, named wherever transformers looks for code."""
    (folder / "bait.py").write_text(BAIT.format(path=str(bait)))
    for name, classes in {
        "config.json": {"AutoConfig": "bait.Bait", "AutoModel": "bait.Bait"},
        "preprocessor_config.json": {"AutoImageProcessor": "bait.Bait"},
        "tokenizer_config.json": {"AutoTokenizer": ["bait.Bait", None]},
    }.items():
        if (folder / name).exists():
            settings = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps({**settings, "auto_map": classes}))
    return folder


UNKNOWN = {"": "", "config.json": "model_type", "preprocessor_config.json": "image_processor_type"}


@pytest.mark.parametrize("unknown", UNKNOWN)
@pytest.mark.parametrize("kind", ["judge", "dino"])
def test_code_in_a_models_folder_is_never_run(
    tmp_path: Path, kind: str, unknown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """unknown: the file that names a class which transformers does not have, so that it would look for the folder's."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # `yes |`
    bait = tmp_path / "executed"
    folder = baited(save_clip(tmp_path / "m") if kind == "judge" else save_vit(tmp_path / "m"), bait)
    loader = CLIPMetricModel if kind == "judge" else MetricModel
    if unknown:
        settings = json.loads((folder / unknown).read_text())
        (folder / unknown).write_text(json.dumps({**settings, UNKNOWN[unknown]: "BaitImageProcessor"}))
        with pytest.raises(UserError, match="cannot be loaded"):
            loader.from_pretrained(str(folder))
    else:
        assert loader.from_pretrained(str(folder)).image_features([picture(0)]).isfinite().all()
    assert not bait.exists()


class Payload:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.path, "executed")


def test_a_pickle_in_the_place_of_weights_is_not_run(tmp_path: Path) -> None:
    folder = save_clip(tmp_path / "clip")
    (folder / "model.safetensors").unlink()
    torch.save({"logit_scale": Payload(tmp_path / "executed")}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        CLIPMetricModel.from_pretrained(str(folder))
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("kept", [(), ("vocab.json",), ("merges.txt",)])
def test_a_model_without_its_words_is_refused(clip_folder: Path, tmp_path: Path, kept: tuple[str, ...]) -> None:
    """transformers would make a tokenizer that knows no word, or no merges, and every text would look alike."""
    shutil.copytree(clip_folder, tmp_path / "clip")
    source = json.loads((clip_folder / "tokenizer.json").read_text())["model"]
    (tmp_path / "clip" / "tokenizer.json").unlink()
    for name in kept:
        content = json.dumps(source["vocab"]) if name == "vocab.json" else "\n".join(map(str, source["merges"]))
        (tmp_path / "clip" / name).write_text(content)
    with pytest.raises(UserError, match="the tokenizer is missing"):
        CLIPMetricModel.from_pretrained(str(tmp_path / "clip"))


def test_the_tokenizer_of_another_model_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clip_folder, tmp_path / "clip")
    CLIPTokenizer.from_pretrained(BUNDLED["miniature-judge"]).save_pretrained(tmp_path / "clip")
    with pytest.raises(UserError, match="is not that of this model"):
        CLIPMetricModel.from_pretrained(str(tmp_path / "clip"))


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["[]", "null", "{", "[" * 6000])
def test_settings_of_another_shape_are_named(clip_folder: Path, tmp_path: Path, file: str, content: str) -> None:
    shutil.copytree(clip_folder, tmp_path / "clip")
    (tmp_path / "clip" / file).write_text(content)
    with pytest.raises(UserError, match=rf"\({file} (holds no JSON object|is no valid JSON)") as caught:
        CLIPMetricModel.from_pretrained(str(tmp_path / "clip"), key="judge")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"image_mean": "x"},
        {"size": 10**9},
        {"crop_size": {"height": 10**9, "width": 10**9}},
        {"crop_size": -1},
        {"crop_size": {"height": 64, "width": 64}},  # not what the model takes
        {"resample": 99},
    ],
)
def test_an_input_that_does_not_fit_the_model_is_refused_when_it_is_loaded(
    clip_folder: Path, tmp_path: Path, change: dict
) -> None:
    shutil.copytree(clip_folder, tmp_path / "clip")
    settings = tmp_path / "clip" / "preprocessor_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **change}))
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        CLIPMetricModel.from_pretrained(str(tmp_path / "clip"), key="judge")
    assert len(str(caught.value).splitlines()) == 1


def test_a_model_that_holds_nan_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    """In a row of a word that no prompt has, it would show nowhere."""
    shutil.copytree(clip_folder, tmp_path / "clip")
    weights = load_file(tmp_path / "clip" / "model.safetensors")
    weights["text_model.embeddings.token_embedding.weight"][3, 3] = float("nan")
    save_file(weights, tmp_path / "clip" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"hold NaN or infinity, in text_model\.embeddings\.token_embedding"):
        CLIPMetricModel.from_pretrained(str(tmp_path / "clip"), key="judge")


def test_a_model_that_lacks_what_is_not_used_is_loaded_in_silence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = save_vit(tmp_path / "vit")
    capfd.readouterr()
    MetricModel.from_pretrained(str(folder))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("lost", "expected"),
    [("preprocessor_config.json", "preprocessor_config.json"), ("model.safetensors", "cannot be loaded")],
)
def test_an_incomplete_folder_is_refused(clip_folder: Path, tmp_path: Path, lost: str, expected: str) -> None:
    shutil.copytree(clip_folder, tmp_path / "clip")
    (tmp_path / "clip" / lost).unlink()
    with pytest.raises(UserError, match=expected) as caught:
        CLIPMetricModel.from_pretrained(str(tmp_path / "clip"), key="judge")
    assert len(str(caught.value).splitlines()) == 1


def test_a_model_of_another_family_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a clip model; allowed are: vit"):
        MetricModel.from_pretrained(str(clip_folder))
    with pytest.raises(UserError, match="is a vit model; allowed are: clip"):
        CLIPMetricModel.from_pretrained(str(save_vit(tmp_path / "vit")), key="judge")
