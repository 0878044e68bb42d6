"""The page that the plan ends in: what was tested, how, and what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....data.photos import find_images
from ....evaluation.rows import PROMPT_ONLY, TRAINING_IMAGES, Row
from ..claims import RULE, Claim, Claims
from ..config import ReproductionConfig
from ..measurements import BASE_ALONE, Measurements
from ..plan import TRUNCATED, WITHOUT_BYPASS
from ..selection import RULE as TUNING_RULE
from ..selection import Selection
from . import tables

PLACES = "*Prompts of a place*: the same tests on {} alone.\n"
UNFINISHED = "{} jobs of the plan are not finished; tests take the concepts that have all their images."
MARK = "<!-- Written by scripts/reproduce_paper.py; edit training/studies/reproduction/page/page.py instead. -->"
PAGE = """# The papers' claims, tested on `{model}`

{mark}

What Alaluf et al. claim of NeTI and Tewel et al. of Perfusion, and what may be better than both, measured under one
protocol. {about_model}Every concept is learned from {num_photos} and drawn with {num_prompts} prompts.

{verdicts}

*Likeness to fresh photos* compares images with photos of the concept that nothing was learned from; it decides.
*Likeness to the photos* compares with those that were learned from: where they share a place, copying it counts.
{places}
{remarks}![Text similarity against likeness](images/{pictures}_curve.png)

Above and to the right is better. Numbers stand for NeTI's units kept; crosses are 95% intervals over {num_concepts}
concepts, wide because concepts differ: the tests take differences within each concept.

## One picture per claim

The first training seed and the first image seed, without choosing.

{claims}
## Behind it

[Every test, table and setting]({tables}), and how to repeat it.
"""
TABLES = """# The papers' claims on `{model}`: tables

{mark}

[The page itself]({page}). All numbers come from one call, which anyone can repeat:

```bash
{command}
```

The command goes on where it was stopped, and is spread over GPUs, processes (`--jobs.workers 2`) or the machines of a
Ray cluster (`--jobs.ray auto`, see [scale.md](scale.md)). A finished job (one training, or one set of images with its
scores) is a file in `work_dir` whose name hashes all that the result depends on. `--dry_run` shows the size of a plan,
`--report true` writes these pages from what is finished, `--only` and `--redo` take patterns of jobs' names. All
numbers stand in `metrics.csv`, `metrics.json` and `claims.json` in `work_dir`. The same plan for Stable Diffusion v1.4
is `input_configs/reproduction_sd14.yaml`; its methods are lines of settings for `scripts/train.py`.

## The tests

{rule} Intervals are 95% percentile bootstraps with {samples} resamples on two levels, concepts and images; with few
concepts they are rather too narrow than too wide. No correction is made for testing several claims. {unfinished}

{claims}
## The methods

Every method draws {num_images} images of each concept (prompts: {num_prompts}, seeds: {num_seeds}; trainings per
concept: {train_seeds}). Differences from `neti` are paired image by image; "better" means that one interval lies above
0 and none below. "Own concept" is the share of images whose nearest concept, among all of the plan, is their own
([metrics.md](metrics.md)). "Likeness above neti's curve" is explained at claim (d).

{methods}

What makes each method, on top of `{train_config}`:

{settings}

## Truncations and bounds

{others}

## Training steps

![Likeness against training steps](images/{pictures}_steps.png)

Means over the concepts, {num_short} images of each; bands are 95% intervals. Likeness and paired differences; they test
no claim:

{steps}

{tuning}## Protocol

{protocol}

Machine: {machine}. Work of all workers together: {hours:.1f} hours.
"""
TUNING = """## Tuning

On {concepts}, of which the claims see nothing, with {num_short} images of each for every pair of a learning rate
and a number of steps. Chosen, in bold, is {rule}.
On the tuning concepts the word has image similarity {bounds.word_image:.3f} and text similarity {bounds.word_text:.3f},
the photos have {bounds.photos_image:.3f} and {bounds.photos_text:.3f}. The table shows for each rate its best number of
steps. Where the choice lies at the edge of what was tried, something beyond might be better still.

{table}

Tried: {tried}.

