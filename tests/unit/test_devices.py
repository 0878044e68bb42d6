"""Devices by name; one that is absent is an error, never a silent fall-back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from neti.utils.devices import pick_device
from neti.utils.errors import UserError

ROOT = Path(__file__).parents[2]


def test_auto_and_cpu_are_always_there() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else pick_device("auto").type)


def test_a_name_that_is_no_device_is_told_with_its_key() -> None:
    with pytest.raises(UserError, match=r"optim\.device = 'gpu' is no device; write auto, cpu, mps, cuda or cuda:N"):
        pick_device("gpu", "optim.device")


def test_cuda_asked_for_but_absent_is_told() -> None:
    absent = f"cuda:{torch.cuda.device_count()}" if torch.cuda.is_available() else "cuda"
    with pytest.raises(UserError, match=f"device = '{absent}', but ") as caught:
        pick_device(absent)
    assert "\n" not in str(caught.value)


def test_versions_are_recorded_where_a_package_is_not_installed() -> None:
    """As on a machine without a network, where this project is used from its folder."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from utils.devices import library_versions as found; "
    program = [sys.executable, "-I", "-S", "-c", code + "print(found()['torch'])"]
    assert subprocess.run(program, capture_output=True, text=True, check=True).stdout == "not installed\n"
