"""The page that the plan ends in: what was tested, how, and what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .....utils.statistics import Bootstrap
from ....evaluation.rows import PROMPT_ONLY, TRAINING_IMAGES, Row
from ..claims import RULE, Claim
from ..config import ReproductionConfig
from ..measurements import BASE_ALONE, Measurements
from ..plan import TRUNCATED, WITHOUT_BYPASS, Choice
from ..selection import RULE as TUNING_RULE
from ..selection import Bounds, Candidate
from . import tables

PAGE = """# The paper's claims, tested on `{model}`

<!-- Written by scripts/reproduce_paper.py; edit training/studies/reproduction/page/page.py instead. -->

What Alaluf et al. claim of NeTI, measured by this project against baselines that were tuned the same way, under one
protocol. {about_model}All numbers come from one call, which anyone can repeat:

```bash
{command}
```

{verdicts}

{remarks}{rule}

Intervals are 95% percentile bootstraps with {samples} resamples on two levels, concepts and images. There are
{num_concepts} concepts; for few the bootstrap's intervals are rather too narrow than too wide. No correction is made
for testing several claims.

## The methods

Every method learns every concept from the same photos, at its own tuned learning rate and for its own tuned number of
steps, and draws {num_images} images of each (prompts: {num_prompts}, seeds: {num_seeds}, trainings: {train_seeds}). The
differences from `neti` are paired image by image; "better" means that one interval lies above 0 and none below.
Image and text are similarities by CLIP; "own concept" is the share of images whose nearest concept, among all of the
plan, is their own ([metrics.md](metrics.md)).

{methods}

{ablations}

![Text against image similarity](images/{pictures}_curve.png)

The crosses are wide because the concepts differ; the differences in the table above are taken within each concept.

{others}

## The claims

{claims}

![Image similarity against training steps](images/{pictures}_steps.png)

Means over the concepts, {num_short} images of each; every method at its tuned learning rate; bands are 95% intervals.
The same in numbers, image similarity and paired differences; they test no claim:

{steps}

## Tuning

On {tuning_concepts}, of which the claims see nothing, with {num_short} images of each for every pair of a learning rate
and a number of steps. Chosen, in bold, is {tuning_rule}.
On the tuning concepts the word has image similarity {bounds.word_image:.3f} and text similarity {bounds.word_text:.3f},
the photos have {bounds.photos_image:.3f} and {bounds.photos_text:.3f}. The table shows for each rate its best number of
steps. Where the choice lies at the edge of what was tried, something beyond might be better still.

{tuning}

Tried: {tried}.

## Repeat it, or run another plan

The command goes on where it was stopped, and is spread over GPUs, processes (`--jobs.workers 2`) or the machines of a
Ray cluster (`--jobs.ray auto`, see [scale.md](scale.md)). A finished job (one training, or one set of images with its
scores) is a file in `work_dir` whose name hashes all that the result depends on. `--dry_run` shows the size of a plan,
`--only` and `--redo` take patterns of jobs' names. All numbers stand in `metrics.csv`, `metrics.json` and `claims.json`
in `work_dir`. The same plan for Stable Diffusion v1.4 is
`input_configs/reproduction_sd14.yaml`; its methods are lines of settings for `scripts/train.py`, and more can be added.

## Pictures

The first training seed and the first image seed, without choosing.

{grids}
## Protocol

{protocol}

Machine: {machine}. Work of all workers together: {hours:.1f} hours.
"""
ABLATIONS = """The arguments of `scripts/train.py` that make each method, on top of `{train_config}`:

{table}"""


@dataclass(frozen=True)
class Outcome:
    """All that is known when every job is done."""

    chosen: Mapping[str, Choice]
    candidates: Sequence[Candidate]
    bounds: Bounds
    measured: Measurements
    rows: Sequence[Row]
    claims: Sequence[Claim]
    sizes: Mapping[str, tuple[int, int]]
    protocol: Mapping[str, Any]
    machine: Mapping[str, Any]
    hours: float


def render_page(
    config: ReproductionConfig, outcome: Outcome, command: str, about_model: str, grids: Sequence[tuple[str, str]]
) -> str:
    """The page. command: what was called; grids: (title, file name) of the picture grids beside the page."""
    measured, rows = outcome.measured, outcome.rows
    bootstrap = Bootstrap(config.bootstrap_samples, config.bootstrap_seed)
    names = {TRAINING_IMAGES: "the photos themselves", PROMPT_ONLY: "super-category word alone"}
    names |= {BASE_ALONE.format(method): BASE_ALONE.format(method) for method in WITHOUT_BYPASS}
    names |= {method: method for method in TRUNCATED if measured.truncations(method)}
    seeds = len(config.train_seeds)
    return PAGE.format(
        model=outcome.protocol["base_model"],
        about_model=f"{about_model} " if about_model else "",
        command=command,
        verdicts=tables.verdicts(outcome.claims),
        remarks=f"**What we read in it.** {config.remarks.strip()}\n\n" if config.remarks else "",
        rule=RULE,
        samples=config.bootstrap_samples,
        num_concepts=len(measured.concepts),
        num_images=len(config.prompts) * len(config.seeds) * seeds,
        num_prompts=len(config.prompts),
        num_seeds=len(config.seeds),
        train_seeds=seeds,
        methods=tables.methods(measured, rows, outcome.chosen, outcome.sizes, bootstrap),
        ablations=_ablations(config),
        others=tables.others(rows, names),
        steps=tables.steps(measured, bootstrap),
        claims="\n".join(_claim(claim) for claim in outcome.claims),
        pictures=config.page.stem,
        num_short=len(config.short_prompts) * len(config.short_seeds),
        tuning_concepts=" and ".join(source.name for source in config.tuning_sources),
        tuning_rule=TUNING_RULE,
        bounds=outcome.bounds,
        tuning=tables.tuning(outcome.candidates, outcome.chosen),
        tried="; ".join(
            f"{m.name} at {', '.join(f'{rate:g}' for rate in m.rates)} after {', '.join(map(str, m.steps))} steps"
            for m in config.method_plans
        ),
        grids="\n".join(f"![{title}](images/{file})\n" for title, file in grids),
        protocol=tables.markdown(["", ""], _flat(outcome.protocol)),
        machine=", ".join(f"{key} {value}" for key, value in outcome.machine.items()),
        hours=outcome.hours,
    )


def _claim(claim: Claim) -> str:
    return f"### ({claim.letter}) {claim.says}: {claim.verdict}\n\n{claim.how}\n\n{tables.findings(claim)}\n"


def _ablations(config: ReproductionConfig) -> str:
    table = tables.markdown(
        ["method", "arguments"],
        [(m.name, f"`{' '.join(m.arguments)}`" if m.arguments else "") for m in config.method_plans],
    )
    return ABLATIONS.format(train_config=config.train_config, table=table)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested entries as rows, `group.key` and value."""
    lines: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            lines += _flat(value, f"{prefix}{key}.")
        elif value is not None:
            text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            lines.append((f"{prefix}{key}".replace("_", " "), text.replace("|", "\\|")))
    return lines
