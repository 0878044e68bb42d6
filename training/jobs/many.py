"""What `scripts/train_many.py` does with its config: one training for each concept, each done once."""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ...models.backbone.loading import model_hash
from ...utils.config.parsing import parse_config, to_plain_dict
from ...utils.devices import pick_device
from ...utils.errors import UserError
from ...utils.files import read_text, write_atomically
from ...utils.hashing import folder_hash, json_hash
from ..coach.launch import launch
from ..coach.plan import DTYPES
from ..coach.run_folder import RunFolder
from ..config.run import RunConfig
from ..data.photos import find_images
from .config import open_pool
from .job import Job, Results
from .many_config import NAME, ManyConfig
from .models import SharedModel
from .run import Failure, Pace, duration, run_jobs
from .worker import Stopped, output_to

STEPS = "steps"
COLUMNS = {  # of the CSV -> key of a training
    "folder": "data.train_data_dir",
    "super_category": "data.super_category_token",
    "placeholder": "data.placeholder_token",
}
PLANNED = {"log.exp_name", "log.exp_dir", "resume", "overwrite", "dry_run", "optim.device"}  # no column may
TABLE = ["name", "state", "steps", "seconds", "worker", "concept", "error"]
SHOWN = 20  # problems at once
_GOOD_NAME = re.compile(r"\w[\w.-]{0,99}")


class Concept(NamedTuple):
    """One row: its name, and the keys of its training that are its own."""

    name: str
    settings: dict[str, str]


class ManyTrainings:
    """All trainings, checked and ready. show: prints a line.

    Raises UserError for whatever is wrong with the concepts, their images, the training's settings or the model.
    """

    def __init__(self, config: ManyConfig, show: Callable[[str], object] = print) -> None:
        self.config, self.show = config, show
        self.table = config.output_dir / "table.csv"
        if self.table.exists() and not read_text(self.table, "table").startswith(",".join(TABLE)):
            raise UserError(
                f"{self.table} was not written by this script and stays as it is; choose another output_dir"
            )
        concepts = read_concepts(config)
        self.runs = dict(zip((concept.name for concept in concepts), _each(concepts, RunConfigs(config)), strict=True))
        _each(self.runs.values(), lambda run: find_images(run.data.train_data_dir))
        models = {(run.model.pretrained_model_name_or_path, run.model.revision) for run in self.runs.values()}
        hashes = {model: model_hash(*model) for model in models}
        self.jobs = [_job(config, name, run, hashes) for name, run in self.runs.items()]
        self.results = Results(config.output_dir / "results")

    def describe(self, workers: int) -> str:
        """What there is to do, as a line to print."""
        left = [job for job in self.jobs if not self.results.finished(job)]
        steps = sum(job.work[1] for job in left)
        time = Pace({STEPS: self.config.seconds_per_step}, workers).estimate(left)
        return (
            f"{len(self.jobs)} concepts, {len(self.jobs) - len(left)} done; {len(left)} trainings, {steps:.0f} steps, "
            f"about {duration(time)} with {workers} worker{'s' if workers > 1 else ''}"
        )

    def run(self) -> list[Failure]:
        """Train what is not trained yet, and write the table; returns the trainings that failed.

        Raises UserError and, when a signal stopped it, Stopped; the same call goes on.
        """
        config = self.config
        failures: list[Failure] = []
        with self.results.lock():
            try:
                with open_pool(config.jobs, config.device, TrainingWork) as pool:
                    failures = run_jobs(
                        self.jobs,
                        self.results,
                        pool,
                        logs=config.output_dir / "logs",
                        attempts=config.jobs.attempts,
                        seconds_per={STEPS: config.seconds_per_step},
                        show=self.show,
                    )
            finally:
                self._write_table(failures)
        return failures

    def _write_table(self, failures: Sequence[Failure]) -> None:
        errors = {failure.job.name: failure.error for failure in failures}
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(TABLE)
        for job in self.jobs:
            steps = f"{job.work[1]:.0f}"
            if self.results.finished(job):
                record = self.results.record(job)
                place = [f"{record['seconds']:.1f}", record["worker"], record["result"]["concept"]]
                writer.writerow([job.name, "done", steps, *place, ""])
            else:
                state = "failed" if job.name in errors else "not done"
                writer.writerow([job.name, state, steps, "", "", "", errors.get(job.name, "")])
        write_atomically(self.table, lambda file: file.write(text.getvalue().encode()))


@dataclass(frozen=True)
class Task:
    """One training: into which run folder, and where its concept then is."""

    config: RunConfig
    concept: Path
    log: Path


class TrainingWork:
    """A worker: trains one concept after another on one base model."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.model = SharedModel(pick_device(device))

    def __call__(self, task: Task, needed: object) -> dict[str, Any]:
        """The concept's place and what it learned. Raises UserError and Stopped."""
        config = replace(task.config, optim=replace(task.config.optim, device=self.device))
        run, model = RunFolder(config.log.run_dir, config.log.tracker_dir), config.model
        trained = run.concept(config.optim.max_train_steps)
        if not trained.exists():
            backbone = self.model.get(
                model.pretrained_model_name_or_path, model.revision, DTYPES[config.optim.mixed_precision]
            )
            with output_to(task.log):
                code = launch(config, backbone=backbone)
            if code:
                raise Stopped(code)
        _link(trained, task.concept)
        shutil.rmtree(run.states_folder, ignore_errors=True)  # a finished run resumes from nothing
        return {"concept": str(task.concept), "bytes": task.concept.stat().st_size}


