"""The inference config: the public code's files mean the same here, and its combinations are checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from neti.training.inference_config import Dtype, InferenceConfig
from neti.utils.config_io import parse_config
from neti.utils.errors import UserError

PUBLIC_YAML = """\
input_dir: /path/to/experiments/exp_name
prompts_file_path: /path/to/prompts.txt
iteration: 250
seeds: [ 0, 1, 2, 3 ]
torch_dtype: fp16
"""
ENOUGH = ["--concept", "toys/toy.safetensors", "--prompts", "A photo of a {}"]


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
        (["--prompts", "a {}", "--mapper_checkpoint_path", "m.pt"], "mapper_checkpoint_path needs learned_embeds_path"),
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
        ([*ENOUGH, "--device", "cuda:x"], "device = 'cuda:x' is no device"),
        ([*ENOUGH, "--promts", "x"], "unknown key promts = 'x' (command line); did you mean prompts?"),
    ],
)
def test_a_mistake_is_one_line(argv: list[str], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(*argv)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(expected)
