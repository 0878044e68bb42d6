"""One training after another on a tiny random model: what a run leaves, what it refuses, and what it does not touch."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import SCRIPT, assert_same_bits, make_config, tensors, write_images

from neti.models.backbone.backbone import Backbone
from neti.models.concepts.concept import Concept
from neti.training.coach.launch import launch
from neti.training.coach.logs import Watcher
from neti.training.coach.plan import RunPlan
from neti.training.coach.run_folder import RunFolder
from neti.training.config.run import RunConfig
from neti.utils.config.parsing import parse_config
from neti.utils.errors import UserError

pytestmark = pytest.mark.e2e
GRIDS = {
    "eval__validation_prompts": '["A photo of a {}", "Oil painting of {}"]',
    "eval__validation_seeds": "[1, 2]",
    "eval__num_validation_images": 2,
    "eval__num_denoising_steps": 2,
    "eval__validation_truncations": "[null, 4]",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_images(tmp_path / "images")
    return tmp_path


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_what_a_run_leaves(root: Path, tiny_backbone_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config(
        root,
        tiny_backbone_folder,
        **GRIDS,
        eval__validation_steps=4,
        eval__validation_at_start=True,
        log__report_to="tensorboard",
        log__checkpoints_total_limit=1,
    )
    assert launch(config) == 0
    run = root / "runs" / "toy"
    assert {name for name in names(run) if "tfevents" not in name} == {
        "config.yaml",
        "derived.json",
        "metrics.jsonl",
        "concept-steps-2.safetensors",
        "concept-steps-4.safetensors",
        "checkpoints/step-4.pt",
        "validation/step-0.png",
        "validation/step-0-truncation-4.png",
        "validation/step-4.png",
        "validation/step-4-truncation-4.png",
    }
    assert parse_config(RunConfig, ["--config_path", str(run / "config.yaml")]) == config
    derived = json.loads((run / "derived.json").read_text())
    assert (derived["seed"], derived["samples_per_step"], derived["learning_rate"]) == (7, 2, 2e-3)
    assert len(derived["layers"]) == 16
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert all(0 < record["loss"] < 10 and record["learning_rate"] == 2e-3 for record in records)

    with Image.open(run / "validation" / "step-4.png") as full, Image.open(run / "validation" / "step-0.png") as start:
        assert full.width > 128 and full.height > 128, "two prompts by two seeds of 64 px, with labels"
        assert full.tobytes() != start.tobytes()
    events = EventAccumulator(str(run / "logs" / "neti"), size_guidance={"images": 0}).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Images("validation-truncation-4")] == [0, 4]

    backbone = Backbone.from_pretrained(str(tiny_backbone_folder))
    concept = Concept.load(run / "concept-steps-4.safetensors", backbone=backbone)
    assert (concept.placeholder, concept.super_category, concept.metadata["step"]) == ("<toy>", "teddy", 4)
    assert concept.metadata["training_config"]["optim"]["seed"] == 7
    assert str(root) not in json.dumps(concept.metadata), "a file to be shared"
    size = (run / "concept-steps-4.safetensors").stat().st_size
    assert derived["concept_bytes"] == pytest.approx(size, rel=0.01)
    assert "learning rate  0.002 (0.001 x 2), constant" in capsys.readouterr().out


class Follower(Watcher):
    """Writes down what it hears, and wants the run to stop once it has been asked `patience` times."""

    def __init__(self, patience: int = 10**9) -> None:
        self.patience, self.asked = patience, 0
        self.heard: list[tuple[object, ...]] = []
        self.notes: list[str] = []

    def planned(self, plan: RunPlan, text: str) -> None:
        self.heard.append(("planned", plan.samples_per_step, "learning rate" in text))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def started(self, step: int, last_step: int) -> None:
        self.heard.append(("started", step, last_step))

    def stepped(self, step: int, loss: float | None) -> None:
        self.heard.append(("stepped", step, loss is not None and 0 < loss < 10))

    def saved(self, step: int, concept: Path) -> None:
        self.heard.append(("saved", step, concept.exists()))

    def grid(self, step: int, path: Path, image: Image.Image) -> None:
        self.heard.append(("grid", step, path.name))

    def stopped(self) -> None:
        self.heard.append(("stopped",))

    def wants_stop(self) -> bool:
        self.asked += 1
        return self.asked > self.patience


def launch_in_a_thread(config: RunConfig, watcher: Watcher) -> int:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(launch(config, watcher)))
    thread.start()
    thread.join()
    return codes[0]


def test_a_watcher_is_told_everything_in_any_thread(root: Path, tiny_backbone_folder: Path) -> None:
    config = make_config(root, tiny_backbone_folder, **GRIDS, eval__validation_steps=12, optim__max_train_steps=12)
    watcher = Follower()
    assert launch_in_a_thread(config, watcher) == 0
    steps = [("stepped", step, step == 10) for step in range(1, 13)]
    saves = {step: ("saved", step, True) for step in range(2, 13, 2)}
    message = [event for step in steps for event in (step, saves.get(int(step[1]))) if event]
    grids = [("grid", 12, "step-12.png"), ("grid", 12, "step-12-truncation-4.png")]
    assert watcher.heard == [("planned", 2, True), ("started", 0, 12), *message, *grids, ("stopped",)]
    assert watcher.notes == [f"done: {root}/runs/toy/concept-steps-12.safetensors"]


def test_a_watchers_wish_stops_the_run_which_goes_on_as_if_nothing_had_been(
    root: Path, tiny_backbone_folder: Path
) -> None:
    watcher = Follower(patience=2)
    assert launch_in_a_thread(make_config(root, tiny_backbone_folder, log__save_steps=4), watcher) == 130
    assert watcher.notes[-1].startswith("stopped by SIGINT after step 3, all saved; go on with\n    python ")
    assert names(root / "runs/toy/checkpoints") == {"step-3.pt"}
    assert launch(make_config(root, tiny_backbone_folder, log__save_steps=4, resume="latest")) == 0
    launch(make_config(root, tiny_backbone_folder, log__exp_name="whole"))
    assert_same_bits(tensors(root, 4), tensors(root, 4, "whole"))


@pytest.mark.parametrize("step", [0, 2, 4])
def test_a_stop_does_not_wait_for_a_grid(root: Path, tiny_backbone_folder: Path, step: int) -> None:
    """200 denoising steps are begun and given up at once, all is saved, and a resume makes the grid."""
    changes = {**GRIDS, "eval__num_denoising_steps": 100, "eval__validation_steps": step or 4}
    config = make_config(root, tiny_backbone_folder, **changes, eval__validation_at_start=step == 0)
    watcher = Follower(patience=step + 3)  # it is asked once per step, but at every step of a grid
    assert launch(config, watcher) == 130
    assert watcher.asked == step + 4
    run = root / "runs/toy"
    assert f"stopped by SIGINT after step {step}, all saved" in watcher.notes[-1]
    assert (run / f"checkpoints/step-{step}.pt").exists() and not names(run / "validation")
    again = make_config(root, tiny_backbone_folder, **{**changes, "eval__num_denoising_steps": 2}, resume="latest")
    assert launch(dataclasses.replace(again, eval=dataclasses.replace(again.eval, validation_at_start=step == 0))) == 0
    assert names(run / "validation") >= {f"step-{step}.png", f"step-{step}-truncation-4.png"}
    launch(make_config(root, tiny_backbone_folder, log__exp_name="whole"))
    assert_same_bits(tensors(root, 4), tensors(root, 4, "whole"))


def test_training_lowers_the_loss(root: Path, tiny_backbone_folder: Path) -> None:
    """On the very same samples and noise, a run that learns ends below one whose learning rate is next to nothing."""
    last = {}
    for name, learning_rate in (("learns", 1e-3), ("stays", 1e-12)):
        launch(
            make_config(
                root,
                tiny_backbone_folder,
                log__exp_name=name,
                log__save_steps=30,
                optim__max_train_steps=30,
                optim__train_batch_size=4,
                optim__learning_rate=learning_rate,
                optim__gradient_accumulation_steps=1,
            )
        )
        records = [json.loads(line) for line in (root / f"runs/{name}/metrics.jsonl").read_text().splitlines()]
        last[name] = sum(record["loss"] for record in records[-10:]) / 10
    assert last["learns"] < last["stays"] - 1e-3


def test_validation_does_not_disturb_training(root: Path, tiny_backbone_folder: Path) -> None:
    launch(make_config(root, tiny_backbone_folder))
    launch(
        make_config(
            root,
            tiny_backbone_folder,
            **GRIDS,
            log__exp_name="shown",
            eval__validation_steps=1,
            eval__validation_at_start=True,
        )
    )
    assert_same_bits(tensors(root, 4, "shown"), tensors(root, 4))


def test_cutting_the_samples_otherwise_trains_the_same_concept(root: Path, tiny_backbone_folder: Path) -> None:
    """One batch of four instead of four of one: the same samples, noise and nested dropout."""
    for name, batch, accumulation in (("one", 1, 4), ("four", 4, 1)):
        launch(
            make_config(
                root,
                tiny_backbone_folder,
                log__exp_name=name,
                optim__train_batch_size=batch,
                optim__gradient_accumulation_steps=accumulation,
            )
        )
    timesteps = torch.arange(0, 1000, 50)
    one, four = (
        Concept.load(root / f"runs/{name}/concept-steps-4.safetensors").method.vectors(timesteps)
        for name in ("one", "four")
    )
    assert one.bypass is not None and four.bypass is not None
    torch.testing.assert_close(one.words, four.words, rtol=0, atol=1e-4)
    torch.testing.assert_close(one.bypass, four.bypass, rtol=0, atol=1e-4)


def test_gradient_checkpointing_trains_the_same_concept(root: Path, tiny_backbone_folder: Path) -> None:
    launch(make_config(root, tiny_backbone_folder))
    launch(make_config(root, tiny_backbone_folder, log__exp_name="less", optim__gradient_checkpointing=True))
    for name, tensor in tensors(root, 4).items():
        torch.testing.assert_close(tensors(root, 4, "less")[name], tensor, rtol=0, atol=1e-4)


def test_bf16_keeps_the_concept_in_float32(root: Path, tiny_backbone_folder: Path) -> None:
    launch(make_config(root, tiny_backbone_folder, optim__mixed_precision="bf16"))
    assert {tensor.dtype for tensor in tensors(root, 4).values()} == {torch.float32}
    assert not torch.equal(*(tensors(root, step)["mapper.output_layer.weight"] for step in (2, 4)))


def test_masks_and_buckets_are_resumed_and_cut_otherwise_too(root: Path, tiny_backbone_folder: Path) -> None:
    (root / "masks").mkdir()
    for number, width in enumerate((64, 128, 64)):
        Image.effect_noise((width, 64), 80).convert("RGB").save(root / "images" / f"{number}.png")
        Image.linear_gradient("L").resize((width, 64)).save(root / "masks" / f"{number}.png")
    changes = {
        "data__masks": "folder",
        "data__masks_dir": root / "masks",
        "data__outside_mask": "frozen",
        "data__square_mode": "bucket",
    }
    launch(make_config(root, tiny_backbone_folder, **changes))
    state = root / "runs" / "toy" / "checkpoints" / "step-2.pt"
    shutil.copytree(root / "masks", root / "elsewhere")
    moved = {**changes, "data__masks_dir": root / "elsewhere"}
    launch(make_config(root, tiny_backbone_folder, **moved, log__exp_name="branch", resume=state))
    assert_same_bits(tensors(root, 4, "branch"), tensors(root, 4))
    cut = {"optim__train_batch_size": 2, "optim__gradient_accumulation_steps": 1}
    launch(make_config(root, tiny_backbone_folder, **changes, **cut, log__exp_name="cut"))
    for name, tensor in tensors(root, 4).items():
        torch.testing.assert_close(tensors(root, 4, "cut")[name], tensor, rtol=0, atol=1e-4)
    launch(make_config(root, tiny_backbone_folder, **{**changes, "data__outside_mask": "ignore"}, log__exp_name="none"))
    assert not torch.equal(*(tensors(root, 4, name)["mapper.output_layer.weight"] for name in ("toy", "none")))

    Image.new("L", (64, 64), 9).save(root / "masks" / "0.png")
    with pytest.raises(UserError, match=r"images and captions\) was"):
        launch(make_config(root, tiny_backbone_folder, **changes, log__exp_name="other", resume=state))


@pytest.mark.parametrize("schedule", ["cosine", "constant_with_warmup"])
def test_resume_restores_everything(root: Path, tiny_backbone_folder: Path, schedule: str) -> None:
    changes = {"optim__lr_scheduler": schedule, "optim__lr_warmup_steps": 2, "log__save_steps": 3}
    launch(make_config(root, tiny_backbone_folder, **changes))
    branch = make_config(
        root,
        tiny_backbone_folder,
        **changes,
        log__exp_name="branch",
        resume=root / "runs" / "toy" / "checkpoints" / "step-3.pt",
    )
    launch(branch)
    assert_same_bits(tensors(root, 4, "branch"), tensors(root, 4))
    rates = [
        json.loads((root / "runs" / name / "metrics.jsonl").read_text().splitlines()[-1])["learning_rate"]
        for name in ("toy", "branch")
    ]
    assert rates[0] == rates[1] != 2e-3 or schedule == "constant_with_warmup"


def test_a_finished_run_can_be_made_longer(root: Path, tiny_backbone_folder: Path) -> None:
    launch(make_config(root, tiny_backbone_folder, optim__max_train_steps=2))
    launch(make_config(root, tiny_backbone_folder, resume="latest"))
    launch(make_config(root, tiny_backbone_folder, log__exp_name="whole"))
    assert_same_bits(tensors(root, 4), tensors(root, 4, "whole"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"data__resolution": 32}, "data.resolution was 64"),
        ({"optim__learning_rate": 1e-2}, "optim.learning_rate was 0.001"),
        ({"model__pe_sigmas__sigma_t": 0.1}, "model.pe_sigmas.sigma_t was 0.03"),
        ({"optim__seed": 8}, "optim.seed was 7"),
    ],
)
def test_resume_names_what_changed(
    root: Path, tiny_backbone_folder: Path, change: dict[str, object], named: str
) -> None:
    launch(make_config(root, tiny_backbone_folder, optim__max_train_steps=2))
    with pytest.raises(UserError, match=named):
        launch(make_config(root, tiny_backbone_folder, resume="latest", **change))


def test_a_base_model_of_the_same_weights_may_lie_elsewhere(root: Path, tiny_backbone_folder: Path) -> None:
    launch(make_config(root, tiny_backbone_folder, optim__max_train_steps=2))
    moved = shutil.copytree(tiny_backbone_folder, root / "moved")
    launch(make_config(root, moved, optim__max_train_steps=3, resume="latest"))
    weights = next((moved / "unet").glob("*.safetensors"))
    tensors_there = load_file(weights)
    tensors_there["conv_in.bias"][0] += 1e-3
    save_file(tensors_there, weights, {"format": "pt"})
    with pytest.raises(UserError, match=r"the weights of the base model \(unet\) are not those"):
        launch(make_config(root, moved, resume="latest"))
    tensors_there["conv_in.bias"][0] = float("nan")
    save_file(tensors_there, weights, {"format": "pt"})
    with pytest.raises(UserError, match=r"its unet holds NaN or infinity \(in conv_in\.bias\)"):
        launch(make_config(root, moved, log__exp_name="new"))
    assert not (root / "runs/new").exists()


def change_state(path: Path, **changes: Any) -> None:
    record = torch.load(path, weights_only=True)
    for key, change in changes.items():
        change(record[key])
    torch.save(record, path)


def test_states_of_older_versions_go_on(root: Path, tiny_backbone_folder: Path) -> None:
    """Without a key that came later, without the weights' checksums and the list of files."""
    launch(make_config(root, tiny_backbone_folder, optim__max_train_steps=2))
    run = root / "runs/toy"
    change_state(
        run / "checkpoints/step-2.pt",
        config=lambda config: config["model"].pop("use_layer"),
        facts=lambda facts: facts.pop("the base model's weights"),
    )
    derived = json.loads((run / "derived.json").read_text())
    (run / "derived.json").write_text(json.dumps({key: derived[key] for key in derived if key != "files"}))
    launch(make_config(root, tiny_backbone_folder, resume="latest"))
    launch(make_config(root, tiny_backbone_folder, log__exp_name="whole"))
    assert_same_bits(tensors(root, 4), tensors(root, 4, "whole"))


