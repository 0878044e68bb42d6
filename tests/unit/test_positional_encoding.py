"""The encodings of (t, l)."""

from __future__ import annotations

import pytest
import torch

from neti.models.methods.neti.positional_encoding import NormalizedEncoding, TimeLayerEncoding


@pytest.fixture
def encoding() -> TimeLayerEncoding:
    encoding = TimeLayerEncoding()
    encoding.draw(sigma_t=0.03, sigma_l=2.0, generator=torch.Generator().manual_seed(0))
    return encoding


def test_has_norm_one_everywhere(encoding: TimeLayerEncoding) -> None:
    out = encoding(torch.arange(0, 1000, 37)[:, None], torch.arange(16))
    assert out.shape == (28, 16, 2048)
    torch.testing.assert_close(out.norm(dim=-1), torch.ones(28, 16))


def test_any_number_of_frequencies_has_norm_one() -> None:
    few = TimeLayerEncoding(48)
    few.draw(sigma_t=0.03, sigma_l=2.0, generator=torch.Generator().manual_seed(0))
    out = few(torch.arange(0, 1000, 37)[:, None], torch.arange(16))
    assert few.frequencies.shape == (48, 2) and out.shape == (28, 16, few.width) and few.width == 96
    torch.testing.assert_close(out.norm(dim=-1), torch.ones(28, 16))
    assert few.anchors(3, 16).shape == (48, 96)


def test_similarity_is_a_gaussian_kernel_of_time_and_layer(encoding: TimeLayerEncoding) -> None:
    dt, dl = torch.meshgrid(torch.arange(0, 100, 5.0), torch.arange(0, 3.0), indexing="ij")
    similarity = encoding(300 + dt, 5 + dl) @ encoding(torch.tensor(300), torch.tensor(5))
    kernel = torch.exp(-((0.03 * dt) ** 2) / 2 - (2.0 * dl) ** 2 / 2)
    assert (similarity - kernel).abs().max() < 4 / 32  # four standard deviations of a mean over 1024 frequencies


def test_scales_of_the_frequencies(encoding: TimeLayerEncoding) -> None:
    sigma_t, sigma_l = encoding.frequencies.std(dim=0).tolist()
    assert sigma_t == pytest.approx(0.03, rel=0.1)
    assert sigma_l == pytest.approx(2.0, rel=0.1)


def test_frequencies_are_saved_and_not_trained(encoding: TimeLayerEncoding) -> None:
    assert list(encoding.state_dict()) == ["frequencies"]
    assert list(encoding.parameters()) == []


def test_stays_in_float32_for_half_precision_input(encoding: TimeLayerEncoding) -> None:
    t, layer = torch.tensor([992.0]), torch.tensor([3.0])  # both exact in half precision
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = encoding(t.half(), layer.half())
    assert half.dtype == torch.float32
    assert torch.equal(half, encoding(t, layer))


def test_anchors_have_time_as_the_outer_loop(encoding: TimeLayerEncoding) -> None:
    anchors = encoding.anchors(num_time_anchors=10, num_layers=16)
    assert anchors.shape == (160, 2048)
    torch.testing.assert_close(anchors[16 * 7 + 3], encoding(torch.tensor(700), torch.tensor(3)))


def test_any_number_of_anchors_is_possible(encoding: TimeLayerEncoding) -> None:
    assert encoding.anchors(num_time_anchors=7, num_layers=3).shape == (21, 2048)


def test_normalized_encoding_spans_minus_one_to_one() -> None:
    out = NormalizedEncoding(16)(torch.tensor([0, 999])[:, None], torch.tensor([0, 15]))
    assert out.tolist() == [[[-1, -1], [-1, 1]], [[1, -1], [1, 1]]]
    assert NormalizedEncoding(1)(torch.tensor(0), torch.tensor(0)).tolist() == [-1, -1]
