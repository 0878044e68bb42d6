"""The inference config: the public code's files mean the same here, and its combinations are checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from neti.models.generation.config import Dtype, InferenceConfig
from neti.models.generation.mixtures import RuleConfig
from neti.utils.config.parsing import parse_config
from neti.utils.errors import UserError

PUBLIC_YAML = """\
input_dir: /path/to/experiments/exp_name
prompts_file_path: /path/to/prompts.txt
iteration: 250
seeds: [ 0, 1, 2, 3 ]
torch_dtype: fp16
"""
NAMED_YAML = """\
concepts: {mug: runs/mug, cat: cat.safetensors}
mixtures:
  blend:
    - {concept: mug}
    - {concept: cat, layers: [IN07, MID], timesteps: 0-600, truncation: 16}
    - {concept: mug, layers: OUT06-OUT11, timesteps: 300, truncation: null}
style_mixing:
  geometry: mug
  appearance: cat
  mixing_start: [900, 300]
prompts: ["{mug} next to {cat:16}", "a {}"]
inference_dir: images
"""
ENOUGH = ["--concept", "toys/toy.safetensors", "--prompts", "A photo of a {}"]

NAMED = ["--concepts", "{mug: a, cat: b}", "--prompts", "{mug}", "--inference_dir", "images"]
WORD = ["--word", "cat", "--prompts", "a {}", "--pretrained_model_name_or_path", "m", "--inference_dir", "images"]


def parse(*argv: str) -> InferenceConfig:
    return parse_config(InferenceConfig, argv)


def test_a_public_file_means_the_same_here(tmp_path: Path) -> None:
    path = tmp_path / "inference.yaml"
    path.write_text(PUBLIC_YAML)
    config = parse("--config_path", str(path))
    assert config.input_dir == Path("/path/to/experiments/exp_name")
    assert config.output_dir == Path("/path/to/experiments/exp_name/inference_250")
    assert config.prompts_file_path == Path("/path/to/prompts.txt")
    assert config.seeds == (0, 1, 2, 3)
    assert config.torch_dtype is Dtype.fp16
    assert config.truncations == (None,)  # the public code crashes when truncation_idxs is unset


def test_defaults_are_the_public_ones() -> None:
    config = parse(*ENOUGH)
    assert (config.seeds, config.truncation_idxs, config.torch_dtype) == ((42,), None, Dtype.fp16)
    assert (config.num_denoising_steps, config.guidance_scale) == (50, 7.5)
    assert config.output_dir == Path("toys/inference_toy")
    assert parse(*ENOUGH, "--inference_dir", "here").output_dir == Path("here")


def test_names_rules_and_columns_are_read(tmp_path: Path) -> None:
    path = tmp_path / "inference.yaml"
    path.write_text(NAMED_YAML)
    config = parse("--config_path", str(path))
    assert config.concepts == {"mug": Path("runs/mug"), "cat": Path("cat.safetensors")}
    assert config.mixtures == {
        "blend": (
            RuleConfig("mug"),
            RuleConfig("cat", "IN07,MID", (0, 600), 16),
            RuleConfig("mug", "OUT06-OUT11", (300, 300), None),
        )
    }
    assert config.style_mixing.names == {900: "mug-cat-900", 300: "mug-cat-300"}
    assert parse(*NAMED, "--concepts", "{mug: other}").concepts == {"mug": Path("other")}
    assert not parse(*NAMED).style_mixing.wanted


@pytest.mark.parametrize(
    ("written", "truncations"),
    [
        ("16", (16,)),
        ("[16, 64]", (16, 64)),
        ("0,16", (0, 16)),
        ("null", (None,)),
        ("None", (None,)),
        ("[null, 16]", (None, 16)),
    ],
)
def test_truncations_are_none_a_number_or_a_list(written: str, truncations: tuple[int | None, ...]) -> None:
    assert parse(*ENOUGH, "--truncation_idxs", written).truncations == truncations


def test_one_prompt_needs_no_list_and_is_not_taken_for_yaml() -> None:
    for prompt in ("{} on a beach", "A photo: {}", "*{}*", "no", "a, b and {}"):
        assert parse("--concept", "x", "--prompts", prompt).prompts == (prompt,)
    two = parse("--concept", "x", "--prompts", '["A photo of a {}", "{}, sketched"]')
    assert two.prompts == ("A photo of a {}", "{}, sketched")


def test_seed_ranges_and_dtype_aliases() -> None:
    config = parse(*ENOUGH, "--seeds", "0-2,7", "--torch_dtype", "float32")
    assert config.seeds == (0, 1, 2, 7)
    assert config.torch_dtype is Dtype.fp32


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--concept", "x"], "no prompts given; write prompts: "),
        (["--concept", "x", "--prompts", "[]"], "no prompts given; write prompts: "),
        (
            ["--concept", "x", "--prompts", "a {}", "--prompts_file_path", "p.txt"],
            "prompts and prompts_file_path are both given",
        ),
        (["--prompts", "a {}"], "no concept given; write concept: "),
        (["--prompts", "a {}", "--mapper_checkpoint_path", "m.pt"], "mapper_checkpoint_path and learned_embeds_path"),
        (["--prompts", "a {}", "--learned_embeds_path", "e.bin"], "mapper_checkpoint_path and learned_embeds_path"),
        ([*ENOUGH, "--batch_size", "10000000000"], "batch_size = '10000000000' (command line): must be at most 1024 ("),
        ([*NAMED, "--concepts", "{" + "7" * 12_000 + ": a}"], "concepts = '{777"),
        ([*NAMED, "--concepts", "{ä" + "7" * 300 + "ü!: a}"], "concepts: 'ä777"),
        ([*NAMED, "--mixtures", "{x: [{concept: mug, layers: [[MID]]}]}"], "mixtures = "),
        ([*NAMED, "--mixtures", "{x: [{concept: mug, timesteps: " + "9" * 5000 + "}]}"], "mixtures = "),
        ([*NAMED, "--mixtures", "{x: [{concept: mug, ? " + "y" * 12_000 + " : 1}]}"], "mixtures = "),
        ([*ENOUGH, "--input_dir", "run"], "concept and input_dir are both given"),
        ([*ENOUGH, "--truncation_idxs", "-1"], "truncation_idxs = '-1' (command line): must be at least 0"),
        (
            [*ENOUGH, "--truncation_idxs", "half"],
            "truncation_idxs = 'half' (command line): must be a whole number or null",
        ),
        ([*ENOUGH, "--seeds", "3-1"], "seeds = '3-1' (command line): the seed range \"3-1\" falls"),
        (
            [*ENOUGH, "--num_denoising_steps", "0"],
            "num_denoising_steps = '0' (command line): must be at least 1 and at most 1000",
        ),
        ([*ENOUGH, "--torch_dtype", "int8"], "torch_dtype = 'int8' (command line): must be one of: fp16, fp32, bf16"),
        ([*NAMED, "--concepts", "mug"], "concepts = 'mug' (command line): must hold names"),
        (
            [*NAMED, "--concepts", "{mug: [a]}"],
            "concepts = '{mug: [a]}' (command line): mug must be a path, not a list",
        ),
        ([*NAMED[:4]], "several concepts have no folder in common; write inference_dir: "),
        ([*NAMED, "--concepts", "{1: a}"], "concepts: '1' is no name; begin with a letter"),
        ([*NAMED, "--mixtures", "{mug: [{concept: cat}]}"], "mixtures: 'mug' is the name of a concept too"),
        ([*NAMED, "--mixtures", "{x: [{concept: dog}]}"], "mixtures.x: no concept is called 'dog'; concepts: mug, cat"),
        ([*NAMED, "--mixtures", "{x: []}"], "mixtures = '{x: []}' (command line): x must be a list of rules"),
        (
            [*NAMED, "--mixtures", "{x: [mug, {}, {concept: mug, layer: MID}, {concept: mug, timesteps: 9-1}]}"],
            "mixtures = '{x: [mug, {}, {concept: mug, layer: MID}, {concept: mug, timesteps: 9-1}]}' (command line): "
            "x, rule 1: must be written {concept: mug, layers: all, timesteps: 0-999}; x, rule 2: names no concept; "
            "write concept: and one of the names under concepts; x, rule 3: unknown key layer; did you mean layers?; "
            "x, rule 4: timesteps '9-1': must be all",
        ),
        ([*NAMED, "--style_mixing.geometry", "mug"], "style_mixing needs two concepts"),
        (
            [*NAMED, "--style_mixing.geometry", "mug", "--style_mixing.appearance", "dog"],
            "style_mixing: no concept is called 'dog'",
        ),
        (
            [*NAMED, "--concept", "c", "--style_mixing.geometry", "mug", "--style_mixing.appearance", "cat"],
            "style_mixing fills {} itself",
        ),
        (
            [*NAMED, "--style_mixing.geometry", "mug", "--style_mixing.mixing_start", "1000"],
            "style_mixing.mixing_start = '1000' (command line): must be at least 0 and at most 999",
        ),
        ([*WORD, "--concept", "x"], "word and concept are both given"),
        ([*WORD, "--concepts", "{a: b}"], "word and concepts are both given"),
        ([*WORD, "--truncation_idxs", "3"], "word and truncation_idxs are both given"),
        (WORD[:6], "word needs inference_dir"),
        ([*ENOUGH, "--device", "cuda:x"], "device = 'cuda:x' is no device"),
        ([*ENOUGH, "--promts", "x"], "unknown key promts = 'x' (command line); did you mean prompts?"),
    ],
)
def test_a_mistake_is_one_line(argv: list[str], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(*argv)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(expected)
    assert len(line) < 900


def test_more_images_than_anybody_draws_are_refused_before_they_are_listed() -> None:
    config = parse(*ENOUGH, "--seeds", "0-99999")
    config.check_count(10)
    with pytest.raises(UserError, match="11 prompts x 100000 seeds x 1 truncations are 1100000 images"):
        config.check_count(11)


def test_a_long_name_of_a_concept_makes_a_folder_that_a_file_system_takes() -> None:
    first, second = (parse("--prompts", "a {}", "--concept", "x" * 250 + end).output_dir.name for end in "ab")
    assert first != second and len(first) <= 120


def test_every_combination_of_settings_is_a_variant() -> None:
    words = ["--settings", "{beta: [0.6, 0.75], lock: global, edit_plain: [true, false]}"]
    config = parse_config(InferenceConfig, [*ENOUGH, *words])
    assert config.variants[0] == {"beta": 0.6, "lock": "global", "edit_plain": True}
    assert len(config.variants) == 4 and config.variants[-1] == {"beta": 0.75, "lock": "global", "edit_plain": False}
    assert parse_config(InferenceConfig, ENOUGH).variants == [None]
    for wrong in ("{beta: {a: 1}}", "{beta: [[1]]}", "{beta: []}", "{beta: nan}"):
        with pytest.raises(UserError, match="settings"):
            parse_config(InferenceConfig, [*ENOUGH, "--settings", wrong])
