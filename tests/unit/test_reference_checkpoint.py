"""Checkpoints of the public code: read without executing anything, converted without changing anything."""

from __future__ import annotations

import collections
import os
import pickle
import sys
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from neti.models.concepts.concept import Concept
from neti.models.concepts.public_code import convert, load_reference_concept, read_pickle
from neti.utils.errors import UserError

REFERENCE = Path(__file__).parent.parent / "data" / "reference"
CASES = ("default", "nobypass", "nope")
TIMESTEPS = torch.tensor([0, 137, 999])


def files(case: str) -> tuple[Path, Path]:
    return REFERENCE / case / "mapper-steps-7.pt", REFERENCE / case / "learned_embeds-steps-7.bin"


@pytest.mark.parametrize("case", CASES)
def test_what_a_checkpoint_says_about_itself(case: str) -> None:
    concept = load_reference_concept(*files(case))
    assert (concept.placeholder, concept.super_category) == ("<toy>", "teddy")
    assert concept.method.frame.sizes == (16, (768,))
    config = concept.method.config
    assert config.norm_rule == "joint"
    assert (config.output_bypass, config.use_positional_encoding) == (case != "nobypass", case != "nope")
    assert config.target_norm == pytest.approx(0.58408314)
    assert concept.metadata["training_config"]["optim"]["learning_rate"] == 0.008
    assert not concept.method.training


@pytest.mark.parametrize("case", CASES)
def test_conversion_keeps_every_bit(case: str, tmp_path: Path) -> None:
    concept = load_reference_concept(*files(case))
    concept.save(tmp_path / "converted.safetensors")
    converted = Concept.load(tmp_path / "converted.safetensors")
    for truncation in (None, 16):
        before = concept.method.vectors(TIMESTEPS, truncation)
        after = converted.method.vectors(TIMESTEPS, truncation)
        assert torch.equal(after.words, before.words)
        assert (after.bypass is None) == (before.bypass is None) == (case == "nobypass")
        if before.bypass is not None and after.bypass is not None:
            assert torch.equal(after.bypass, before.bypass)


class Hostile:
    """Unpickling it creates a file: the harmless stand-in for arbitrary code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_hostile_pickle_is_refused_by_name_and_executes_nothing(tmp_path: Path, zipped: bool, protocol: int) -> None:
    evil, trace = tmp_path / "mapper-steps-7.pt", tmp_path / "trace"
    content = {"state_dict": {}, "cfg": {}, "encoder": Hostile(trace)}
    torch.save(content, evil, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="refused") as caught:
        load_reference_concept(evil, files("default")[1])
    assert not trace.exists()
    if zipped and protocol == 2:
        assert f"{os.mkdir.__module__}.mkdir" in str(caught.value)
    torch.load(evil, weights_only=False)  # the very file does harm when read without restriction
    assert trace.exists()


def test_a_hostile_embedding_file_is_refused_too(tmp_path: Path) -> None:
    evil, trace = tmp_path / "learned_embeds-steps-7.bin", tmp_path / "trace"
    torch.save({"<toy>": Hostile(trace)}, evil)
    with pytest.raises(UserError, match=r"learned_embeds-steps-7.bin: refused.*mkdir"):
        load_reference_concept(files("default")[0], evil)
    assert not trace.exists()


@pytest.mark.parametrize("wanted", [collections.UserDict({"a": 1}), torch.nn.Linear(2, 2), Path("x")])
def test_any_other_class_is_refused_by_name(tmp_path: Path, wanted: Any) -> None:
    path = tmp_path / "mapper-steps-7.pt"
    torch.save({"encoder": wanted}, path)
    with pytest.raises(UserError, match=rf"refused.*{type(wanted).__name__}"):
        read_pickle(path)


def test_a_recorded_checkpoint_with_one_class_exchanged_is_refused(tmp_path: Path) -> None:
    """The public code's own file, edited to ask for a class of the same module that it never asks for."""
    path = tmp_path / "mapper-steps-7.pt"
    with zipfile.ZipFile(files("default")[0]) as original, zipfile.ZipFile(path, "w") as edited:
        for entry in original.namelist():
            edited.writestr(entry, original.read(entry).replace(b"\nNeTIPositionalEncoding\n", b"\nOther\n"))
    with pytest.raises(UserError, match=r"refused.*models\.positional_encoding\.Other"):
        load_reference_concept(path, files("default")[1])


