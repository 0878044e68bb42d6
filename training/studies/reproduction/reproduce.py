"""What `scripts/reproduce_paper.py` does with its config: search, measure, test the claims, write the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ....models.backbone.loading import model_hash
from ....models.judging.metric_model import CLIPMetricModel
from ....utils.devices import describe_machine, pick_device
from ....utils.errors import UserError
from ....utils.files import write_atomically, write_json
from ....utils.hashing import folder_hash
from ....utils.statistics import Bootstrap
from ...config.run import RunConfig
from ...evaluation.plot import write_plot
from ...evaluation.report import Report, bootstrap_protocol
from ...evaluation.rows import Kind
from ..page import save_jpeg
from .board import Board, Contents, matching, with_required
from .cells import Cell, Choice, longest, main_cells, search_cells
from .claims import Claims
from .measuring import Bench
from .page import Outcome, render_page
from .pictures import Grids, step_curves, write_steps_plot
from .plan_config import ReproductionConfig
from .plan_text import check_plan
from .processes import Process
from .results import BASE_ALONE, candidates, measurements, rows, sd14_bytes
from .selection import Candidate, Rails, choose
from .workshop import Workshop

PLOTTED = ("neti", "no_nested_dropout", "xti", "textual_inversion", "no_bypass", BASE_ALONE.format("neti"), "compact")
SHOWN_CONCEPTS = 3  # in the grids of methods
MINIATURE = (
    "It is the bundled [miniature](miniature.md), a small model of a small world: a verdict here is a verdict on the "
    "miniature, and may be another on Stable Diffusion v1.4."
)


class Reproduction:
    """One plan on one process, checked and ready. tell: prints a line.

    Raises UserError for whatever is wrong with the plan, the model, the judge or the device.
    """

    def __init__(self, config: ReproductionConfig, process: Process, tell: Callable[[str], None] = print) -> None:
        self.config, self.process, self.tell = config, process, tell
        self.runs = check_plan(config)
        self.base = next(iter(self.runs.values()))
        self.device = process.device(config.device, torch.cuda.device_count())
        place = pick_device(self.device)
        self.judge = CLIPMetricModel.from_pretrained(
            config.judge, resizing=config.resizing, revision=config.judge_revision, device=place, key="judge"
        )
        sources = (*config.concept_sources, *config.tuning_sources)
        contents = Contents(
            model=model_hash(self.base.model.pretrained_model_name_or_path, self.base.model.revision),
            judge=self.judge.digest,
            photos={source.name: folder_hash(source.folder) for source in sources},
        )
        self.board = Board(config, contents, process.count, tell)
        self.workshop = Workshop(self.board, Bench(config, self.judge), self.base, self.device)

    def run(self, command: str) -> Path | None:
        """Do, together with the other processes, all that is left to do; the first process then writes the page.

        Returns the page's path; None where it is not written, because of `only` or because it is another process's.
        command: what was called, for the page. Raises UserError, and Stopped (see `workshop`).
        """
        config = self.config
        search = search_cells(config)
        if config.only and (wanted := matching(search, config.only)):
            self._do(with_required(wanted), redo_among=search)
            return None
        self._do(search, redo_among=search, later=main_cells(config, longest(config)))
        rails, tried = candidates(self.board, search)
        chosen = choose(tried)
        if lost := [method for method in self.runs if method not in chosen]:
            raise UserError(f"methods: every training of {', '.join(lost)} diverged; give lower learning rates")
        for method, choice in chosen.items():
            self.tell(f"chosen for {method}: learning rate {choice.rate:g}, {choice.step} steps")
        main = main_cells(config, chosen)
        wanted = matching(main, config.only) if config.only else main
        if not wanted:
            raise UserError(f"only = {config.only!r} matches no cell; a cell's name is such as {main[1].name}")
        self._do(with_required(wanted), redo_among=main)
        if config.redo and not matching([*search, *main], config.redo):
            raise UserError(f"redo = {config.redo!r} matches no cell; a cell's name is such as {main[1].name}")
        if config.only or not self.process.is_first:
            return None
        self._write(command, search, main, chosen, rails, tried)
        return config.page

    def _do(self, cells: Sequence[Cell], redo_among: Sequence[Cell], later: Sequence[Cell] = ()) -> None:
        if self.config.redo and self.process.is_first:
            self.board.forget(matching(redo_among, self.config.redo), self.workshop.forget)
        self.board.run(cells, self.workshop.do, later)

    def _write(
        self,
        command: str,
        search: Sequence[Cell],
        main: Sequence[Cell],
        chosen: dict[str, Choice],
        rails: Rails,
        tried: Sequence[Candidate],
    ) -> None:
        """The page, its pictures, and in work_dir all numbers."""
        config = self.config
        bootstrap = Bootstrap(config.bootstrap_samples, config.bootstrap_seed)
        measured, photos = measurements(self.board, main)
        report = Report(self._protocol(), {}, rows(measured, photos, bootstrap), [])
        outcome = Outcome(
            chosen=chosen,
            candidates=tried,
            rails=rails,
            measured=measured,
            rows=report.headline,
            claims=Claims(measured, bootstrap).all(),
            sizes=self._sizes(main),
            protocol=report.protocol,
            machine=describe_machine(),
            hours=self.board.spent([*search, *main]) / 3600,
        )
        report.write_json(config.work_dir / "metrics.json")
        report.write_csv(config.work_dir / "metrics.csv")
        claims = [{**asdict(claim), "verdict": claim.verdict} for claim in outcome.claims]
        searched = {"rails": asdict(rails), "tried": [asdict(each) for each in tried]}
        write_json({"claims": claims, "search": searched}, config.work_dir / "claims.json")

        pictures, stem = config.page.parent / "images", config.page.stem
        plotted = [row for row in report.rows if row.kind is Kind.bound or row.method in PLOTTED]
        write_plot(Report(report.protocol, {}, plotted, []), pictures / f"{stem}_curve.png")
        write_steps_plot(step_curves(measured, bootstrap), pictures / f"{stem}_steps.png")
        shown = self._draw_grids(Grids(self.workshop, main), outcome, pictures)
        about = MINIATURE if self.base.model.pretrained_model_name_or_path == "miniature" else ""
        page = render_page(config, outcome, command, about, shown)
        write_atomically(config.page, lambda file: file.write(page.encode()))

    def _draw_grids(self, grids: Grids, outcome: Outcome, folder: Path) -> list[tuple[str, str]]:
        """Write the picture grids; returns their titles and file names."""
        measured, sources, stem = outcome.measured, self.config.concept_sources, self.config.page.stem
        drawn = {f"The methods: {s.name}": grids.methods(s, measured.methods) for s in sources[:SHOWN_CONCEPTS]}
        if any(measured.truncations(method) for method in measured.methods):
            drawn[f"Truncations: {sources[0].name}"] = grids.truncations(sources[0], measured)
        if any(measured.steps(method) for method in measured.methods):
            drawn[f"Training steps: {sources[0].name}"] = grids.steps(sources[0], measured)
        files = []
        for number, (title, grid) in enumerate(drawn.items()):
            files.append((title, f"{stem}_{number}.jpg"))
            save_jpeg(grid, folder / files[-1][1])
        return files

    def _sizes(self, main: Sequence[Cell]) -> dict[str, tuple[int, int]]:
        """Method -> (numbers it trains here, bytes of its file on SD v1.4)."""
        parameters = {}
        for cell in main:
            if cell.requires is not None:
                parameters[cell.requires.method] = self.board.result(cell.requires)["parameters"]
        return {method: (parameters[method], sd14_bytes(run)) for method, run in self.runs.items()}

    def _protocol(self) -> dict[str, Any]:
        """Every choice that decides the numbers, by name."""
        config = self.config
        return {
            "base_model": _shown_name(self.base),
            "base_model_digest": self.board.contents.model,
            "train_config": str(config.train_config),
            "concepts": [f"{source.name} ({source.super_category})" for source in config.concept_sources],
            "prompts": list(config.prompts),
            "seeds": list(config.seeds),
            "short_prompts": list(config.short_prompts),
            "short_seeds": list(config.short_seeds),
            "train_seeds": list(config.train_seeds),
            "sampler": f"{config.scheduler}, {config.num_denoising_steps} steps, guidance {config.guidance_scale:g}, "
            f"{config.torch_dtype}",
            **self.workshop.bench.scorer.protocol,
            "judge_revision": config.judge_revision,
            **bootstrap_protocol(Bootstrap(config.bootstrap_samples, config.bootstrap_seed)),
        }


def _shown_name(base: RunConfig) -> str:
    """A model's name as a page may print it: not where it lies on this machine."""
    name = base.model.pretrained_model_name_or_path
    return Path(name).name if Path(name).is_absolute() else name