def read_concepts(config: ManyConfig) -> list[Concept]:
    """The concepts of a folder or a CSV file, in order. UserError names every row that is wrong."""
    path = config.concepts
    if path.is_dir():
        folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        rows = [(f"{path}: folder", {"name": folder.name, "folder": str(folder)}) for folder in folders]
    else:
        rows = list(_csv_rows(path))
    if not rows:
        raise UserError(f"concepts = {path}: holds no concept; give a folder of folders, or a CSV with name,folder")
    found: dict[str, Concept] = {}
    problems = []
    for where, row in rows:
        name = row.pop("name", "")
        if not _GOOD_NAME.fullmatch(name):
            problems.append(f"{where} {name!r}: a concept's name is letters, digits, _, - and . (at most 100)")
        elif name in found:
            problems.append(f"{where} {name!r}: the name is there twice")
        elif not row.get("folder"):
            problems.append(f"{where} {name!r}: has no folder")
        else:
            row.setdefault("placeholder", config.placeholder.replace(NAME, name))
            if config.super_category is not None:
                row.setdefault("super_category", config.super_category)
            found[name] = Concept(name, {COLUMNS.get(column, column): value for column, value in row.items()})
    _raise(problems)
    return list(found.values())


def _csv_rows(path: Path) -> list[tuple[str, dict[str, str]]]:
    """(place, column -> value) of every row, empty values left out; relative folders are relative to the file."""
    reader = csv.DictReader(io.StringIO(read_text(path, "list of concepts", limit=2**26)), strict=True)
    try:
        rows = list(reader)
    except csv.Error as error:
        raise UserError(f"concepts = {path}: is no CSV file ({error})") from None
    if missing := sorted({"name", "folder"} - set(reader.fieldnames or ())):
        raise UserError(f"concepts = {path}: its first line must name the columns name and folder; no {missing[0]}")
    found = []
    for number, row in enumerate(rows, 2):
        if None in row:
            raise UserError(f"{path}, line {number}: has more values than the first line has columns")
        values = {column: value.strip() for column, value in row.items() if value and value.strip()}
        if "folder" in values:
            values["folder"] = str(path.parent / values["folder"])
        found.append((f"{path}, line {number}", values))
    return found


class RunConfigs:
    """Concept -> the configuration of its training. The shared file is read once, not once for each of thousands."""

    def __init__(self, config: ManyConfig) -> None:
        self.config = config
        self._read: dict[tuple[tuple[str, str], ...], RunConfig] = {}  # by the settings that few concepts have

    def __call__(self, concept: Concept) -> RunConfig:
        """UserError for a setting that is wrong, or is not a concept's own to decide."""
        rare = {key: value for key, value in concept.settings.items() if key not in COLUMNS.values()}
        own = {key.partition(".")[2]: value for key, value in concept.settings.items() if key not in rare}
        try:
            if planned := PLANNED & rare.keys():
                raise UserError(f"the column {min(planned)} is what the plan decides; leave it out")
            which = tuple(sorted(rare.items()))
            if which not in self._read:
                first = {"log.exp_name": concept.name, **concept.settings}
                arguments = ["--config_path", str(self.config.train_config)]
                self._read[which] = parse_config(RunConfig, arguments + [f"--{k}={v}" for k, v in first.items()])
            base = self._read[which]
            changes: dict[str, Any] = {**own, "train_data_dir": Path(own["train_data_dir"])}
            log = replace(base.log, exp_name=concept.name, exp_dir=self.config.output_dir / "runs")
            run = replace(base, data=replace(base.data, **changes), log=log)
            run.validate()
            return run
        except UserError as error:
            raise UserError("\n".join(f"{concept.name}: {line}" for line in str(error).splitlines())) from None


def _job(config: ManyConfig, name: str, run: RunConfig, hashes: dict[tuple[str, str | None], str]) -> Job:
    """The training as a job; its key holds all that the concept depends on, which also names the run folder."""
    model = hashes[run.model.pretrained_model_name_or_path, run.model.revision]
    optim = replace(run.optim, seed=run.optim.seed or 0, device="auto")
    what = {
        "data": to_plain_dict(replace(run.data, train_data_dir=Path(), dataloader_num_workers=0)),
        "model": to_plain_dict(replace(run.model, pretrained_model_name_or_path="")),
        "optim": to_plain_dict(optim),
        "concept_dtype": run.log.concept_dtype.value,
    }
    key = json_hash([model, folder_hash(run.data.train_data_dir), what])
    log = replace(run.log, exp_name=f"{name}-{key}")
    whole = replace(run, log=log, optim=optim, resume="latest", overwrite=False, dry_run=False)
    concept = config.output_dir / "concepts" / f"{name}.safetensors"
    task = Task(whole, concept, config.output_dir / "logs" / f"{name}.log")
    return Job(name, key, task, work=(STEPS, run.optim.max_train_steps))


def _link(source: Path, target: Path) -> None:
    """The same file under a second name, replacing what was there; a copy where the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)
    temporary.unlink(missing_ok=True)  # a link to the file that is there already is left where it was


def _each(items: Iterable[Any], act: Callable[[Any], Any]) -> list[Any]:
    """What `act` gives for each. UserError with the problems of all of them."""
    found, problems = [], []
    for item in items:
        try:
            found.append(act(item))
        except UserError as error:
            problems += str(error).splitlines()
    _raise(problems)
    return found


def _raise(problems: Sequence[str]) -> None:
    if problems:
        more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise UserError("\n".join([*problems[:SHOWN], *more]))
