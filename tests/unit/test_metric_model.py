"""The metric models: features as transformers computes them, preprocessing by name, the cache, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_judge import picture, save_clip, save_vit
from torch import Tensor, nn
from transformers import CLIPModel, CLIPProcessor, ViTModel

from neti.models.judging.cache import OUTSIDE, FeatureCache, Picture, file_features
from neti.models.judging.metric_model import CLIPMetricModel, MetricModel
from neti.models.judging.resizing import Resizing
from neti.utils.errors import UserError


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def model(clip_folder: Path) -> CLIPMetricModel:
    return CLIPMetricModel.from_pretrained(str(clip_folder))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Five picture files; the last shows the same bytes as the first."""
    paths = [tmp_path / f"{k}.png" for k in range(5)]
    for k, path in enumerate(paths):
        picture(k % 4).save(path)
    return paths


class Watched:
    """Counts the images that go through a model's vision model, batch by batch."""

    def __init__(self, model: CLIPMetricModel) -> None:
        self.batches: list[int] = []
        model.model.vision_model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.batches.append(len(kwargs["pixel_values"]))


def test_features_are_those_of_transformers(clip_folder: Path, model: CLIPMetricModel) -> None:
    images, texts = [picture(0, 64, 48), picture(1, 33, 70)], ["A photo of  on a beach", "App icon of "]
    theirs = CLIPModel.from_pretrained(clip_folder).eval()
    with torch.no_grad():
        batch = CLIPProcessor.from_pretrained(clip_folder)(text=texts, images=images, return_tensors="pt", padding=True)
        output = theirs(**batch)
    torch.testing.assert_close(model.image_features(images), output.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.text_features(texts), output.text_embeds, atol=1e-5, rtol=0)
    assert model.text_features(["word " * 200]).norm() == pytest.approx(1)


def test_resizing_by_name(clip_folder: Path) -> None:
    pil, tensor = (CLIPMetricModel.from_pretrained(str(clip_folder), resizing=way) for way in Resizing)
    fine = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8))
    smooth, aliased = pil.input([fine]), tensor.input([fine])
    assert smooth.shape == aliased.shape == (1, 3, 32, 32)
    assert aliased.std() > 1.5 * smooth.std(), "without antialiasing, noise survives the shrinking"
    native = fine.crop((0, 0, 32, 32))
    torch.testing.assert_close(pil.input([native]), tensor.input([native]), atol=1e-5, rtol=0)

    pixels = torch.from_numpy(np.array(fine)).permute(2, 0, 1)[None] / 255
    by_hand = F.interpolate(pixels, (32, 42), mode="bicubic")[..., 5:37]
    torch.testing.assert_close(aliased, (by_hand - 0.5) / 0.25)
    assert pil.input.record == {
        "resizing": "pil",
        "size": {"shortest_edge": 32},
        "center_crop": {"height": 32, "width": 32},
        "filter": "bicubic",
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
    }


