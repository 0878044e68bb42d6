"""A training state: a complete record of one moment of a run, from which it goes on bit for bit.

There is no generator state in it. Everything random in training is a pure function of (seed, position), see
`batches.py`; the seed and the step say it all.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pyrallis.utils import flatten
from torch import Tensor

from ...utils.config.parsing import to_plain_dict
from ...utils.config.records import from_plain
from ...utils.errors import UserError
from ...utils.files import MAX_INTEGER, write_atomically
from ..config.run import DataConfig, LogConfig, RunConfig
from .run_folder import RunFolder

FORMAT = 1
MAX_STEP = 10**9


@dataclass(frozen=True)
class TrainingState:
    """step: optimizer steps done, so the data position is step * samples per step; seed: of all randomness;
    method, optimizer, schedule, scaler: the state dicts (scaler: None unless fp16);
    config: the run's configuration as plain nested dicts; facts: what else must be the same for the rest of the run to
    mean the same, named by the config key that governs it (the images' hash, the number of processes).
    """

    step: int
    seed: int
    method: dict[str, Any]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    scaler: dict[str, Any] | None
    config: dict[str, Any]
    facts: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write the state atomically. Errors: UserError on a full disk; an older file of that name survives."""
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, **{name: getattr(self, name) for name in self.__dataclass_fields__}}, buffer)
        write_atomically(path, lambda file: file.write(buffer.getbuffer()))

    @classmethod
    def load(cls, path: Path) -> TrainingState:
        """Read a state; nothing in the file is executed (weights_only), and every byte is checked (the archive's CRC).

        UserError for a file that cannot be read, is damaged or foreign.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"resume: {path} cannot be read: {error.strerror}") from None
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:  # torch.save packs nothing: what does is no state
                whole = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
                if not whole or archive.testzip() is not None:
                    raise zipfile.BadZipFile
            record = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:  # torch names no common base for a truncated zip, a refused class and a foreign file
            raise UserError(
                f"resume: {path} is no training state of this project, or damaged; name an older one by --resume PATH"
            ) from error
        if not isinstance(record, dict) or record.pop("format", None) != FORMAT:
            raise UserError(f"resume: {path} is no training state of this version (format {FORMAT})")
        try:
            state = from_plain(cls, record)
            if not (0 <= state.step <= MAX_STEP and 0 <= state.seed <= MAX_INTEGER):
                raise ValueError(f"step {state.step} and seed {state.seed} are of no run")
            if not isinstance(state.facts.get(WEIGHTS, {}), dict):
                raise ValueError(f"{WEIGHTS} must be an object {{...}}")
            if not all(tensor.isfinite().all() for tensor in _tensors([state.method, state.optimizer])):
                raise ValueError("it holds NaN or infinity")
            return state
        except ValueError as error:
            raise UserError(
                f"resume: {path} has not the entries of a training state ({error}); name an older one by --resume PATH"
            ) from None


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested dicts and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


# Settings that do not change what a step does. The two folders are judged by what lies there (see `facts`).
_FREE_GROUPS = ("log.", "eval.")
_FREE_KEYS = {
    "data.train_data_dir",
    "data.masks_dir",
    "data.dataloader_num_workers",
    "model.mapper_checkpoint_path",
    "model.encoder",
    "optim.device",
    "optim.compile_unet",
    "optim.gradient_checkpointing",
}
_CONSTANT_SCHEDULES = ("constant", "constant_with_warmup")  # with these, a run may be made longer
START = "the word that the concept started at"  # a fact, numbers; only where an encoder gave it
WEIGHTS = "the base model's weights"  # a fact, {part: checksum}; where it is known, the model's name is free


def check_unchanged(state: TrainingState, config: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Raise UserError naming every setting that differs from the saved run's and would make this another run.

    config: as plain nested dicts; a key that it or the saved run does not have counts as its default. facts: those
    known before the model is loaded.
    """
    defaults = flatten(to_plain_dict(RunConfig(LogConfig(""), DataConfig(Path(), ""))))
    saved = {**defaults, **flatten(state.config), **{key: state.facts.get(key) for key in facts}}
    now = {**defaults, **flatten(config), **facts}
    free = set(_FREE_KEYS)
    if WEIGHTS in state.facts:
        free |= {"model.pretrained_model_name_or_path", "model.revision"}
    if now["optim.lr_scheduler"] in _CONSTANT_SCHEDULES:
        free.add("optim.max_train_steps")
    problems = [
        f"resume: {key} was {saved.get(key)} when the run was saved and is {now.get(key)} now; "
        "set it back, or start a new run under another log.exp_name"
        for key in sorted(saved.keys() | now.keys())
        if key not in free and not key.startswith(_FREE_GROUPS) and saved.get(key) != now.get(key)
    ]
    if state.step > (last := now["optim.max_train_steps"]):
        problems.append(
            f"resume: optim.max_train_steps = {last}, but the run is already at step {state.step}; ask for more steps"
        )
    if problems:
        raise UserError("\n".join(problems))


def check_weights(state: TrainingState, weights: Mapping[str, int]) -> None:
    """Raise UserError if the base model is another than the saved run's. weights: part -> checksum, of those loaded."""
    saved = state.facts.get(WEIGHTS, {})
    changed = [part for part, checksum in weights.items() if saved.get(part, checksum) != checksum]
    if changed:
        raise UserError(
            f"resume: the weights of the base model ({', '.join(changed)}) are not those that the run was trained on; "
            "set model.pretrained_model_name_or_path back, or start a new run under another log.exp_name"
        )


def state_to_resume(resume: str | None, overwrite: bool, run: RunFolder) -> TrainingState | None:
    """The state a run goes on from; None for a run that starts at its beginning.

    resume: None, "latest" or the path of a state. "latest" without any state starts the run, so that the same command
    can be repeated until the run is done, whenever it is killed.
    Raises UserError before anything is overwritten that was not asked to be.
    """
    state = None
    if resume is None:
        if not run.is_empty() and not overwrite:
            raise UserError(
                f"the run folder {run.path} is not empty; go on with it by --resume latest, replace it by --overwrite, "
                "or choose another log.exp_name"
            )
    elif resume == "latest":
        if states := run.states():
            state = TrainingState.load(states[-1])
        elif not run.is_fresh():
            raise UserError(
                f"resume: {run.path} holds no training state (checkpoints/step-N.pt) but other files; replace them by "
                "--overwrite, or choose another log.exp_name"
            )
    else:
        path = Path(resume)
        if not path.is_file():
            known = ", ".join(str(state) for state in run.states()) or "none in this run's folder"
            raise UserError(f"resume: there is no training state {path}; write latest or a path (there are: {known})")
        if not run.is_empty() and path.resolve().parent != run.states_folder.resolve():
            raise UserError(
                f"resume: {path} belongs to another run, and this run's folder {run.path} is not empty; "
                "choose another log.exp_name"
            )
        state = TrainingState.load(path)
    if foreign := run.foreign(resuming=state is not None):
        raise UserError(
            f"{run.path} holds files that this run would replace and did not write: {', '.join(foreign)}; move them "
            "away, or choose another log.exp_name"
        )
    return state
