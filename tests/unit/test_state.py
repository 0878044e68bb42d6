"""Training states: complete, restricted, and refused where they do not belong."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from neti.training.coach.run_folder import RunFolder
from neti.training.coach.state import WEIGHTS, TrainingState, check_unchanged, check_weights, state_to_resume
from neti.utils.errors import UserError


def make_state(step: int = 3, **changes: Any) -> TrainingState:
    config = {
        "log": {"exp_name": "a"},
        "optim": {"lr_scheduler": "constant", "max_train_steps": 10, "learning_rate": 0.1, "device": "cpu"},
        "eval": {"validation_steps": 5},
    }
    values: dict[str, Any] = {
        "step": step,
        "seed": 2**63 - 1,
        "method": {"weight": torch.arange(6.0).reshape(2, 3) / 7},
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}},
            "param_groups": [{"lr": 0.1}],
        },
        "schedule": {"last_epoch": 3, "base_lrs": [0.1]},
        "scaler": None,
        "config": config,
        "facts": {"the number of processes": 1},
    }
    return TrainingState(**{**values, **changes})


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run", tmp_path / "run" / "logs")


def test_everything_comes_back(run: RunFolder) -> None:
    state = make_state()
    state.save(run.state(3))
    loaded = TrainingState.load(run.state(3))
    assert torch.equal(loaded.method["weight"], state.method["weight"])
    assert torch.equal(loaded.optimizer["state"][0]["exp_avg"], torch.ones(2))
    for name in ("step", "seed", "schedule", "scaler", "config", "facts"):
        assert getattr(loaded, name) == getattr(state, name)


class Hostile:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_hostile_file_executes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "step-1.pt"
    torch.save({"format": 1, "step": Hostile(tmp_path / "executed")}, path)
    with pytest.raises(UserError, match="no training state"):
        TrainingState.load(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "other format"])
def test_a_damaged_file_is_named(run: RunFolder, damage: str) -> None:
    path = run.state(3)
    make_state().save(path)
    if damage == "other format":
        torch.save({"format": 99}, path)
    else:
        path.write_bytes({"truncated": path.read_bytes()[:-100], "empty": b"", "foreign": b"hello"}[damage])
    with pytest.raises(UserError, match=r"step-3\.pt is no training state"):
        TrainingState.load(path)


def test_every_byte_of_a_state_is_checked(run: RunFolder) -> None:
    path = run.state(3)
    make_state().save(path)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        spots = [content.index(archive.read(entry)) for entry in archive.infolist() if entry.file_size]
    assert len(spots) > 4
    for spot in spots:
        path.write_bytes(content[:spot] + bytes([content[spot] ^ 1]) + content[spot + 1 :])
        with pytest.raises(UserError, match=r"step-3\.pt is no training state of this project, or damaged"):
            TrainingState.load(path)


def test_a_packed_archive_is_not_unpacked(run: RunFolder) -> None:
    path = run.state(3)
    make_state().save(path)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(run.path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in archive.infolist():
            packed.writestr(entry.filename, archive.read(entry))
    with pytest.raises(UserError, match=r"packed\.pt is no training state"):
        TrainingState.load(run.path / "packed.pt")


NAN = {"weight": torch.tensor([1.0, float("nan")])}
SHAPES = [{"more": 1}, {"seed": None}, {"step": "3"}, {"method": [1]}, {"facts": 7}]


@pytest.mark.parametrize("change", [*SHAPES, {"step": -1}, {"step": 10**12}, {"seed": -1}, {"method": NAN}])
def test_a_state_of_other_entries_is_refused(run: RunFolder, change: dict[str, Any]) -> None:
    record = {"format": 1, **vars(make_state()), **change}
    run.states_folder.mkdir(parents=True)
    torch.save({key: value for key, value in record.items() if value is not None or key == "scaler"}, run.state(3))
    with pytest.raises(UserError, match="has not the entries of a training state"):
        TrainingState.load(run.state(3))


def test_a_state_that_cannot_be_read_is_not_called_damaged(run: RunFolder) -> None:
    run.state(3).mkdir(parents=True)
    with pytest.raises(UserError, match=r"step-3\.pt cannot be read: Is a directory"):
        TrainingState.load(run.state(3))


def test_a_key_that_the_saved_run_did_not_know_counts_as_its_default() -> None:
    state = make_state()
    config = {**state.config, "model": {"use_layer": True, "pe_sigmas": {"sigma_t": 0.03}}}
    check_unchanged(state, config, state.facts)
    config["model"]["pe_sigmas"]["sigma_t"] = 0.1
    with pytest.raises(UserError, match=r"model\.pe_sigmas\.sigma_t was 0\.03 when the run was saved and is 0\.1 now"):
        check_unchanged(state, config, state.facts)


def test_fewer_steps_than_there_are_cannot_be_asked_for() -> None:
    state = make_state(step=6)
    config = {**state.config, "optim": {**state.config["optim"], "max_train_steps": 3}}
    with pytest.raises(UserError, match=r"optim\.max_train_steps = 3, but the run is already at step 6"):
        check_unchanged(state, config, state.facts)


def test_the_same_weights_may_lie_elsewhere() -> None:
    moved = {"model": {"pretrained_model_name_or_path": "elsewhere", "revision": "main"}}
    state = make_state()
    with pytest.raises(UserError, match=r"model\.pretrained_model_name_or_path was CompVis"):
        check_unchanged(state, {**state.config, **moved}, state.facts)
    state.facts[WEIGHTS] = {"text_encoder": 1, "unet": 2}
    check_unchanged(state, {**state.config, **moved}, {"the number of processes": 1})
    check_weights(state, {"text_encoder": 1})  # all that a dry run loads
    with pytest.raises(UserError, match=r"weights of the base model \(unet\) are not those"):
        check_weights(state, {"text_encoder": 1, "unet": 3})


def test_only_settings_that_matter_must_stay() -> None:
    state = make_state()
    harmless = {
        "log": {"exp_name": "b"},
        "optim": {**state.config["optim"], "max_train_steps": 20, "device": "cuda"},
        "eval": {"validation_steps": 1},
    }
    check_unchanged(state, harmless, state.facts)


@pytest.mark.parametrize(
    ("optim", "facts", "named"),
    [
        ({"learning_rate": 0.2}, {}, "optim.learning_rate was 0.1 when the run was saved and is 0.2 now"),
        ({"lr_scheduler": "cosine"}, {}, "optim.lr_scheduler was constant"),
        ({"new_key": 1}, {}, "optim.new_key was None"),
        ({}, {"the number of processes": 2}, "the number of processes was 1"),
    ],
)
def test_each_changed_setting_is_named(optim: dict[str, Any], facts: dict[str, Any], named: str) -> None:
    state = make_state()
    config = {**state.config, "optim": {**state.config["optim"], **optim}}
    with pytest.raises(UserError, match=named):
        check_unchanged(state, config, {**state.facts, **facts})


def test_the_length_matters_to_a_schedule_that_depends_on_it() -> None:
    state = make_state()
    state.config["optim"]["lr_scheduler"] = "cosine"
    config = {**state.config, "optim": {**state.config["optim"], "max_train_steps": 20}}
    with pytest.raises(UserError, match=r"optim\.max_train_steps was 10"):
        check_unchanged(state, config, state.facts)


def test_latest_is_the_highest_step_and_not_the_last_name(run: RunFolder) -> None:
    for step in (9, 100, 20):
        make_state(step).save(run.state(step))
    (run.states_folder / ".step-200.pt.1.tmp").write_bytes(b"half")
    (run.states_folder / "step-x.pt").write_bytes(b"not ours")
    resumed = state_to_resume("latest", False, run)
    assert resumed is not None and resumed.step == 100
    run.rotate_states(2)
    assert [path.name for path in run.states()] == ["step-20.pt", "step-100.pt"]
    run.begin({"run_folder": ""}, overwrite=False)
    assert sorted(path.name for path in run.states_folder.iterdir()) == ["step-100.pt", "step-20.pt", "step-x.pt"]


def test_when_a_run_may_start(run: RunFolder) -> None:
    assert state_to_resume(None, False, run) is None
    assert state_to_resume("latest", False, run) is None  # nothing there: it starts
    run.path.mkdir()
    (run.path / ".derived.json.77.tmp").write_text("{")
    (run.path / ".lock").touch()
    assert state_to_resume(None, False, run) is None  # what a killed run leaves first
    run.begin({"run_folder": ""}, overwrite=False)
    assert state_to_resume("latest", False, run) is None
    assert state_to_resume(None, True, run) is None
    with pytest.raises(UserError, match="not empty"):
        state_to_resume(None, False, run)


def test_files_that_no_run_wrote_are_not_replaced(run: RunFolder) -> None:
    run.path.mkdir()
    run.config.write_text("somebody's")
    with pytest.raises(UserError, match="other files"):
        state_to_resume("latest", False, run)
    with pytest.raises(UserError, match=r"did not write: config\.yaml; move them away"):
        state_to_resume(None, True, run)
    run.config.unlink()
    run.begin({"run_folder": ""}, overwrite=False)
    make_state(3).save(run.state(3))
    for resume, overwrite in ((None, True), ("latest", False)):
        with pytest.raises(UserError, match=r"did not write: checkpoints/step-3\.pt"):
            state_to_resume(resume, overwrite, run)
    run.expect(run.state(3))
    assert state_to_resume(None, True, run) is None


def test_a_state_speaks_for_a_folder_whose_list_is_lost(run: RunFolder) -> None:
    make_state(3).save(run.state(3))
    resumed = state_to_resume("latest", False, run)
    assert resumed is not None and resumed.step == 3
    run.begin({"run_folder": ""}, overwrite=False)
    assert "checkpoints/step-3.pt" in json.loads(run.derived.read_text())["files"]


def test_a_run_of_an_older_version_goes_on_and_is_replaced(run: RunFolder) -> None:
    make_state(3).save(run.state(3))
    run.config.write_text("its own")
    run.derived.write_text('{"run_folder": "x", "seed": 7}')
    assert state_to_resume("latest", False, run) is not None
    assert state_to_resume(None, True, run) is None
    run.begin({"run_folder": "x"}, overwrite=True)
    assert not run.config.exists() and not run.states()


def test_a_state_of_another_run_does_not_mix_with_this_one(run: RunFolder, tmp_path: Path) -> None:
    other = tmp_path / "other" / "step-3.pt"
    make_state().save(other)
    resumed = state_to_resume(str(other), False, run)
    assert resumed is not None and resumed.step == 3
    make_state(5).save(run.state(5))
    with pytest.raises(UserError, match="belongs to another run"):
        state_to_resume(str(other), False, run)
    with pytest.raises(UserError, match=r"no training state .*missing\.pt.*step-5\.pt"):
        state_to_resume(str(tmp_path / "missing.pt"), False, run)