def test_a_vit_sees_by_its_cls_state(tmp_path: Path) -> None:
    folder = save_vit(tmp_path / "vit")
    dino = MetricModel.from_pretrained(str(folder))
    image = picture(0, 32, 32)
    pixels = (torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5
    with torch.no_grad():
        state = ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()(pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(dino.image_features([image]), F.normalize(state, dim=-1), atol=1e-5, rtol=0)


def features(model: MetricModel, files: list[Path], cache: FeatureCache, batch_size: int = 2) -> Tensor:
    return file_features(model, [Picture(file) for file in files], cache, batch_size)


def test_a_cached_feature_is_bit_identical_and_asks_no_model(
    model: CLIPMetricModel, files: list[Path], tmp_path: Path
) -> None:
    cache, watched = FeatureCache(tmp_path / "cache", model), Watched(model)
    first = features(model, files, cache)
    assert watched.batches == [2, 2], "at most two at once, and the twin only once"
    assert torch.equal(first[0], first[4]) and not torch.equal(first[0], first[1])
    again = features(model, [path.rename(path.with_name(f"new{path.name}")) for path in files], cache)
    assert torch.equal(first, again) and len(watched.batches) == 2
    plain = features(model, [tmp_path / f"new{k}.png" for k in range(5)], FeatureCache(None, model))
    assert torch.equal(first, plain) and len(watched.batches) == 4


def test_progress_counts_cached_images_too(model: CLIPMetricModel, files: list[Path], tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "cache", model)
    features(model, files[:2], cache)
    done: list[int] = []
    file_features(model, [Picture(file) for file in files], cache, 1, done.append)
    assert sum(done) == len(files)


def test_damaged_entries_are_ignored_and_replaced(model: CLIPMetricModel, files: list[Path], tmp_path: Path) -> None:
    cache, watched = FeatureCache(tmp_path / "cache", model), Watched(model)
    first = features(model, files, cache)
    entries = sorted((tmp_path / "cache").rglob("*.safetensors"))
    assert len(entries) == 4
    whole = entries[0].read_bytes()
    entries[0].write_bytes(whole[:-3])
    entries[1].write_bytes(b"")
    entries[2].write_bytes(whole[:-4] + b"\x00\x00\x80\x7f")  # the last number is infinite
    entries[3].write_bytes(whole[:-4] + b"\x00\x00\x80\x40")  # ... is 4
    watched.batches.clear()
    assert torch.equal(features(model, files, cache), first)
    assert sum(watched.batches) == 4
    assert torch.equal(features(model, files, cache), first)
    assert sum(watched.batches) == 4


def test_models_and_preprocessings_do_not_share_entries(
    model: CLIPMetricModel, clip_folder: Path, tmp_path: Path
) -> None:
    other = CLIPMetricModel.from_pretrained(str(save_clip(tmp_path / "other", seed=1)))
    tensor = CLIPMetricModel.from_pretrained(str(clip_folder), resizing=Resizing.tensor)
    shutil.copytree(clip_folder, tmp_path / "copy" / clip_folder.name)
    same = CLIPMetricModel.from_pretrained(str(tmp_path / "copy" / clip_folder.name))
    folders = [FeatureCache(tmp_path / "cache", each).folder for each in (model, other, tensor)]
    assert len(set(folders)) == 3
    assert FeatureCache(tmp_path / "cache", same).folder == folders[0], "the place of the weights does not matter"


def test_a_broken_image_is_named(model: CLIPMetricModel, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(UserError, match=r"broken\.png"):
        features(model, [tmp_path / "broken.png"], FeatureCache(None, model))


def test_a_mask_leaves_grey_and_has_an_entry_of_its_own(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "photo.png")
    mask = Image.new("L", (20, 20))
    mask.paste(255, (0, 0, 10, 20))
    mask.save(tmp_path / "mask.png")
    whole, masked = Picture(tmp_path / "photo.png"), Picture(tmp_path / "photo.png", tmp_path / "mask.png")
    pixels = np.array(masked.load())
    assert (pixels[:, 22:] == OUTSIDE).all() and (pixels[:, :18] == np.array(whole.load())[:, :18]).all()
    assert whole.content != masked.content


def test_a_cache_entry_is_of_one_kind_of_device_and_one_precision(model: CLIPMetricModel, tmp_path: Path) -> None:
    """Features differ in the last digits from device to device, and by more with TensorFloat-32."""
    assert (model.record["device"], model.record["precision"]) == ("cpu", "float32")
    here = FeatureCache(tmp_path, model).folder
    moved = CLIPMetricModel(model.model, model.input, model.tokenizer, model.name, "meta")
    moved.digest = model.digest
    assert FeatureCache(tmp_path, moved).folder != here


def test_features_are_made_without_tensorfloat_32(clip_folder: Path) -> None:
    model = CLIPMetricModel.from_pretrained(str(clip_folder))
    seen = []
    model.model.vision_model.register_forward_pre_hook(
        lambda *_: seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
    )
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        model.image_features([picture(0)])
        assert torch.backends.cuda.matmul.allow_tf32, "as it was"
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert seen == [(False, False)]
