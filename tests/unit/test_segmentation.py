"""Masks from a word, by a CLIPSeg of tiny random weights, through the script."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPTokenizer

from neti.training.config.options import MaskSource
from neti.training.config.run import DataConfig
from neti.training.data.dataset import ConceptDataset
from neti.training.data.segmentation import TEMPLATES, Segmenter
from neti.utils.errors import UserError

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("make_masks", ROOT / "scripts" / "make_masks.py")
assert SPEC is not None and SPEC.loader is not None
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIPSeg folder as the hub has them: 32 x 32 pixels, random weights."""
    folder = tmp_path_factory.mktemp("clipseg")
    tokenizer = CLIPTokenizer.from_pretrained(ROOT / "tests" / "data" / "tokenizer")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = CLIPSegConfig(
        text_config={"vocab_size": len(tokenizer), "num_hidden_layers": 1, **small, **special},
        vision_config={"num_hidden_layers": 2, "image_size": 32, "patch_size": 8, **small},
        projection_dim=16,
        reduce_dim=8,
        extract_layers=[0, 1],
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPSegForImageSegmentation(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "size": size,
        "image_mean": [0.5] * 3,
        "image_std": [0.2] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, name in enumerate(["a.png", "b.jpg"]):
        Image.effect_noise((60, 40), 60 + 60 * number).convert("RGB").save(folder / name)
    return folder


def test_probabilities_are_the_mean_over_the_templates(model: Path, photos: Path) -> None:
    segmenter = Segmenter.from_pretrained(str(model))
    image = Image.open(photos / "a.png")
    found = segmenter.probabilities(image, "mug")
    assert found.shape == (32, 32)
    pixels = segmenter.image_processor([image], return_tensors="pt").pixel_values
    single = []
    for template in TEMPLATES:
        tokens = segmenter.tokenizer([template.format("mug")], return_tensors="pt")
        with torch.no_grad():
            single.append(segmenter.model(pixel_values=pixels, **tokens).logits.sigmoid().squeeze())
    np.testing.assert_allclose(found, torch.stack(single).mean(0).numpy(), atol=1e-5)
    assert not np.allclose(found, segmenter.probabilities(image, "dog"), atol=1e-3)


def test_masks_are_written_beside_the_photos_and_trained_with(
    model: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main([str(photos), "mug", "--model", str(model), "--device", "cpu"]) == 0
    written = sorted(path.name for path in photos.iterdir())
    assert written == ["a-masklabel.png", "a.png", "b-masklabel.png", "b.jpg"]
    with Image.open(photos / "a-masklabel.png") as mask:
        assert (mask.mode, mask.size) == ("L", (60, 40))
        assert np.asarray(mask).max() > 230  # the surest point is 255, before it is enlarged
    printed = capsys.readouterr().out
    assert "a-masklabel.png: " in printed and "of the photo, surest point " in printed
    assert printed.splitlines()[-1] == "done: train with --data.masks folder"
    data = ConceptDataset(DataConfig(photos, "<mug>", resolution=16, masks=MaskSource.folder), seed=0)
    data.check_images()
    assert data.notes == []


def test_masks_that_were_not_made_here_are_kept(model: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = [str(photos), "mug", "--model", str(model), "--device", "cpu"]
    script.main(call)
    first = (photos / "a-masklabel.png").read_bytes()
    script.main([str(photos), "dog", *call[2:]])
    assert (photos / "a-masklabel.png").read_bytes() != first, "what was made here is made anew"

    by_hand = Image.open(photos / "a-masklabel.png")
    by_hand.putpixel((0, 0), 255 - by_hand.getpixel((0, 0)))  # type: ignore[operator]
    by_hand.save(photos / "a-masklabel.png", pnginfo=None)
    changed = (photos / "a-masklabel.png").read_bytes()
    (photos / "b-masklabel.png").unlink()
    Image.new("L", (60, 40), 9).save(photos / "b_bg.png")
    capsys.readouterr()
    script.main(["--model", "nowhere", *call[:2]])  # nothing to do: no model is needed
    assert (photos / "a-masklabel.png").read_bytes() == changed
    assert not (photos / "b-masklabel.png").exists()
    assert "a.png: kept a-masklabel.png, which was not made here or was changed since" in capsys.readouterr().out


def test_a_mask_changed_in_an_editor_that_keeps_the_texts_is_kept(model: Path, photos: Path) -> None:
    call = [str(photos), "mug", "--model", str(model), "--device", "cpu"]
    script.main(call)
    path = photos / "a-masklabel.png"
    with Image.open(path) as image:
        text = PngImagePlugin.PngInfo()
        text.add_itxt("neti", image.info["neti"])
        image.putpixel((0, 0), 255 - image.getpixel((0, 0)))  # type: ignore[operator]
        image.save(path, pnginfo=text)
    changed = path.read_bytes()
    script.main(call)
    assert path.read_bytes() == changed


def test_masks_go_into_another_folder(model: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = photos.with_name("masks")
    script.main([str(photos), "mug", "--model", str(model), "--device", "cpu", "--masks_dir", str(masks)])
    assert sorted(path.name for path in masks.iterdir()) == ["a.png", "b.png"]
    assert sorted(path.name for path in photos.iterdir()) == ["a.png", "b.jpg"]
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"--data.masks folder --data.masks_dir {masks}")


@pytest.mark.parametrize("missing", ["model.safetensors", "preprocessor_config.json", "tokenizer"])
def test_an_incomplete_model_is_refused(
    model: Path, photos: Path, tmp_path: Path, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in model.iterdir():
        if not path.name.startswith((missing, "vocab", "merges") if missing == "tokenizer" else missing):
            (copy / path.name).symlink_to(path)
    assert script.main([str(photos), "mug", "--model", str(copy), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert f"--model {copy}: cannot be loaded" in error
    assert len(list(photos.iterdir())) == 2


def test_a_model_whose_weights_do_not_fit_is_refused(model: Path, tmp_path: Path) -> None:
    whole = CLIPSegForImageSegmentation.from_pretrained(model)
    state = {name: weight for name, weight in whole.state_dict().items() if "decoder.reduces" not in name}
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in model.iterdir():
        if path.name != "model.safetensors":
            (copy / path.name).symlink_to(path)
    whole.save_pretrained(copy, state_dict=state)
    with pytest.raises(UserError, match=r"weights are missing, such as decoder\.reduces"):
        Segmenter.from_pretrained(str(copy))


def test_photos_that_would_share_a_mask_are_named(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (4, 4)).save(photos / "a.webp")
    assert script.main([str(photos), "mug"]) == 2
    assert "a.png, a.webp would share one mask; rename them apart" in capsys.readouterr().err
    assert script.main([str(photos), " "]) == 2
    assert "the word is empty" in capsys.readouterr().err
