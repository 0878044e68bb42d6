"""The training config: the public code's files mean the same here, and each mistake is told in one line."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from neti.training.config.options import LRSchedule, MethodName, MixedPrecision, NormRule, Tracker
from neti.training.config.run import METHOD_GROUPS, DataConfig, EvalConfig, LogConfig, ModelConfig, PESigmas, RunConfig
from neti.utils.config.parsing import parse_config, save_yaml, to_plain_dict
from neti.utils.errors import UserError
from neti.utils.images import SquareMode

REQUIRED = ["--log.exp_name", "toy", "--data.train_data_dir", "images", "--data.placeholder_token", "<toy>"]

# Every key of the public code, away from its default, in the notations that its users write.
PUBLIC_YAML = """\
log:
  exp_name: 2023-05-24
  exp_dir: /path/to/experiments
  save_steps: 250
  logging_dir: tb
  report_to: wandb
  checkpoints_total_limit: 3
data:
  train_data_dir: /path/to/data/concept
  placeholder_token: <concept-name>
  super_category_token: teddy
  dataloader_num_workers: 4
  learnable_property: style
  repeats: 10
  resolution: 256
  center_crop: True
model:
  pretrained_model_name_or_path: /models/sd
  use_nested_dropout: False
  nested_dropout_prob: 0.25
  normalize_mapper_output: False
  target_norm: null
  use_positional_encoding: False
  pe_sigmas: {'sigma_t': 0.05, 'sigma_l': 1.0}
  num_pe_time_anchors: 5
  output_bypass: False
  revision: fp16
  mapper_checkpoint_path: /path/mapper-steps-250.pt
eval:
  validation_prompts: ["A photo of a {}", 'App icon of {}']
  num_validation_images: 2
  validation_seeds: [1, 2]
  validation_steps: 50
  num_denoising_steps: 25
optim:
  max_train_steps: 500
  learning_rate: 1e-3
  scale_lr: False
  train_batch_size: 1
  gradient_checkpointing: yes
  gradient_accumulation_steps: 1
  seed: 7
  lr_scheduler: constant_with_warmup
  lr_warmup_steps: 10
  adam_beta1: .8
  adam_beta2: 0.99
  adam_weight_decay: 0
  adam_epsilon: 1e-06
  mixed_precision: no
  allow_tf32: on
