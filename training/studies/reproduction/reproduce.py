"""What `scripts/reproduce_paper.py` does with its config: search, measure, test the claims, write the page."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from ....models.backbone.loading import model_hash
from ....utils.devices import describe_machine
from ....utils.errors import UserError
from ....utils.files import write_atomically, write_json
from ....utils.hashing import folder_hash, json_hash
from ....utils.statistics import Bootstrap
from ...config.run import RunConfig
from ...evaluation.config import folders_by_concept
from ...evaluation.plot import write_plot
from ...evaluation.report import CSV, JSON, Report, bootstrap_protocol
from ...evaluation.rows import Kind
from ...evaluation.scores import IMAGE, REFERENCE
from ...jobs.config import open_pool
from ...jobs.job import Job, Results, matching
from ...jobs.pools import Pool
from ...jobs.run import run_jobs
from ..page import save_jpeg
from .check import check_plan, seconds_per
from .claims import UNTESTED, Claims
from .config import ReproductionConfig
from .measurements import measurements, rows
from .page.page import Outcome, render_pages, tables_page
from .page.pictures import Grids, step_curves, write_steps_plot
from .page.sizes import sd14_bytes
from .page.tables import COLUMNS
from .plan import Contents, Plan, Training, learned_from, with_needed
from .selection import Selection, candidates, choose
from .work import Work, metric_model

PLOTTED = (
    "neti",
    "frozen_ground",
    "neti_key_lock",
    "many_places",
    "xti",
    "textual_inversion",
    "perfusion",
)
PLACES = "likeness to fresh photos, prompts of a place"
MINIATURE = (
    "It is the bundled [miniature](miniature.md), a small model of a small world: a verdict here is a verdict on the "
    "miniature, and may be another on Stable Diffusion v1.4."
)


class Reproduction:
    """One plan, checked and ready. show: prints a line.

    Raises UserError for whatever is wrong with the plan, the models or the device.
    """

    def __init__(self, config: ReproductionConfig, show: Callable[[str], object] = print) -> None:
        self.config, self.show = config, show
        self.runs = check_plan(config)
        self.base = next(iter(self.runs.values()))
        compared = [folders_by_concept(config.references), folders_by_concept(config.masks)]
        compared.append({source.name: source.folder for source in config.sources})
        plan, model = Plan(config), self.base.model
        trainings = [task for task in (*plan.search(), *plan.main(plan.longest())) if isinstance(task, Training)]
        folders = {folder for training in trainings for folder in learned_from(training)}
        contents = Contents(
            model=model_hash(model.pretrained_model_name_or_path, model.revision),
            metric_model=metric_model(config, config.device).digest,
            folders={folder: folder_hash(folder) for folder in folders},
            compared=json_hash([{n: folder_hash(f) for n, f in each.items()} for each in compared]),
        )
        self.make_work = functools.partial(Work, config, contents, self.base)
        self.work = self.make_work(config.device)  # of this process, which looks at images and draws none
        self.plan = self.work.plan
        self.results = Results(config.work_dir / "results")

    def run(self, command: str) -> Path | None:
        """Do all that is left to do and write the page; returns its path, or None where `only` left the page out.

        command: what was called, for the page. Raises UserError, also when jobs failed, and Stopped.
        """
        config = self.config
        search = self.plan.jobs(self.plan.search())
        if config.report:
            if any(not self.results.finished(job) for job in search):
                raise UserError("report: the search is not finished; call without it first")
            return self._write(command, search)
        with self.results.lock(), open_pool(config.jobs, config.device, self.make_work) as pool:
            self._forget(search)
            if config.only and (wanted := matching(search, config.only)):
                self._do(pool, with_needed(wanted, search))
                return None
            self._do(pool, search, later=self.plan.jobs(self.plan.main(self.plan.longest())))
            main = self.plan.jobs(self.plan.main(self._choose(search).chosen))
            self._forget(main)
            wanted = matching(main, config.only) if config.only else main
            if not wanted:
                raise UserError(f"only = {config.only!r} matches no job of the settings that were chosen")
            self._do(pool, with_needed(wanted, main))
        return None if config.only else self._write(command, search)

    def _choose(self, search: Sequence[Job]) -> Selection:
        """What the search chose; without one, all there is."""
        if not search:
            return Selection(self.plan.longest())
        bounds, tried = candidates(self.results, search)
        chosen = choose(tried)
        if lost := [method for method in self.runs if method not in chosen]:
            raise UserError(f"methods: every training of {', '.join(lost)} diverged; give lower learning rates")
        for method, choice in chosen.items():
            self.show(f"chosen for {method}: learning rate {choice.rate:g}, {choice.step} steps")
        return Selection(chosen, bounds, tried)

    def _forget(self, jobs: Sequence[Job]) -> None:
        for job in matching(jobs, self.config.redo) if self.config.redo else ():
            self.results.forget(job)
            self.work.forget(job.task)

    def _do(self, pool: Pool, jobs: Sequence[Job], later: Sequence[Job] = ()) -> None:
        failures = run_jobs(
            jobs,
            self.results,
            pool,
            logs=self.config.work_dir / "logs",
            attempts=self.config.jobs.attempts,
            seconds_per=seconds_per(self.config),
            later=later,
            show=self.show,
        )
        if failures:
            first = failures[0]
            raise UserError(
                f"{len(failures)} of {len(jobs)} jobs failed, first {first.job.name}: {first.error}; all others are "
                "done, and the same command goes on"
            )

    def _write(self, command: str, search: Sequence[Job]) -> Path:
        """The page, its pictures, and in work_dir all numbers, of the jobs that are finished."""
        config, selected = self.config, self._choose(search)
        planned = self.plan.jobs(self.plan.main(selected.chosen))
        main = [job for job in planned if self.results.finished(job)]
        bootstrap = Bootstrap(config.bootstrap_samples, config.bootstrap_seed)
        measured, photos = measurements(self.results, main)
        if not measured.methods:
            raise UserError("report: no method's images are finished yet; call without it first")
        report = Report(self._protocol(bootstrap), {}, rows(measured, photos, bootstrap), [])
        likenesses = [REFERENCE, IMAGE] if config.references else [IMAGE]
        claims = {COLUMNS[metric]: Claims(measured, bootstrap, metric) for metric in likenesses}
        deciding = next(iter(claims.values()))
        if config.place_prompts:
            of_places, _ = measurements(self.results, main, config.place_prompts)
            claims[PLACES] = Claims(of_places, bootstrap, deciding.likeness)
        pictures, stem = config.page.parent / "images", config.page.stem
        outcome = Outcome(
            selected=selected,
            measured=measured,
            rows=report.headline,
            claims=claims,
            sizes=self._sizes(main),
            protocol=report.protocol,
            machine=describe_machine(),
            hours=sum(self.results.record(job)["seconds"] for job in [*search, *main]) / 3600,
            left=len(planned) - len(main),
            grids=self._draw_grids(Grids(self.work, main), deciding, pictures),
        )
        report.write_json(config.work_dir / JSON)
        report.write_csv(config.work_dir / CSV)
        found = {by: [{**asdict(each), "verdict": each.verdict} for each in c.all] for by, c in claims.items()}
        write_json({"claims": found, "search": asdict(selected)}, config.work_dir / "claims.json")

        concepts = max(row.concepts for row in report.headline)
        comparable = {row.method for row in report.headline if row.concepts == concepts}
        plotted = [row for method in PLOTTED if method in comparable for row in report.rows if row.method == method]
        plotted += [row for row in report.rows if row.kind is Kind.bound]
        write_plot(Report(report.protocol, {}, plotted, []), pictures / f"{stem}_curve.png", deciding.likeness)
        write_steps_plot(step_curves(deciding), pictures / f"{stem}_steps.png")
        about = MINIATURE if self.base.model.pretrained_model_name_or_path == "miniature" else ""
        pages = render_pages(config, outcome, command, about)
        for path, text in zip((config.page, tables_page(config)), pages, strict=True):
            write_atomically(path, functools.partial(_write_text, text))
        return config.page

    def _draw_grids(self, grids: Grids, claims: Claims, folder: Path) -> dict[str, str]:
        """Write the picture of every claim that has one; returns letter -> file name."""
        files = {}
        for claim in claims.all:
            if claim.verdict != UNTESTED and (grid := grids.grid(claim.shows)) is not None:
                files[claim.letter] = f"{self.config.page.stem}_{claim.letter}.jpg"
                save_jpeg(grid, folder / files[claim.letter])
        return files

    def _sizes(self, main: Sequence[Job]) -> dict[str, tuple[int, int | None]]:
        """Method -> (numbers it trains here, bytes of its file on SD v1.4), of those that were trained."""
        trained = {job.task.method: job for job in main if isinstance(job.task, Training)}
        return {
            method: (self.results.result(job)["parameters"], sd14_bytes(self.runs[method]))
            for method, job in trained.items()
        }

    def _protocol(self, bootstrap: Bootstrap) -> dict[str, Any]:
        """Every choice that decides the numbers, by name."""
        config = self.config
        return {
            "base_model": _shown_name(self.base),
            "base_model_digest": self.plan.contents and self.plan.contents.model,
            "train_config": str(config.train_config),
            "concepts": [f"{source.name} ({source.super_category})" for source in config.concept_sources],
            "prompts": list(config.prompts),
            "seeds": list(config.seeds),
            "short_prompts": list(config.short_prompts),
            "short_seeds": list(config.short_seeds),
            "train_seeds": list(config.train_seeds),
            "sampler": f"{config.scheduler}, {config.num_denoising_steps} steps, guidance {config.guidance_scale:g}, "
            f"{config.torch_dtype}",
            **self.work.scorer.protocol,
            "judge_revision": config.judge_revision,
            **bootstrap_protocol(bootstrap),
        }


def _write_text(text: str, file: BinaryIO) -> None:
    file.write(text.encode())


def _shown_name(base: RunConfig) -> str:
    """A model's name as a page may print it: not where it lies on this machine."""
    name = base.model.pretrained_model_name_or_path
    return Path(name).name if Path(name).is_absolute() else name
