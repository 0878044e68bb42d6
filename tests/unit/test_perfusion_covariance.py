"""Second moments of a text encoder: what is summed, that it goes on after an interruption, and which C is refused."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from neti.models.backbone.backbone import Backbone
from neti.models.methods.perfusion import second_moments
from neti.models.methods.perfusion.covariance import BUNDLED, Covariance, covariance_for, find_covariance, probe
from neti.models.methods.perfusion.second_moments import Captions, Moments, TokenRule, measure
from neti.utils.errors import UserError

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_covariance.py"
WORDS = [
    "a",
    "photo",
    "of",
    "the",
    "cat",
    "on",
    "table",
    "toy",
    "teddy",
    "in",
    "red",
    "beach",
    "two",
    "dog",
    "and",
    "oil",
]
LINES = [" ".join(WORDS[(3 * i + 5 * j * (i + 1)) % len(WORDS)] for j in range(2 + i % 7)) for i in range(40)]


@pytest.fixture
def backbone(tiny_backbone: Backbone) -> Backbone:
    """Its final LayerNorm gets a bias: without one, encodings have no part along (1, ..., 1), and C no inverse."""
    with torch.no_grad():
        tiny_backbone.text_encoder.final_layer_norm.bias += torch.linspace(-0.5, 1, 32)
    return tiny_backbone


@pytest.fixture
def captions(tmp_path: Path) -> Captions:
    path = tmp_path / "captions.txt"
    path.write_text("\n\n".join(LINES) + "\n")
    return Captions(path)


def stock_encodings(backbone: Backbone, caption: str, pad: bool) -> Tensor:
    """What the text encoder itself makes of one caption, [n, D]."""
    padding: dict[str, Any] = {"padding": "max_length", "max_length": 77} if pad else {}
    ids = backbone.tokenizer(caption, return_tensors="pt", truncation=True, **padding).input_ids
    with torch.no_grad():
        return backbone.text_encoder(ids).last_hidden_state[0].double()


@pytest.mark.parametrize("rule", TokenRule)
def test_it_is_the_mean_of_the_outer_products(
    backbone: Backbone, captions: Captions, tmp_path: Path, rule: TokenRule
) -> None:
    covariance = measure(backbone.text, "tiny", captions, tmp_path / "p.safetensors", tokens=rule, batch_size=7)
    rows = torch.cat([stock_encodings(backbone, line, rule is TokenRule.all) for line in LINES])
    torch.testing.assert_close(covariance.matrix.double(), rows.T @ rows / len(rows), atol=1e-5, rtol=0)
    assert torch.equal(covariance.matrix, covariance.matrix.T)
    assert covariance.metadata["tokens"] == len(rows) and covariance.metadata["captions"] == len(LINES)
    identity = covariance.inverse.double() @ covariance.matrix.double()
    torch.testing.assert_close(identity, torch.eye(32, dtype=torch.float64), atol=1e-3, rtol=0)


def test_a_caption_that_is_too_long_is_cut_and_counted(backbone: Backbone, tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_text("\n".join([*LINES, "a cat " * 100]))
    covariance = measure(backbone.text, "tiny", Captions(path), tmp_path / "p.safetensors")
    assert covariance.metadata["cut"] == 1
    lengths = [len(backbone.tokenizer(line).input_ids) for line in LINES]
    assert covariance.metadata["tokens"] == sum(lengths) + 77


def test_an_interrupted_run_goes_on_to_the_same_bits(
    backbone: Backbone, captions: Captions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure(backbone.text, "tiny", captions, tmp_path / "whole.safetensors", batch_size=6)
    monkeypatch.setattr(second_moments, "SAVE_EVERY", 2)
    partial = tmp_path / "partial.safetensors"
    encoded: list[int] = []

    def stop(moments: Moments) -> None:
        encoded.append(moments.captions)
        if len(encoded) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(backbone.text, "tiny", captions, partial, batch_size=6, on_batch=stop)
    resumed = measure(backbone.text, "tiny", captions, partial, batch_size=6, on_batch=stop)
    assert encoded == [6, 12, 18, 24, 30, 30, 36, 40], "the fifth batch was lost, the first four were not done again"
    assert torch.equal(resumed.matrix, whole.matrix) and resumed.digest == whole.digest


def test_what_another_run_left_is_refused(backbone: Backbone, captions: Captions, tmp_path: Path) -> None:
    partial = tmp_path / "partial.safetensors"
    measure(backbone.text, "tiny", captions, partial)
    with pytest.raises(UserError, match="a run with another captions, tokens was interrupted there"):
        measure(backbone.text, "tiny", replace(captions, limit=30), partial, tokens=TokenRule.all)
    measure(backbone.text, "tiny", captions, partial, ridge=0.1)  # the ridge comes after the sum


def test_too_few_captions_are_refused_unless_there_is_a_ridge(
    backbone: Backbone, captions: Captions, tmp_path: Path
) -> None:
    few, partial = replace(captions, limit=3), tmp_path / "p.safetensors"
    with pytest.raises(UserError, match=r"3 captions, \d+ tokens: the covariance is singular .* --ridge 1e-3"):
        measure(backbone.text, "tiny", few, partial)
    covariance = measure(backbone.text, "tiny", few, partial, ridge=0.01)
    eigenvalues = torch.linalg.eigvalsh(covariance.matrix.double())
    mean = eigenvalues.mean() / 1.01
    assert float(eigenvalues[0]) == pytest.approx(0.01 * float(mean), rel=1e-3)


def test_a_file_gives_back_the_same_bits(backbone: Backbone, captions: Captions, tmp_path: Path) -> None:
    covariance = measure(backbone.text, "tiny", captions, tmp_path / "p.safetensors")
    paths = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for path in paths:
        covariance.save(path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    loaded = Covariance.load(paths[0])
    assert torch.equal(loaded.matrix, covariance.matrix) and torch.equal(loaded.probe, covariance.probe)
    assert loaded.digest == covariance.digest and loaded.metadata == covariance.metadata
    assert loaded.metadata["token_rule"] == "nonpad" and loaded.metadata["text_encoder"].startswith("sha256:")
    assert replace(covariance, matrix=2 * covariance.matrix).digest != covariance.digest


def test_foreign_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("no tensors")
    miniature = BUNDLED[0].parent / "sd" / "vae" / "diffusion_pytorch_model.safetensors"
    for path, message in [
        (tmp_path / "none.safetensors", "no such covariance file"),
        (tmp_path / "text.safetensors", "damaged"),
        (miniature, "not a covariance file"),
    ]:
        with pytest.raises(UserError, match=message):
            Covariance.load(path)


@pytest.mark.parametrize(
    ("text", "message"), [(b"\n \n", "holds no caption"), (b"\xff\xfe", "cannot be read as UTF-8")]
)
def test_captions_that_are_none_are_refused(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "captions.txt").write_bytes(text)
    with pytest.raises(UserError, match=message):
        Captions(tmp_path / "captions.txt")


def test_it_knows_its_text_encoder_in_any_precision(
    make_tiny_backbone: Callable[..., Backbone], backbone: Backbone, tmp_path: Path
) -> None:
    path = tmp_path / "covariance.safetensors"
    Covariance(torch.eye(32), probe(backbone.text)).save(path)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert covariance_for(backbone.to("cpu", dtype).text, str(path), "tiny").belongs_to(backbone.text)
    other = make_tiny_backbone()
    with torch.no_grad():
        other.text_encoder.final_layer_norm.bias += 0.1
    with pytest.raises(UserError, match=r"measured on another text encoder .*make_covariance.py --model other"):
        covariance_for(other.text, str(path), "other")
    with pytest.raises(UserError, match="none comes with the project for tiny; make one with"):
        covariance_for(backbone.text, None, "tiny")


def test_the_miniatures_own_comes_with_the_project(tmp_path: Path) -> None:
    miniature = Backbone.from_pretrained("miniature", components=("text_encoder",))
    covariance = covariance_for(miniature.text, None, "miniature")
    assert covariance.matrix.shape == (128, 128) and covariance.metadata["captions"] == 20_000
    assert find_covariance(covariance.digest, tmp_path).digest == covariance.digest


def test_it_is_found_beside_the_concept_or_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = Covariance(torch.eye(4), torch.ones(4)), Covariance(2 * torch.eye(4), torch.ones(4))
    beside, here = tmp_path / "concepts", tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    with pytest.raises(UserError, match=rf"there is no \*covariance\*.safetensors in {beside} or {here}; put its"):
        find_covariance(own.digest, beside)
    other.save(beside / "other_covariance.safetensors")
    with pytest.raises(UserError, match=r"there is only another one, other_covariance.safetensors, in"):
        find_covariance(own.digest, beside)
    own.save(beside / "covariance_tiny.safetensors")
    assert find_covariance(own.digest, beside).digest == own.digest
    own.save(here / "my_covariance.safetensors")
    assert find_covariance(own.digest, tmp_path / "elsewhere").digest == own.digest


def test_the_script_writes_it(tiny_backbone_folder: Path, captions: Captions, tmp_path: Path, capsys: Any) -> None:
    spec = importlib.util.spec_from_file_location("make_covariance_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    output = tmp_path / "covariance.safetensors"
    words = [
        "--model",
        str(tiny_backbone_folder),
        "--captions",
        str(captions.path),
        "--device",
        "cpu",
        "--ridge",
        "1e-3",
    ]
    assert script.main([*words, "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert f"done: {output}, 40 captions" in shown and "tokens are few for a width of 32" in shown
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == ["covariance.safetensors"]
    assert Covariance.load(output).metadata["model"] == str(tiny_backbone_folder)
    assert script.main([*words, "--output", str(output)]) == 2
    assert "exists and is left as it is" in capsys.readouterr().err
