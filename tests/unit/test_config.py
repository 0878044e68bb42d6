"""The training config: the public code's files mean the same here, and what is written is what is read."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from run_configs import REQUIRED, problem, write

from neti.training.config.options import LRSchedule, MixedPrecision, Tracker
from neti.training.config.run import EvalConfig, PESigmas, RunConfig
from neti.utils.config.parsing import parse_config, save_yaml, to_plain_dict
from neti.utils.images import SquareMode

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


def test_the_trackers_may_write_beside_the_run_and_where_an_absolute_path_says() -> None:
    for folder in ("../tb", "/tmp/tb"):
        parse_config(RunConfig, [*REQUIRED, "--log.logging_dir", folder])
    assert parse_config(RunConfig, [*REQUIRED, "--log.exp_name", "cats/tom"]).log.run_dir == Path("outputs/cats/tom")


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