"""


@dataclass(frozen=True)
class Outcome:
    """All that is known. claims: by what -> the claims by it, those that decide first; left: how many jobs are not
    finished; grids: letter of a claim -> the file of its picture."""

    selected: Selection
    measured: Measurements
    rows: Sequence[Row]
    claims: Mapping[str, Claims]
    sizes: Mapping[str, tuple[int, int | None]]
    protocol: Mapping[str, Any]
    machine: Mapping[str, Any]
    hours: float
    left: int
    grids: Mapping[str, str]


def render_pages(config: ReproductionConfig, outcome: Outcome, command: str, about_model: str) -> tuple[str, str]:
    """The page for two minutes, and the one with all tables. command: what was called."""
    rows, deciding = outcome.rows, next(iter(outcome.claims.values()))
    claims = {measure: each.all for measure, each in outcome.claims.items()}
    names = {TRAINING_IMAGES: "the photos themselves", PROMPT_ONLY: "super-category word alone"}
    names |= {BASE_ALONE.format(method): BASE_ALONE.format(method) for method in WITHOUT_BYPASS}
    names |= {method: method for method in TRUNCATED if outcome.measured.truncations(method)}
    num_photos = {len(find_images(source.folder)[0]) for source in config.concept_sources}
    common = {
        "mark": MARK,
        "model": outcome.protocol["base_model"],
        "pictures": config.page.stem,
        "num_prompts": len(config.prompts),
        "num_concepts": max((row.concepts for row in rows), default=0),
    }
    page = PAGE.format(
        **common,
        about_model=f"{about_model} " if about_model else "",
        places=PLACES.format(_listed(config.place_prompts)) if config.place_prompts else "",
        num_photos=f"{' or '.join(map(str, sorted(num_photos)))} photos",
        verdicts=tables.verdicts(claims),
        remarks=f"**What we read in it.** {config.remarks.strip()}\n\n" if config.remarks else "",
        claims="\n".join(_short(claim, outcome.grids.get(claim.letter)) for claim in next(iter(claims.values()))),
        tables=tables_page(config).name,
    )
    long = TABLES.format(
        **common,
        page=config.page.name,
        command=command,
        rule=RULE,
        samples=config.bootstrap_samples,
        unfinished=UNFINISHED.format(outcome.left) if outcome.left else "",
        claims="\n".join(_tests({m: of[k] for m, of in claims.items()}) for k in range(len(deciding.all))),
        num_images=len(config.prompts) * len(config.seeds) * len(config.train_seeds),
        num_seeds=len(config.seeds),
        train_seeds=len(config.train_seeds),
        methods=tables.methods(rows, deciding),
        train_config=config.train_config,
        settings=tables.settings(config, outcome.selected.chosen, outcome.sizes),
        others=tables.others(rows, names),
        num_short=len(config.short_prompts) * len(config.short_seeds),
        steps=tables.steps(deciding),
        tuning=_tuning(config, outcome.selected),
        protocol=tables.markdown(["", ""], _flat(outcome.protocol)),
        machine=", ".join(f"{key} {value}" for key, value in outcome.machine.items()),
        hours=outcome.hours,
    )
    return page, long


def tables_page(config: ReproductionConfig) -> Path:
    """The file of the long tables."""
    return config.page.with_name(f"{config.page.stem}_tables.md")


def _listed(prompts: Sequence[str]) -> str:
    return ", ".join(f'"{prompt}"' for prompt in prompts)


def _short(claim: Claim, picture: str | None) -> str:
    found = "; ".join(f"{test.what}: {tables.shown(test.estimate, test.digits)}" for test in claim.tests)
    image = f"\n\n![{claim.says}](images/{picture})" if picture else ""
    return f"### ({claim.letter}) {claim.says}: {claim.verdict}\n\n{found[0].upper()}{found[1:]}.{image}\n"


def _tests(claims: Mapping[str, Claim]) -> str:
    claim = next(iter(claims.values()))
    return f"### ({claim.letter}) {claim.says}\n\n{claim.how}\n\n{tables.findings(claims)}\n"


def _tuning(config: ReproductionConfig, selected: Selection) -> str:
    if selected.bounds is None:
        return ""
    return TUNING.format(
        concepts=" and ".join(source.name for source in config.tuning_sources),
        num_short=len(config.short_prompts) * len(config.short_seeds),
        rule=TUNING_RULE,
        bounds=selected.bounds,
        table=tables.tuning(selected.tried, selected.chosen),
        tried="; ".join(
            f"{m.name} at {', '.join(f'{rate:g}' for rate in m.rates)} after {', '.join(map(str, m.steps))} steps"
            for m in config.method_plans
        ),
    )


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
