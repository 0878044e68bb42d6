"""`scripts/concept.py`: looking into concept files and converting them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from frames import created
from safetensors.torch import load_file

from neti.models.concepts.concept import Concept
from neti.models.concepts.public_code import load_reference_concept
from neti.models.methods import XTI, NeTI, NeTIConfig, TextualInversion, WordVectorsConfig

SCRIPT = Path(__file__).parents[2] / "scripts" / "concept.py"
CHECKPOINT = Path(__file__).parents[1] / "data" / "reference" / "default"
PAIR = (CHECKPOINT / "mapper-steps-7.pt", CHECKPOINT / "learned_embeds-steps-7.bin")
Command = Callable[..., int]


@pytest.fixture
def command() -> Command:
    spec = importlib.util.spec_from_file_location("concept_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return lambda *words: script.main([str(word) for word in words])


def test_convert_keeps_the_concept_of_the_public_code(command: Command, tmp_path: Path) -> None:
    output = tmp_path / "toy.safetensors"
    assert command("convert", *PAIR, output) == 0
    expected, converted = load_reference_concept(*PAIR), Concept.load(output)
    assert converted.placeholder == expected.placeholder == "<toy>"
    assert (expected.metadata["base_model"], converted.metadata["base_model"]) == ("/path/to/tiny-sd", "tiny-sd")
    t = torch.tensor([0, 500, 999])
    with torch.no_grad():
        assert torch.equal(converted.method.vectors(t).words, expected.method.vectors(t).words)


def test_fp16_halves_the_file(command: Command, tmp_path: Path) -> None:
    full, half, again = (tmp_path / f"{name}.safetensors" for name in ("full", "half", "again"))
    assert command("convert", *PAIR, full) == 0
    assert command("convert", *PAIR, half, "--dtype", "fp16") == 0
    assert half.stat().st_size < 0.6 * full.stat().st_size
    assert command("convert", full, again, "--dtype", "fp16") == 0, "our own files convert as well"
    assert again.read_bytes() == half.read_bytes()
    Concept.load(half)


def test_info_prints_the_metadata(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "toy.safetensors"
    command("convert", *PAIR, output)
    capsys.readouterr()
    assert command("info", output) == 0
    message = capsys.readouterr().out
    for words in ("placeholder: <toy>", "super_category: teddy", "method: neti", "hidden_dim: 128", "norm_rule: joint"):
        assert words in message, message


def test_an_embedding_goes_out_and_comes_back(command: Command, tmp_path: Path, tiny_backbone_folder: Path) -> None:
    vector = torch.arange(32.0)
    method = created(TextualInversion, WordVectorsConfig(), 16, vector)
    concept, embedding, back = (tmp_path / name for name in ("a.safetensors", "learned_embeds.bin", "b.safetensors"))
    Concept(method, "<toy>", "teddy", {"base_model": "tiny"}).save(concept)
    assert command("export", concept, embedding) == 0
    assert command("convert", "--base_model", tiny_backbone_folder, "--placeholder", "<cat>", embedding, back) == 0
    converted = Concept.load(back)
    assert (converted.placeholder, converted.metadata["base_model"]) == ("<cat>", "tiny_backbone0")
    assert torch.equal(converted.method.vectors(torch.tensor([0])).words[0, 0], vector)
    assert command("export", back, embedding) == 2, "an old file is never overwritten"
    assert list(torch.load(embedding, weights_only=True)) == ["<toy>"]


def save_neti(path: Path, base_model: Path) -> NeTI:
    generator = torch.Generator().manual_seed(0)
    method = created(NeTI, NeTIConfig(), 16, torch.ones(32), generator).eval()
    Concept(method, "<toy>", "teddy", {"base_model": str(base_model)}).save(path)
    path.with_name("config.yaml").write_text(f"model: {{pretrained_model_name_or_path: {base_model}}}")
    return method


def test_a_neti_concept_goes_out_as_the_mean_of_its_layers_and_the_loss_is_told(
    command: Command, tmp_path: Path, tiny_backbone_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    concept, embedding, back = (tmp_path / name for name in ("a.safetensors", "toy.pt", "b.safetensors"))
    method = save_neti(concept, tiny_backbone_folder)
    assert command("export", concept, embedding) == 0
    message = capsys.readouterr().out.splitlines()
    assert message[0] == f"{embedding}: embedding <toy> of 32 numbers"
    assert "'teddy' is 1" in message[2]
    assert [line[:30].strip() for line in message[3:]] == [
        "timestep",
        "without the textual bypass",
        "+ held at timestep 500",
        "+ one vector for all layers",
    ]
    assert message[3].split()[1:] == ["900", "700", "500", "300", "100", "all"]
    assert all(float(number) > 0 for line in message[4:] for number in line[30:].split())
    assert command("convert", "--base_model", tiny_backbone_folder, embedding, back) == 0
    expected = method.vectors(torch.tensor([500])).words.mean(dim=0)
    with torch.no_grad():
        torch.testing.assert_close(Concept.load(back).method.vectors(torch.tensor([0])).words[0], expected)


def test_a_concept_goes_out_as_one_embedding_per_layer(
    command: Command, tmp_path: Path, tiny_backbone_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An XTI concept loses nothing by it."""
    method = created(XTI, WordVectorsConfig(), 16, torch.ones(32))
    with torch.no_grad():
        method.words.copy_(torch.arange(16.0 * 32).view(16, 1, 32))
    Concept(method, "<toy>", "teddy").save(tmp_path / "a.safetensors")
    output = tmp_path / "toy.safetensors"
    options = ("--per_layer", "--base_model", tiny_backbone_folder)
    assert command("export", *options, tmp_path / "a.safetensors", output) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("nothing is lost")
    files = sorted(path.name for path in tmp_path.glob("toy*"))
    assert len(files) == 16 and {"toy-IN01.safetensors", "toy-MID.safetensors", "toy-OUT11.safetensors"} <= set(files)
    [(token, vector)] = load_file(tmp_path / "toy-MID.safetensors").items()
    assert token == "<toy-MID>" and torch.equal(vector[0], method.words[6, 0])
    assert command("export", *options, tmp_path / "a.safetensors", output) == 2, "old files are never overwritten"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--timestep", "1000"], "must lie in 0..999"),
        (["--base_model", "gone/there/no"], "gone/there/no"),
        (["--base_model", "miniature"], "with text width 32 and 16 layers, but miniature has 128"),
        (["out.ckpt"], "ending chooses the format"),
        (["there.bin"], "exists"),
    ],
)
def test_mistakes_in_an_export_write_nothing(
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_backbone_folder: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    save_neti(Path("a.safetensors"), tiny_backbone_folder)
    Path("there.bin").write_bytes(b"precious")
    output = options if len(options) == 1 else [*options, "out.bin"]
    assert command("export", "a.safetensors", *output) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and message in error, error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "config.yaml", "there.bin"]
    assert Path("there.bin").read_bytes() == b"precious"