"""

# The defaults of the public code, from the run config that it writes into its checkpoints.
PUBLIC_DEFAULTS: dict[str, dict[str, Any]] = {
    "log": {
        "exp_dir": "outputs",
        "save_steps": 250,
        "logging_dir": "logs",
        "report_to": "tensorboard",
        "checkpoints_total_limit": None,
    },
    "data": {
        "super_category_token": "object",
        "dataloader_num_workers": 8,
        "learnable_property": "object",
        "repeats": 100,
        "resolution": 512,
        "center_crop": False,
    },
    "model": {
        "pretrained_model_name_or_path": "CompVis/stable-diffusion-v1-4",
        "use_nested_dropout": True,
        "nested_dropout_prob": 0.5,
        "normalize_mapper_output": True,
        "target_norm": None,
        "use_positional_encoding": True,
        "pe_sigmas": {"sigma_t": 0.03, "sigma_l": 2.0},
        "num_pe_time_anchors": 10,
        "output_bypass": True,
        "revision": None,
        "mapper_checkpoint_path": None,
    },
    "eval": {
        "validation_prompts": [
            "A photo of a {}",
            "A photo of a {} on a beach",
            "App icon of {}",
            "A painting of {} in the style of Monet",
        ],
        "num_validation_images": 4,
        "validation_seeds": [42, 420, 501, 5456],
        "validation_steps": 100,
        "num_denoising_steps": 50,
    },
    "optim": {
        "max_train_steps": 1000,
        "learning_rate": 0.001,
        "scale_lr": True,
        "train_batch_size": 2,
        "gradient_checkpointing": False,
        "gradient_accumulation_steps": 4,
        "seed": None,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_weight_decay": 0.01,
        "adam_epsilon": 1e-08,
        "mixed_precision": "no",
        "allow_tf32": False,
    },
}


def write(folder: Path, text: str) -> str:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def problems(*argv: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        parse_config(RunConfig, argv)
    return str(caught.value).splitlines()


def problem(*argv: str) -> str:
    (line,) = problems(*REQUIRED, *argv)
    return line


def test_a_public_file_means_the_same_here(tmp_path: Path) -> None:
    config = parse_config(RunConfig, ["--config_path", write(tmp_path, PUBLIC_YAML)])
    assert config.log.exp_name == "2023-05-24"
    assert config.log.run_dir == Path("/path/to/experiments/2023-05-24")
    assert config.log.tracker_dir == Path("/path/to/experiments/2023-05-24/tb")
    assert config.log.report_to is Tracker.wandb
    assert config.log.checkpoints_total_limit == 3
    assert config.data.train_data_dir == Path("/path/to/data/concept")
    assert config.data.placeholder_token == "<concept-name>"
    assert config.data.effective_square_mode is SquareMode.crop
    assert (config.data.repeats, config.data.resolution, config.data.dataloader_num_workers) == (10, 256, 4)
    assert config.model.pe_sigmas == PESigmas(0.05, 1.0)
    assert config.model.target_norm is None
    assert not config.model.use_positional_encoding
    assert config.eval.validation_prompts == ("A photo of a {}", "App icon of {}")
    assert config.eval.seeds == (1, 2)
    assert config.optim.learning_rate == 1e-3
    assert config.optim.gradient_checkpointing is True
    assert config.optim.lr_scheduler is LRSchedule.constant_with_warmup
    assert config.optim.adam_weight_decay == 0.0
    assert config.optim.mixed_precision is MixedPrecision.no  # YAML 1.1 itself would read False
    assert config.optim.allow_tf32 is True


def test_every_public_key_has_the_public_default() -> None:
    config = to_plain_dict(parse_config(RunConfig, REQUIRED))
    for group, defaults in PUBLIC_DEFAULTS.items():
        assert {key: config[group][key] for key in defaults} == defaults


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, PUBLIC_YAML)
    argv = [
        "--config_path",
        path,
        "--optim.learning_rate=5e-4",
        "--model.pe_sigmas.sigma_t",
        "0.1",
        "--eval.validation_seeds",
        "8-9",
    ]
    config = parse_config(RunConfig, argv)
    assert config.optim.learning_rate == 5e-4
    assert config.model.pe_sigmas == PESigmas(0.1, 1.0)
    assert config.eval.seeds == (8, 9)
    config = parse_config(RunConfig, ["--config_path", path, "--model.pe_sigmas", "{sigma_t: 0.2, sigma_l: 3}"])
    assert config.model.pe_sigmas == PESigmas(0.2, 3.0)


@pytest.mark.parametrize(
    ("argv", "overwrite", "dry_run"),
    [
        ([], False, False),
        (["--overwrite", "--dry_run"], True, True),
        (["--dry-run"], False, True),
        (["--overwrite", "true", "--dry_run", "false"], True, False),
        (["--overwrite=no", "--dry_run=yes"], False, True),
    ],
)
def test_flags_work_bare_and_with_a_value(argv: list[str], overwrite: bool, dry_run: bool) -> None:
    config = parse_config(RunConfig, [*argv, *REQUIRED])
    assert (config.overwrite, config.dry_run) == (overwrite, dry_run)


def test_a_saved_config_reads_back_equal(tmp_path: Path) -> None:
    config = parse_config(RunConfig, ["--config_path", write(tmp_path, PUBLIC_YAML)])
    config = dataclasses.replace(config, eval=EvalConfig(validation_truncations=(None, 16)), dry_run=True)
    save_yaml(config, tmp_path / "saved.yaml")
    assert parse_config(RunConfig, ["--config_path", str(tmp_path / "saved.yaml")]) == config


def test_an_empty_group_keeps_its_defaults(tmp_path: Path) -> None:
    assert (
        parse_config(RunConfig, ["--config_path", write(tmp_path, "eval:\noptim:\n"), *REQUIRED]).eval == EvalConfig()
    )


def test_null_seeds_count_from_zero() -> None:
    argv = [*REQUIRED, "--eval.validation_seeds", "null", "--eval.num_validation_images", "3"]
    assert parse_config(RunConfig, argv).eval.seeds == (0, 1, 2)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (
            ["--optim.learnig_rate", "3"],
            "unknown key optim.learnig_rate = '3' (command line); did you mean optim.learning_rate?",
        ),
        (["--learning_rate", "3"], "unknown key learning_rate = '3' (command line); did you mean optim.learning_rate?"),
        (
            ["--data.learning_rate", "3"],
            "unknown key data.learning_rate = '3' (command line); did you mean optim.learning_rate?",
        ),
        (
            ["--optim.zzz", "3"],
            "unknown key optim.zzz = '3' (command line); allowed in optim: max_train_steps, learning_rate, ",
        ),
        (
            ["--zzz"],
            "unknown key zzz = '' (command line); allowed here: log, data, model, eval, optim, resume, overwrite",
        ),
        (["--optim.max_train_steps", "ten"], "optim.max_train_steps = 'ten' (command line): must be a whole number"),
        (["--optim.max_train_steps", "2.5"], "optim.max_train_steps = '2.5' (command line): must be a whole number"),
        (["--optim.learning_rate", "fast"], "optim.learning_rate = 'fast' (command line): must be a number"),
        (["--optim.learning_rate", "nan"], "optim.learning_rate = 'nan' (command line): must be a number"),
        (["--optim.scale_lr", "maybe"], "optim.scale_lr = 'maybe' (command line): must be true or false"),
        (
            ["--optim.mixed_precision", "fp8"],
            "optim.mixed_precision = 'fp8' (command line): must be one of: no, fp16, bf16",
        ),
        (
            ["--data.square_mode", "squash"],
            "data.square_mode = 'squash' (command line): must be one of: stretch, crop, pad",
        ),
        (["--optim.learning_rate", "0"], "optim.learning_rate = '0' (command line): must be above 0"),
        (["--optim.train_batch_size", "0"], "optim.train_batch_size = '0' (command line): must be at least 1"),
        (
            ["--model.nested_dropout_prob", "1.5"],
            "model.nested_dropout_prob = '1.5' (command line): must be at least 0 and at most 1",
        ),
        (["--model.pe_sigmas.sigma_t", "-1"], "model.pe_sigmas.sigma_t = '-1' (command line): must be above 0"),
        (
            ["--model.pe_sigmas", "0.03"],
            "model.pe_sigmas = '0.03' (command line): must hold keys, written as `key: value`",
        ),
        (
            ["--eval.validation_truncations", "[null, -4]"],
            "eval.validation_truncations = '[null, -4]' (command line): must be at least 0",
        ),
        (
            ["--eval.validation_seeds", "1 2"],
            "eval.validation_seeds = '1 2' (command line): '1 2' is neither a seed nor a range",
        ),
        (["--optim.seed", "-1"], "optim.seed = '-1' (command line): must be at least 0"),
        (
            ["--eval.validation_prompts", "[A photo of {}]"],
            "eval.validation_prompts = '[A photo of {}]' (command line): not a valid YAML list",
        ),
        (
            ["--eval.validation_prompts", "A photo"],
            "eval.validation_prompts: 'A photo' has no {}; write {} where the concept belongs",
        ),
        (
            ["--eval.validation_seeds", "[1, 2]"],
            "eval.num_validation_images = 4, but eval.validation_seeds lists 2; give as many seeds",
        ),
        (
            ["--data.placeholder_token", "two words"],
            "data.placeholder_token = 'two words' must be one word without spaces",
        ),
        (
            ["--data.center_crop", "true", "--data.square_mode", "pad"],
            "data.center_crop = true contradicts data.square_mode = pad",
        ),
        (["--optim.device", "gpu"], "optim.device = 'gpu' is no device; write auto, cpu, mps, cuda or cuda:N"),
        (["--resume", "latest", "--overwrite"], "resume and overwrite exclude each other"),
        (["--data.train_data_dir="], "data.train_data_dir = '' (command line): must be a path"),
        (
            ["--optim", "{seed: 1"],
            "optim = '{seed: 1' (command line): not a valid YAML list or mapping (line 1, column 9: ",
        ),
        (
            ["--optim.num_train_epochs", "3"],
            "unknown key optim.num_train_epochs = '3' (command line); there are no epochs here; write "
            "optim.max_train_steps: epochs x images x data.repeats / (train_batch_size x ",
        ),
        (
            ["--optim.lr_warmup_steps", "10"],
            "optim.lr_warmup_steps = 10 does nothing under optim.lr_scheduler = constant; write constant_with_warmup",
        ),
        (
            ["--data.resolution", "80000000"],
            "data.resolution = '80000000' (command line): must be at most 8192 (a step at that size fills every GPU)",
        ),
        (["--data.repeats", "1" + "0" * 15], f"data.repeats = '1{'0' * 15}' (command line): must be at most 100000 ("),
        (
            ["--eval.num_validation_images", "1000000000000", "--eval.validation_seeds", "null"],
            "eval.num_validation_images = '1000000000000' (command line): must be at most 100 (",
        ),
        (
            ["--optim.gradient_accumulation_steps", "1" + "0" * 26],
            f"optim.gradient_accumulation_steps = '1{'0' * 26}' (command line): must be a whole number of 64 bits",
        ),
        (["--optim.train_batch_size", "10000000000"], "optim.train_batch_size = '10000000000' (command line): must be"),
        (
            ["--optim.train_batch_size", "4096", "--optim.gradient_accumulation_steps", "4096"],
            "optim.train_batch_size x optim.gradient_accumulation_steps = 16777216: must be at most 1000000, ",
        ),
        (["--log.exp_name", "../other"], "log.exp_name = '../other' must be a folder in log.exp_dir"),
        (["--log.exp_name", "a/.."], "log.exp_name = 'a/..' must be a folder in log.exp_dir"),
        (["--log.exp_name", "/tmp/x"], "log.exp_name = '/tmp/x' must be a folder in log.exp_dir"),
        (["--log.exp_name", "n" * 300], f"log.exp_name = '{'n' * 50}"),
        (
            ["--log.logging_dir", "../../tb"],
            "log.logging_dir = '../../tb' leads out of log.exp_dir; if that is meant, write the absolute path",
        ),
        (["--log.project", "a/b"], "log.project = 'a/b' must be a short name without slashes"),
        (["--resume"], "--resume needs a value: --resume VALUE"),
        (
            ["eval.validation_steps=3"],
            "unexpected argument 'eval.validation_steps=3'; options are written --group.key value",
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(argv: list[str], expected: str) -> None:
    assert problem(*argv).startswith(expected)


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        ("optim:\n  seed: x\n", "optim.seed = 'x' ({path}): must be a whole number"),
        ("optim:\n  seed: [1]\n", "optim.seed = ['1'] ({path}): must be a whole number or null, not a list"),
        ("optim: 3\n", "optim = '3' ({path}): must hold keys, written as `key: value`"),
        ("optm:\n  seed: 3\n", "unknown key optm = {{'seed': '3'}} ({path}); did you mean optim?"),
        ("- a\n- b\n", "{path}: must hold keys, written as `key: value`"),
        ("optim:\n  seed: 1\n seed: 2\n", "the config file {path} is not valid YAML: line 3, column 2: "),
        ("optim:\n\tseed: 1\n", "the config file {path} is not valid YAML: line 2, column 1: "),
        (
            "optim:\n  seed: 1\n  seed: 2\n",
            "the config file {path} is not valid YAML: line 3, column 3: seed is given twice",
        ),
        ("eval:\n  validation_prompts: {a: b}\n", "eval.validation_prompts = {{'a': 'b'}} ({path}): must be a list"),
        (
            "eval:\n  validation_prompts:\n  - A photo: {}\n",
            "eval.validation_prompts = [{{'A photo': {{}}}}] ({path}): must be a list",
        ),
    ],
)
def test_a_mistake_in_the_file_is_one_line_that_names_the_file(tmp_path: Path, yaml: str, expected: str) -> None:
    path = write(tmp_path, yaml)
    assert problem("--config_path", path).startswith(expected.format(path=path))


def test_a_file_that_is_no_config_is_one_line(tmp_path: Path) -> None:
    missing, binary = tmp_path / "none.yaml", tmp_path / "image.png"
    binary.write_bytes(b"\x89PNG\r\n\x1a\n\x00\x01")
    assert problem("--config_path", str(missing)) == f"the config file {missing} does not exist; check the path"
    assert problem("--config_path", str(binary)).startswith(f"the config file {binary} is not UTF-8 text (byte 0)")
    assert problem("--config_path", str(tmp_path)).startswith(f"the config file {tmp_path} cannot be read: ")
    assert problem("--config_path") == "--config_path needs a value: --config_path VALUE"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optim: " + "[" * 5000, "line 1, column 23: more than 16 levels deep"),
        ("optim: " + "{a: " * 5000, "more than 16 levels deep"),
        ("- " * 5000 + "a", "more than 16 levels deep"),
        ("".join(" " * level + "a:\n" for level in range(500)), "more than 16 levels deep"),
        ("\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else ''}]" for n in range(12)), "50000 values"),
        ("a: &a [*a]", "recursive"),
        ("a: '\0'", "is no text file: character 4 is '\\x00'"),
        (f"*{'a' * 12_000}", "found undefined alias 'aaa"),
        ("x" * 2**21, "has more than 1 MiB; is it the right file?"),
    ],
    ids=["brackets", "braces", "dashes", "indents", "alias bomb", "alias in itself", "NUL", "long word", "large"],
)
def test_a_hostile_file_is_one_short_line(tmp_path: Path, text: str, expected: str) -> None:
    line = problem("--config_path", write(tmp_path, text))
    assert expected in line
    assert len(line) < 600


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        ('log: {exp_name: "a\\0b"}', "log.exp_name = 'a\\x00b' ({path}): must be text, without control characters"),
        ('log: {exp_name: "\\ud800"}', "log.exp_name = '\\ud800' ({path}): must be text, without control characters"),
        ('log: {exp_dir: "a\\0b"}', "log.exp_dir = 'a\\x00b' ({path}): must be a path, without control characters"),
        ('"a\\0b": 1', "unknown key 'a\\x00b' = '1' ({path}); allowed here: log, "),
        ("optim: {seed: " + "9" * 400 + "}", "optim.seed = '999"),
        ("optim: {seed: " + "9" * 5000 + "}", "optim.seed = '999"),
        ("optim: {learning_rate: " + "9" * 400 + "}", "optim.learning_rate = '999"),
        ("optim: {max_train_steps: -" + "9" * 19 + "}", "must be a whole number of 64 bits"),
        ("? " + "x" * 12_000 + "\n: 1", "unknown key 'xxx"),
        ("optim: {seed: " + "x" * 12_000 + "}", "optim.seed = 'xxx"),
        ("model: {pretrained_model_name_or_path: ''}", "model.pretrained_model_name_or_path = '' ({path}): must be a "),
        ("log: {exp_dir: ~nobody-of-this-name/x}", "names a home folder that is not there"),
        ("eval: {validation_seeds: [1, [2]]}", "is neither a seed nor a range"),
        ("eval: {validation_seeds: " + "9" * 5000 + "}", "is neither a seed nor a range"),
    ],
)
def test_a_value_that_nothing_could_hold_is_one_short_line(tmp_path: Path, yaml: str, expected: str) -> None:
    path = write(tmp_path, yaml)
    line = problem("--config_path", path) if "exp_name" not in yaml else problems("--config_path", path)[0]
    assert expected.format(path=path) in line
    assert len(line) < 700


def test_a_file_that_is_no_config_does_not_fill_the_screen(tmp_path: Path) -> None:
    lines = problems("--config_path", write(tmp_path, "\n".join(f"key{n}: 1" for n in range(1000))))
    assert lines[20:] == ["and 983 more mistakes"]  # three keys are missing besides


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, "log: {exp_dir: ~/runs}\nmodel: {pretrained_model_name_or_path: ~/sd}\n")
    config = parse_config(
        RunConfig, ["--config_path", "~/run.yaml", *REQUIRED, "--data.train_data_dir=~/photos", "--resume=~/runs/1"]
    )
    assert config.log.exp_dir == tmp_path / "runs"
    assert config.model.pretrained_model_name_or_path == str(tmp_path / "sd")
    assert config.data.train_data_dir == tmp_path / "photos"
    assert config.resume == str(tmp_path / "runs/1")


@pytest.mark.parametrize("option", ["--optim.seed", "--model.mapper_checkpoint_path", "--model.revision"])
def test_an_unset_variable_of_a_shell_is_not_null(option: str) -> None:
    told = f"{option} is empty, as an unset variable is; leave it out, or write {option} null"
    assert problem(option, "") == problem(f"{option}=") == told


def test_the_trackers_may_write_beside_the_run_and_where_an_absolute_path_says() -> None:
    for folder in ("../tb", "/tmp/tb"):
        parse_config(RunConfig, [*REQUIRED, "--log.logging_dir", folder])
    assert parse_config(RunConfig, [*REQUIRED, "--log.exp_name", "cats/tom"]).log.run_dir == Path("outputs/cats/tom")


def test_all_mistakes_are_told_at_once() -> None:
    lines = problems(
        "--log.exp_nam", "toy", "--data.train_data_dir", "images", "--optim.seed", "x", "--optim.max_train_steps", "0"
    )
    assert len(lines) == 4
    assert lines[0].endswith("did you mean log.exp_name?")  # and log.exp_name is not reported missing as well
    assert lines[3].startswith(
        "data.placeholder_token is missing; write it in a YAML file (--config_path X.yaml) or pass"
    )
    crossed = problems(*REQUIRED, "--resume", "latest", "--overwrite", "--optim.device", "gpu", "--log.exp_name", " ")
    assert len(crossed) == 3


def test_a_later_file_wins_over_an_earlier_one_and_the_command_line_over_both(tmp_path: Path) -> None:
    recipe, preset = write(tmp_path, PUBLIC_YAML), tmp_path / "preset.yaml"
    preset.write_text("model: {mapper_hidden_dim: 24, pe_sigmas: {sigma_l: 3}, num_pe_time_anchors: 2}")
    both = ["--config_path", recipe, f"--config_path={preset}", "--model.num_pe_time_anchors", "7"]
    plain, config = parse_config(RunConfig, ["--config_path", recipe]), parse_config(RunConfig, both)
    changed = dataclasses.replace(
        plain.model,
        mapper_hidden_dim=24,
        pe_sigmas=dataclasses.replace(plain.model.pe_sigmas, sigma_l=3.0),
        num_pe_time_anchors=7,
    )
    assert config == dataclasses.replace(plain, model=changed)
    preset.write_text("model: {mapper_hidden_dims: 24}")
    assert f"unknown key model.mapper_hidden_dims = '24' ({preset})" in problem(*both)


def test_a_wrong_method_is_told_by_the_parser() -> None:
    told = "must be one of: neti, textual_inversion, xti, perfusion"
    assert problem("--model.method", "TI") == f"model.method = 'TI' (command line): {told}"


@pytest.mark.parametrize("method", [name for name in MethodName if name != "neti"])
def test_settings_of_neti_are_not_ignored_by_other_methods(method: MethodName) -> None:
    argv = [*REQUIRED, "--model.method", method.value]
    assert parse_config(RunConfig, [*argv, "--model.revision", "main"]).model.method is method
    assert parse_config(RunConfig, [*argv, "--model.use_time", "true"]).model.use_time, "a default changes nothing"
    changes = {
        "use_nested_dropout": False,
        "nested_dropout_prob": 0.25,
        "normalize_mapper_output": False,
        "target_norm": 0.5,
        "use_positional_encoding": False,
        "pe_sigmas": PESigmas(0.1, 2.0),
        "num_pe_frequencies": 64,
        "num_pe_time_anchors": 5,
        "output_bypass": False,
        "norm_rule": NormRule.base,
        "bypass_alpha": 0.1,
        "mapper_hidden_dim": 64,
        "use_time": False,
        "use_layer": False,
    }
    common = {"pretrained_model_name_or_path", "revision", "mapper_checkpoint_path", "method", *METHOD_GROUPS}
    common |= {"num_vectors", "key_lock", "start_from", "encoder"}  # of some of the others too
    assert changes.keys() | common == {field.name for field in dataclasses.fields(ModelConfig)}, "none is forgotten"
    for key, value in changes.items():
        (line,) = ModelConfig(method=method, **{key: value}).problems()  # type: ignore[arg-type]
        assert f"model.method = {method} has no model.{key};" in line
    both = problem("--model.method", method.value, "--model.norm_rule", "base", "--model.output_bypass", "no")
    assert "model.output_bypass, model.norm_rule" in both


@pytest.mark.parametrize("method", list(MethodName))
def test_several_vectors_are_for_the_methods_that_have_them(method: MethodName) -> None:
    lines = ModelConfig(method=method, num_vectors=4).problems()
    if method in ("textual_inversion", "xti"):
        assert not lines
        from neti.training.coach.plan import method_config

        assert method_config(ModelConfig(method=method, num_vectors=4)).num_vectors == 4
    else:
        assert lines == [
            f"model.method = {method} has no model.num_vectors; leave it out, or write model.method: textual_inversion "
            "or xti"
        ]


def test_a_concept_must_depend_on_something() -> None:
    assert "both false" in problem("--model.use_time", "false", "--model.use_layer", "false")


@pytest.mark.parametrize("method", [name for name in MethodName if name != "perfusion"])
def test_settings_of_perfusion_are_not_ignored_by_other_methods(method: MethodName) -> None:
    line = problem("--model.method", method.value, "--model.perfusion.beta", "0.5")
    assert f"model.method = {method} has no model.perfusion; leave out what belongs to perfusion" in line


def test_short_templates_are_for_objects() -> None:
    wrong = problem("--data.templates", "short", "--data.learnable_property", "style")
    assert "data.templates = short: there are none for styles" in wrong


def test_a_config_made_in_python_is_checked_as_well() -> None:
    config = RunConfig(LogConfig("toy", save_steps=0), DataConfig(Path("images"), "{}"))
    with pytest.raises(UserError) as caught:
        config.validate()
    assert str(caught.value).splitlines()[0] == "log.save_steps = 0: must be at least 1"
    assert len(str(caught.value).splitlines()) == 2


def test_help_lists_every_key_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_config(RunConfig, ["--help"])
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for group in dataclasses.fields(RunConfig):
        if dataclasses.is_dataclass(group.type):
            for field in dataclasses.fields(group.type):
                assert f"--{group.name}.{field.name}" in shown
    assert "How an image becomes a square" in shown


def test_reading_a_config_does_not_load_pytorch() -> None:
    code = "import sys, neti.training.config.run, neti.models.generation.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
