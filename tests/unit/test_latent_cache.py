"""The cached posterior gives what the VAE itself would give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from neti.training.config.options import MaskSource
from neti.training.config.run import DataConfig
from neti.training.data.dataset import ConceptDataset
from neti.training.data.latents import LatentCache
from neti.utils.errors import UserError
from neti.utils.images import SquareMode


@pytest.fixture
def vae() -> AutoencoderKL:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blocks = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
        return AutoencoderKL(3, 3, *blocks, block_out_channels=(4, 8), norm_num_groups=2, shift_factor=0.25).eval()


@pytest.fixture
def images(tmp_path: Path) -> ConceptDataset:
    for number in range(3):
        Image.effect_noise((20, 16), 40 + 40 * number).convert("RGB").save(tmp_path / f"{number}.png")
    return ConceptDataset(DataConfig(tmp_path, "<toy>", resolution=16), seed=0)


def test_samples_are_those_of_the_vae(vae: AutoencoderKL, images: ConceptDataset) -> None:
    cache = LatentCache.build(vae, images)
    assert cache.shape(0) == (4, 8, 8)
    assert cache.buckets == (0, 0, 0)
    ids, flips = [2, 0, 2], [True, False, False]
    pixels = torch.stack([p.flip(-1) if f else p for p, f in zip([images.read(i)[0] for i in ids], flips, strict=True)])
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
    expected = (posterior.sample(torch.Generator().manual_seed(5)) - 0.25) * vae.config.scaling_factor
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(cache.sample(ids, flips, noise), expected)


def test_an_overflowing_vae_is_told_with_the_image(vae: AutoencoderKL, images: ConceptDataset) -> None:
    torch.nn.init.constant_(vae.quant_conv.bias, float("nan"))
    with pytest.raises(UserError, match=r"NaN or infinite latents in torch\.float32 for 0\.png, 1\.png, 2\.png"):
        LatentCache.build(vae, images)


def test_masks_are_averaged_to_the_latents_and_mirrored_with_them(vae: AutoencoderKL, images: ConceptDataset) -> None:
    assert LatentCache.build(vae, images).masks_of([0], [False]) is None
    folder = images.config.train_data_dir
    for number in range(3):
        mask = np.zeros((16, 16), np.uint8)
        mask[:, : 4 * number + 3] = 255
        Image.fromarray(mask).save(folder / f"{number}-masklabel.png")
        Image.new("RGB", (16, 16)).save(folder / f"{number}.png")
    config = DataConfig(folder, "<toy>", resolution=16, masks=MaskSource.folder)
    masks = LatentCache.build(vae, ConceptDataset(config, seed=0)).masks_of([1, 0, 1], [False, False, True])
    assert masks is not None
    assert masks.shape == (3, 1, 8, 8)
    row = torch.tensor([1, 1, 1, 0.5, 0, 0, 0, 0])
    torch.testing.assert_close(masks[0, 0], row.expand(8, 8))
    torch.testing.assert_close(masks[1, 0, 0], torch.tensor([1, 0.5, 0, 0, 0, 0, 0, 0]))
    torch.testing.assert_close(masks[2, 0], row.flip(0).expand(8, 8))


def test_images_of_one_shape_are_a_bucket(vae: AutoencoderKL, images: ConceptDataset) -> None:
    folder = images.config.train_data_dir
    Image.new("RGB", (40, 20)).save(folder / "1.png")
    config = DataConfig(folder, "<toy>", resolution=32, square_mode=SquareMode.bucket)
    cache = LatentCache.build(vae, ConceptDataset(config, seed=0))
    assert [cache.shape(i) for i in range(3)] == [(4, 16, 16), (4, 12, 20), (4, 16, 16)]
    assert cache.buckets == (1, 0, 1)
    assert cache.sample([0, 2], [True, False], torch.zeros(2, 4, 16, 16)).shape == (2, 4, 16, 16)
