"""Tokens, keys and values against the public implementation's recordings."""

from __future__ import annotations

import pytest
import torch
from recordings import Recording
from torch import Tensor

from neti.models.backbone.backbone import Backbone
from neti.models.conditioning.conditioning import condition, plain_condition, tokenize
from neti.models.methods import NeTI

PROMPTS = {"photo": ("A photo of a <toy>", 5), "monet": ("A painting of <toy> in the style of Monet", 4)}


def meanstd(x: Tensor) -> Tensor:
    """[l,t,T,D] -> [t,l,2]: mean and standard deviation over tokens and width."""
    rows = x.transpose(0, 1).flatten(2)
    return torch.stack([rows.mean(dim=-1), rows.std(dim=-1)], dim=-1)


@pytest.mark.parametrize("name", PROMPTS)
def test_tokens(recording: Recording, backbone: Backbone, name: str) -> None:
    prompt, position = PROMPTS[name]
    tokens = tokenize(backbone.tokenizer, [prompt], ["<toy>"])
    slot = tokens.slots["<toy>"][0]
    assert slot.nonzero().flatten().tolist() == [position]
    assert torch.equal(tokens.ids[0][~slot], recording[f"ids.{name}"][~slot])


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("truncation", [None, 16])
@torch.no_grad()
def test_keys_and_values(
    recording: Recording, backbone: Backbone, method: NeTI, name: str, truncation: int | None
) -> None:
    prompt, position = PROMPTS[name]
    end = (recording[f"ids.{name}"] == backbone.tokenizer.eos_token_id).nonzero()[0].item()
    vectors = method.vectors(recording["ctx.t"], truncation)
    tokens = tokenize(backbone.tokenizer, [prompt], ["<toy>"])
    both = condition(backbone.text, tokens, {"<toy>": vectors}, backbone.frame)
    keys, values = both.keys, both.values
    assert keys.shape == values.shape == (16, 3, 77, 768)

    label = f"ctx.{name}.trunc_{str(truncation).lower()}"
    if truncation is None:
        assert recording.compare(f"{label}.key", keys.transpose(0, 1)[:, :, :13]) < 1e-4
    else:
        assert recording.compare(f"{label}.key_rows", keys.transpose(0, 1)[:, :, [position, end]]) < 1e-4
    assert recording.compare(f"{label}.key_meanstd", meanstd(keys)) < 1e-4
    if vectors.bypass is None:
        assert values is keys
    else:
        assert recording.compare(f"{label}.value_row", values.transpose(0, 1)[:, :, position]) < 1e-4
        assert recording.compare(f"{label}.value_meanstd", meanstd(values)) < 1e-4
        others = torch.arange(77) != position
        assert torch.equal(keys[:, :, others], values[:, :, others])


@torch.no_grad()
def test_unconditional(recording: Recording, backbone: Backbone) -> None:
    plain = plain_condition(backbone.text, [""], backbone.frame)
    assert torch.equal(tokenize(backbone.tokenizer, [""], []).ids[0], recording["uncond.ids"])
    assert recording.compare("uncond.ctx_rows", plain.keys[7, 0, :13]) < 1e-4
    assert recording.compare("uncond.ctx_meanstd", meanstd(plain.values)[0, 7]) < 1e-4