def test_files_that_are_no_checkpoint_are_refused(tmp_path: Path) -> None:
    mapper, embeds = files("default")
    with pytest.raises(UserError, match="does not exist"):
        load_reference_concept(tmp_path / "none.pt", embeds)
    with pytest.raises(UserError, match="not a mapper checkpoint of the public NeTI code"):
        load_reference_concept(embeds, embeds)
    with pytest.raises(UserError, match="must hold the embedding of exactly one placeholder"):
        load_reference_concept(mapper, mapper)
    for content in (b"", b"no pickle at all", mapper.read_bytes()[:1000], pickle.dumps([1])):
        broken = tmp_path / "broken.pt"
        broken.write_bytes(content)
        with pytest.raises(UserError, match=r"broken\.pt: ") as caught:
            load_reference_concept(broken, embeds)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["net.4.weight", "output_layer.0.bias"])
def test_a_checkpoint_without_some_weights_is_refused(tmp_path: Path, missing: str) -> None:
    mapper, embeds = files("default")
    checkpoint = read_pickle(mapper)
    del checkpoint["state_dict"][missing]
    checkpoint["encoder"] = torch.zeros(1)
    path = tmp_path / "mapper.pt"
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match="not a mapper checkpoint this version understands"):
        load_reference_concept(path, embeds)


def test_the_norm_is_taken_from_the_embedding_where_the_config_lacks_it(tmp_path: Path) -> None:
    mapper, embeds = files("nope")
    checkpoint = read_pickle(mapper)
    checkpoint["cfg"]["model"]["target_norm"] = None
    checkpoint["encoder"] = SimpleNamespace(normalized_unet_layers=torch.linspace(-1, 1, 16))
    concept = convert(checkpoint, *torch.load(embeds, weights_only=True).popitem())
    assert concept.method.config.target_norm == pytest.approx(0.58408314)


def test_a_checkpoint_saved_after_the_public_codes_own_resume(tmp_path: Path) -> None:
    """There the frequencies are a parameter of the encoder, so they are in the state dict and no attribute."""
    mapper, embeds = files("default")
    expected = load_reference_concept(mapper, embeds)
    checkpoint = read_pickle(mapper)
    w = torch.nn.Parameter(vars(checkpoint["encoder"])["w"].clone())
    checkpoint["state_dict"]["encoder.w"] = w
    checkpoint["encoder"] = SimpleNamespace(_parameters={"w": w})
    resumed = convert(checkpoint, *torch.load(embeds, weights_only=True).popitem())
    assert torch.equal(resumed.method.vectors(TIMESTEPS).words, expected.method.vectors(TIMESTEPS).words)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("cfg",), [], "list indices must be integers"),
        (("cfg", "model"), None, "NoneType"),
        (("cfg", "model", "pe_sigmas"), 3, "not subscriptable"),
        (("cfg", "model", "num_pe_time_anchors"), 0, "num_time_anchors 0: must lie in 1"),
        (("cfg", "model", "num_pe_time_anchors"), "10", "num_time_anchors is '10'; must be a whole number"),
        (("cfg", "model", "output_bypass"), 1, "output_bypass is 1; must be true or false"),
        (("cfg", "model", "target_norm"), -3, "target_norm"),
        (("cfg", "model", "pretrained_model_name_or_path"), 3, "its base model must be text"),
        (("cfg", "data"), {"super_category_token": ["x"]}, "its super category"),
        (("cfg", "log"), {"a": float("nan")}, "nan is no number"),
        (("state_dict", "net.1.bias"), None, "NoneType"),
        (("state_dict", "net.1.bias"), torch.zeros(128).to_sparse(), "is no ordinary tensor"),
        (("state_dict", "net.4.weight"), torch.full((128, 128), float("nan")), "holds NaN or infinite numbers"),
        (("state_dict", "net.4.weight"), torch.zeros(1, 1).expand(2**30, 2**30), "has more numbers than the file"),
        (("state_dict", "net.4.weight"), torch.zeros(3), "has the shape [3], not [128, 128]"),
    ],
)
def test_a_checkpoint_of_another_shape_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: tuple[str, ...], value: Any, message: str
) -> None:
    mapper, embeds = files("default")
    checkpoint = read_pickle(mapper)
    encoder = type("NeTIPositionalEncoding", (), {"__module__": "models.positional_encoding"})
    public = ModuleType("models.positional_encoding")
    public.NeTIPositionalEncoding = encoder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "models", ModuleType("models"))
    monkeypatch.setitem(sys.modules, "models.positional_encoding", public)
    w = vars(checkpoint["encoder"])["w"]
    checkpoint["encoder"] = encoder()
    checkpoint["encoder"].w = w
    torch.save(checkpoint, tmp_path / "mapper.pt")
    load_reference_concept(tmp_path / "mapper.pt", embeds)

    inner = checkpoint
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    torch.save(checkpoint, tmp_path / "mapper.pt")
    with pytest.raises(UserError) as caught:
        load_reference_concept(tmp_path / "mapper.pt", embeds)
    line = str(caught.value)
    assert "not a mapper checkpoint this version understands" in line and message in line
    assert "\n" not in line and len(line) < 600