def test_what_cannot_be_resumed_is_one_line_and_changes_nothing(root: Path, tiny_backbone_folder: Path) -> None:
    launch(make_config(root, tiny_backbone_folder))
    run = root / "runs/toy"
    with pytest.raises(UserError, match=r"optim\.max_train_steps = 3, but the run is already at step 4"):
        launch(make_config(root, tiny_backbone_folder, resume="latest", optim__max_train_steps=3))
    assert launch(make_config(root, tiny_backbone_folder, resume="latest")) == 0, "done, and stays done"

    log, state = run / "metrics.jsonl", run / "checkpoints/step-4.pt"
    good = log.read_bytes(), state.read_bytes()
    log.write_bytes(b"\xff\x00\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl is not the log of a run"):
        launch(make_config(root, tiny_backbone_folder, resume="latest"))
    log.unlink()
    log.mkdir()
    with pytest.raises(UserError, match=r"metrics\.jsonl is a folder, where the run writes a file"):
        launch(make_config(root, tiny_backbone_folder, resume="latest"))
    log.rmdir()
    log.write_bytes(good[0])
    for change in (
        {"method": lambda entries: entries.pop("mapper.output_layer.weight")},
        {"method": lambda entries: entries.update(more=torch.ones(1))},
        {"optimizer": lambda entries: entries["param_groups"][0]["params"].pop()},
        {"optimizer": lambda entries: entries.pop("state")},
        {"optimizer": lambda entries: entries["state"].clear()},
    ):
        change_state(state, **change)
        with pytest.raises(UserError, match=r"the state of step 4 does not fit this run .*--resume PATH") as caught:
            launch(make_config(root, tiny_backbone_folder, resume="latest", optim__max_train_steps=6))
        assert "\n" not in str(caught.value)
        state.write_bytes(good[1])


