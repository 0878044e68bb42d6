"""Positional encoding and mapper against the public implementation's recordings."""

from __future__ import annotations

import pytest
import torch
from recordings import Recording

from neti.models.methods import NeTI
from neti.models.methods.neti.positional_encoding import TimeLayerEncoding


def test_encoding(recording: Recording, method: NeTI) -> None:
    t, layer = recording["pe.tl"].T
    assert recording.compare("pe.out", method.mapper.encoding(t, layer)) < 1e-5


def test_anchors_of_the_input_layer(recording: Recording, method: NeTI) -> None:
    encoding = method.mapper.encoding
    if not isinstance(encoding, TimeLayerEncoding):
        assert isinstance(method.mapper.input_layer, torch.nn.Identity)
        return
    rows = encoding.anchors(num_time_anchors=10, num_layers=16)
    assert rows.shape == (160, 2048)
    assert recording.compare("pe.anchor_rows", rows[recording["pe.anchor_rows_index"]]) < 1e-5


@pytest.mark.parametrize("truncation", [None, 1, 16, 64])
def test_vectors(recording: Recording, method: NeTI, truncation: int | None) -> None:
    vectors = method.vectors(recording["mapper.t"], truncation)
    parts = [vectors.words] if vectors.bypass is None else [vectors.words, vectors.bypass]
    output = torch.cat(parts, dim=-1).transpose(0, 1)  # [L,B,D] -> the recording's [t, l, D or 2D]
    assert recording.compare(f"mapper.out.trunc_{str(truncation).lower()}", output) < 1e-5


def test_hidden_units(recording: Recording, method: NeTI) -> None:
    hidden = method.mapper.hidden(recording["mapper.t"][:, None], torch.arange(16))
    assert recording.compare("mapper.hidden", hidden) < 1e-5


def test_nested_cut_per_sample(recording: Recording, method: NeTI) -> None:
    t, layer, kept = recording["nested.t"], recording["nested.layer"], recording["nested.cut"]
    assert recording.compare("nested.hidden_before", method.mapper.hidden(t, layer)) < 1e-5
    v_base, v_pass = method.mapper(t, layer, kept)
    output = v_base if v_pass is None else torch.cat([v_base, v_pass], dim=-1)
    assert recording.compare("nested.out", output) < 1e-5


def test_number_of_parameters(recording: Recording, method: NeTI) -> None:
    assert sum(parameter.numel() for parameter in method.parameters()) == recording.facts["parameters"]
