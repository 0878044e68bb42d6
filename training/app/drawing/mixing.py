"""Which of two concepts speaks at which layers and times, as a map one can click, and as rules of a mixture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch

from ....models.conditioning.composition import style_mixture
from ....models.conditioning.prompts import SLOT
from ....utils.errors import UserError
from ..config import AppConfig
from .library import Library
from .request import Request

BANDS = ((901, 999), *((first, first + 99) for first in range(801, 100, -100)), (0, 100))  # of timesteps, noise first
MIX = "mix"  # the mixture's name in prompts


def style_map(library: Library, first: str | None, second: str | None, start: float) -> str:
    """The map of style mixing: geometry of the first concept, appearance of the second from timestep `start` on.

    JSON {"rows": layer names [P], "columns": timesteps, "names": [first, second], "second": [P][bands] of 0 or 1}.
    Empty without two concepts. UserError for concepts that cannot take turns.
    """
    if not first or not second:
        return ""
    geometry, appearance = (library[name].load().method for name in (first, second))
    frame = geometry.frame
    mixture = style_mixture(geometry, appearance, frame.layers, int(start))
    times = torch.tensor([(low + high) // 2 for low, high in BANDS])
    where = mixture.rules[1].where(times, frame.num_places)
    cells = where[..., 0].expand(frame.num_places, len(BANDS)).int().tolist()
    columns = [f"{high}-{low}" for low, high in BANDS]
    rows = list(frame.place_names)
    return json.dumps({"rows": rows, "columns": columns, "names": [first, second], "second": cells})


def rules(first: str, second: str, cells: Sequence[Sequence[Any]], layers: Sequence[str]) -> list[dict[str, Any]]:
    """The map's rules, as scripts/inference.py takes them: the first concept everywhere, then the second where it is.

    UserError for a map of another size.
    """
    if len(cells) != len(layers) or any(len(row) != len(BANDS) for row in cells):
        raise UserError("the map is of another model; choose the concepts again")
    columns = [tuple(name for name, row in zip(layers, cells, strict=True) if row[band]) for band in range(len(BANDS))]
    found: list[dict[str, Any]] = [{"concept": first}]
    for names, run in groupby(zip(columns, BANDS, strict=True), key=lambda column: column[0]):
        if names:
            bands = [band for _, band in run]
            times = f"{bands[-1][0]}-{bands[0][1]}"
            found.append({"concept": second, "layers": ",".join(names), "timesteps": times})
    return found


def mix_request(
    library: Library, app: AppConfig, first: str, second: str, drawn: str, prompt: str, seeds: str
) -> Request:
    """The first concept alone, the mixture, the second alone: three rows of the same seeds. drawn: the map's JSON."""
    if not (first and second and drawn):
        raise UserError("choose two concepts first")
    if SLOT not in prompt:
        raise UserError(f"write {SLOT} in the prompt where the mixture belongs")
    cells = json.loads(drawn)["second"]
    layers = library[first].load().method.frame.place_names
    prompts = [prompt.replace(SLOT, f"{{{name}}}") for name in (first, MIX, second)]
    return Request(
        prompts[0],
        beside=tuple(prompts[1:]),
        seeds=seeds,
        steps=app.num_denoising_steps,
        guidance_scale=app.guidance_scale,
        mixtures={MIX: rules(first, second, cells, layers)},
    )