def test_resume_notices_other_images(root: Path, tiny_backbone_folder: Path) -> None:
    launch(make_config(root, tiny_backbone_folder, optim__max_train_steps=2))
    moved = root / "elsewhere"
    shutil.move(root / "images", moved)
    launch(make_config(root, tiny_backbone_folder, resume="latest", data__train_data_dir=moved))
    (moved / "0.png").write_bytes((moved / "1.png").read_bytes())
    with pytest.raises(UserError, match=r"data\.train_data_dir"):
        launch(make_config(root, tiny_backbone_folder, resume="latest", data__train_data_dir=moved))


def test_nothing_is_overwritten_unasked(root: Path, tiny_backbone_folder: Path) -> None:
    launch(make_config(root, tiny_backbone_folder, optim__max_train_steps=2))
    run = root / "runs" / "toy"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"--resume latest.*--overwrite"):
        launch(make_config(root, tiny_backbone_folder))
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    (run / "notes.txt").write_text("mine")
    launch(make_config(root, tiny_backbone_folder, overwrite=True, optim__max_train_steps=1, log__save_steps=1))
    assert not (run / "concept-steps-2.safetensors").exists()
    assert (run / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("logging_dir", ["logs", "..", "../tb", "{root}/elsewhere"])
def test_overwrite_removes_nothing_of_others(root: Path, tiny_backbone_folder: Path, logging_dir: str) -> None:
    changes: dict[str, object] = {
        "log__report_to": "tensorboard",
        "log__logging_dir": logging_dir.format(root=root),
        "optim__max_train_steps": 2,
        **GRIDS,
        "eval__validation_steps": 2,
    }
    launch(make_config(root, tiny_backbone_folder, **changes, log__exp_name="sibling"))
    launch(make_config(root, tiny_backbone_folder, **changes))
    run = root / "runs/toy"
    for place in ("notes.txt", ".notes.tmp", "checkpoints/notes.txt", "validation/photo.png", "logs/mine.csv"):
        (run / place).parent.mkdir(exist_ok=True)
        (run / place).write_text("mine")
    before = names(root)
    launch(make_config(root, tiny_backbone_folder, **changes, overwrite=True))
    events = {name for name in before if name.startswith("runs/toy/") and "tfevents" in name}
    assert before - names(root) == events, "TensorBoard's files have new names"
    assert bool(events) == (logging_dir == "logs")

    (run / "derived.json").unlink()
    with pytest.raises(UserError, match=r"did not write: checkpoints/step-2\.pt, .*config\.yaml.*; move them away"):
        launch(make_config(root, tiny_backbone_folder, **changes, overwrite=True))


def test_a_run_folder_that_is_held_is_left_alone(root: Path, tiny_backbone_folder: Path) -> None:
    config = make_config(root, tiny_backbone_folder, optim__max_train_steps=2)
    launch(config)
    run = RunFolder(config.log.run_dir, config.log.tracker_dir)
    with run.lock():
        before = names(root)
        for change in ({"overwrite": True}, {"resume": "latest"}, {"dry_run": True}, {}):
            with pytest.raises(UserError, match=rf"^process {os.getpid()} on \S+ is training into"):
                launch(make_config(root, tiny_backbone_folder, **change))
        assert names(root) == before
    launch(make_config(root, tiny_backbone_folder, resume="latest"))


def test_concepts_without_a_state_are_not_resumed_over(root: Path, tiny_backbone_folder: Path) -> None:
    launch(make_config(root, tiny_backbone_folder, optim__max_train_steps=2))
    shutil.rmtree(root / "runs" / "toy" / "checkpoints")
    with pytest.raises(UserError, match="holds no training state"):
        launch(make_config(root, tiny_backbone_folder, resume="latest"))


def test_divergence_stops_the_run_and_keeps_the_last_good_state(root: Path, tiny_backbone_folder: Path) -> None:
    changes = {"optim__learning_rate": 1e37, "optim__adam_weight_decay": 0, "log__save_steps": 1}
    with pytest.raises(UserError, match=r"diverged at step 2: the loss is .*step-1\.pt") as caught:
        launch(make_config(root, tiny_backbone_folder, **changes))
    assert "\n" not in str(caught.value)
    assert names(root / "runs" / "toy" / "checkpoints") == {"step-1.pt"}
    assert all(tensor.isfinite().all() for tensor in tensors(root, 1).values())


def test_training_goes_on_from_a_concept(root: Path, tiny_backbone_folder: Path) -> None:
    launch(make_config(root, tiny_backbone_folder, optim__max_train_steps=2))
    start = root / "runs" / "toy" / "concept-steps-2.safetensors"
    changes = {"log__exp_name": "more", "model__mapper_checkpoint_path": start}
    launch(make_config(root, tiny_backbone_folder, **changes))
    records = [json.loads(line) for line in (root / "runs/more/metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [3, 4]
    assert not torch.equal(
        tensors(root, 4, "more")["mapper.output_layer.weight"], tensors(root, 2)["mapper.output_layer.weight"]
    )
    with pytest.raises(UserError, match="already at step 2"):
        launch(make_config(root, tiny_backbone_folder, **{**changes, "log__exp_name": "x"}, optim__max_train_steps=2))


def test_dry_run_writes_nothing_and_reads_no_unet_weights(
    root: Path, tiny_backbone_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = root / "without_unet_weights"
    shutil.copytree(tiny_backbone_folder, folder)
    for weights in (folder / "unet").glob("*.safetensors"):
        weights.unlink()
    before = names(root)
    assert launch(make_config(root, folder, dry_run=True)) == 0
    assert names(root) == before
    printed = capsys.readouterr().out
    assert "16 cross-attention layers: IN01 IN02" in printed and "dry run" in printed
    with pytest.raises(UserError):
        launch(make_config(root, folder))
    assert names(root) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data__placeholder_token": "teddy"}, "already a word"),
        ({"data__super_category_token": "teddytoy"}, "one is needed"),
        ({"data__resolution": 60}, r"data\.resolution = 60 must be a multiple of 8"),
        ({"eval__validation_truncations": "[129]"}, r"0\.\.128"),
        ({"eval__validation_settings": "{beta: [0.5]}"}, "setting beta: a concept of method 'neti' has key_lock"),
        ({"model__method": "magic"}, "one of: neti"),
        ({"log__report_to": "wandb"}, "pip install wandb"),
        ({"optim__mixed_precision": "fp16"}, "needs a GPU"),
        ({"resume": "nowhere.pt"}, "no training state nowhere.pt"),
        ({"data__train_data_dir": "/nonexistent"}, "does not exist"),
    ],
)
def test_mistakes_are_told_in_one_line_before_anything_is_written(
    root: Path, tiny_backbone_folder: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        launch(make_config(root, tiny_backbone_folder, **change))
    assert "\n" not in str(caught.value)
    assert not (root / "runs").exists()


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"WORLD_SIZE": "abc"}, r"literal for int\(\).*'abc' \(environment: WORLD_SIZE=abc\)"),
        ({"WORLD_SIZE": "2"}, "RANK is missing"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK=x"),
    ],
)
def test_a_launchers_variables_are_checked(
    root: Path, tiny_backbone_folder: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], problem: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=rf"the processes cannot be set up: .*{problem}.*`accelerate launch`"):
        launch(make_config(root, tiny_backbone_folder))
    for name in variables:
        monkeypatch.delenv(name)
    assert launch(make_config(root, tiny_backbone_folder, dry_run=True)) == 0, "the next run is not hurt"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_that_is_absent_is_an_error(root: Path, tiny_backbone_folder: Path) -> None:
    with pytest.raises(UserError, match=r"optim\.device = 'cuda'"):
        launch(make_config(root, tiny_backbone_folder, optim__device="cuda"))


def test_every_unreadable_image_is_named(root: Path, tiny_backbone_folder: Path) -> None:
    for name in ("1.png", "2.png"):
        (root / "images" / name).write_bytes(b"no image")
    with pytest.raises(UserError, match=r"1\.png(.|\n)*2\.png"):
        launch(make_config(root, tiny_backbone_folder))
    assert not (root / "runs").exists()


def test_script_without_the_package_says_how_to_install_it() -> None:
    done = subprocess.run([sys.executable, "-I", "-S", str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.splitlines() == ["error: neti is not installed; in the project's folder run: pip install -e ."]


def test_script_answers_a_wrong_key_in_one_line() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--optim.max_steps", "3"], capture_output=True, text=True)
    assert done.returncode == 2
    assert any("did you mean optim.max_train_steps" in line for line in done.stderr.splitlines())
    assert "Traceback" not in done.stderr
