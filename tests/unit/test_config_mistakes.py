"""Each mistake in a training config is reported in one line, and all of them at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from run_configs import REQUIRED, problem, problems, write

from neti.training.config.run import DataConfig, LogConfig, RunConfig
from neti.utils.errors import UserError


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


@pytest.mark.parametrize("option", ["--optim.seed", "--model.mapper_checkpoint_path", "--model.revision"])
def test_an_unset_variable_of_a_shell_is_not_null(option: str) -> None:
    message = f"{option} is empty, as an unset variable is; leave it out, or write {option} null"
    assert problem(option, "") == problem(f"{option}=") == message


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


def test_short_templates_are_for_objects() -> None:
    wrong = problem("--data.templates", "short", "--data.learnable_property", "style")
    assert "data.templates = short: there are none for styles" in wrong


def test_a_config_made_in_python_is_checked_as_well() -> None:
    config = RunConfig(LogConfig("toy", save_steps=0), DataConfig(Path("images"), "{}"))
    with pytest.raises(UserError) as caught:
        config.validate()
    assert str(caught.value).splitlines()[0] == "log.save_steps = 0: must be at least 1"
    assert len(str(caught.value).splitlines()) == 2


def test_epochs_are_told_in_steps_where_the_photos_are_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("no photo")
    words = ["--data.train_data_dir", str(tmp_path), "--data.repeats", "7", "--optim.train_batch_size", "4"]
    assert "write optim.max_train_steps: 4, which is epochs x" in problem(*words, "--num_train_epochs", "3")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "write optim.max_train_steps: 2, which is epochs x" in problem(*words, "--optim.num_train_epochs", "3")
    for unknown in ("x", "1e400", "[1]"):
        assert "write optim.max_train_steps: epochs x images" in problem(*words, "--num_train_epochs", unknown)