@pytest.mark.parametrize("option", [["--timestep", "500"], ["--per_layer"], ["--base_model", "miniature"]])
def test_what_makes_no_difference_is_not_ignored(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    method = created(TextualInversion, WordVectorsConfig(), 16, torch.ones(32))
    Concept(method, "<toy>", "teddy", {"base_model": "tiny"}).save(tmp_path / "a.safetensors")
    assert command("export", *option, tmp_path / "a.safetensors", tmp_path / "out.bin") == 2
    assert f"{option[0]}: makes no difference" in capsys.readouterr().err
    assert not (tmp_path / "out.bin").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["info", "gone.safetensors"], "gone.safetensors"),
        (["info", str(PAIR[0])], "mapper-steps-7.pt"),
        (["convert", str(PAIR[0]), "out.safetensors"], "learned_embeds"),
        (["convert", *map(str, PAIR), "out.bin"], ".safetensors"),
        (["convert", *map(str, PAIR), "there.safetensors"], "exists"),
        (["convert", str(PAIR[1]), str(PAIR[0]), "out.safetensors"], "mapper checkpoint"),
        (["convert", str(PAIR[1]), "out.safetensors"], "--base_model"),
        (["convert", str(PAIR[1]), "out.safetensors", "--placeholder", "<x>"], "--base_model"),
        (["convert", *map(str, PAIR), "out.safetensors", "--base_model", "miniature"], "are two"),
        (["convert", str(PAIR[1]), "out.safetensors", "--base_model", "gone/there/no"], "gone/there/no"),
        (["export", str(PAIR[0]), "out.bin"], "model '/path/to/tiny-sd': no such folder"),
        (["export", "gone.pt", "out.bin"], "gone.pt"),
        (["export", "--timestep", "9" * 5000, "there.safetensors", "out.bin"], "argument --timestep: invalid int"),
        (["convert", *map(str, PAIR), "x" * 250 + ".safetensors"], "longer than a file's name can be"),
        (["convert", "~nobody-of-this-name/x.pt", "out.safetensors"], "names a home folder that is not there"),
        (["convert"], "the following arguments are required"),
        (["conver"], "invalid choice: 'conver'"),
        (["info", "."], "cannot be read: it is a folder"),
        (["info", "x" * 300], "longer than a file's name can be"),
    ],
)
def test_mistakes_are_told_in_one_line(
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.safetensors").write_bytes(b"precious")
    assert command(*words) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and message in error, error
    assert [path.name for path in tmp_path.iterdir()] == ["there.safetensors"]
    assert Path("there.safetensors").read_bytes() == b"precious"
