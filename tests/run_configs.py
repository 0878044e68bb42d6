"""The fewest keys of a training config, and what is wrong with others."""

from __future__ import annotations

from pathlib import Path

import pytest

from neti.training.config.run import RunConfig
from neti.utils.config.parsing import parse_config
from neti.utils.errors import UserError

REQUIRED = ["--log.exp_name", "toy", "--data.train_data_dir", "images", "--data.placeholder_token", "<toy>"]


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
