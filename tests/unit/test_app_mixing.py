"""The map of a mixture: that of style mixing, its rules, and what is drawn of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from app_parts import with_two_concepts

from neti.models.conditioning.composition import Mixture, Rule, parse_layers, style_mixture
from neti.training.app.drawing.mixing import BANDS, mix_request, rules, style_map
from neti.training.app.services import Services
from neti.utils.errors import UserError


@pytest.fixture
def services(tmp_path: Path, tiny_backbone_folder: Path) -> Services:
    return with_two_concepts(tmp_path, tiny_backbone_folder)


@pytest.mark.parametrize("start", [0, 100, 600, 900])
def test_the_map_of_style_mixing_has_its_very_rules(services: Services, start: int) -> None:
    drawn = json.loads(style_map(services.library, "toy", "cat", start))
    toy, cat = (services.library[name].load().method for name in ("toy", "cat"))
    layers, every = toy.frame.layers, torch.arange((start > 0 and 1) or 101, 1000)
    made = rules("toy", "cat", drawn["second"], drawn["rows"])
    mixture = Mixture(
        [
            Rule(
                {"toy": toy, "cat": cat}[rule["concept"]],
                parse_layers(rule.get("layers", "all"), layers),
                tuple(map(int, rule["timesteps"].split("-"))) if "timesteps" in rule else (0, 999),  # type: ignore[arg-type]
            )
            for rule in made
        ]
    )
    wanted = style_mixture(toy, cat, layers, start)
    assert torch.equal(mixture.vectors(every).words, wanted.vectors(every).words)


def test_clicked_cells_become_rules(services: Services) -> None:
    layers = ["IN01", "IN02", "MID"]
    cells = [[0] * len(BANDS) for _ in layers]
    assert rules("toy", "cat", cells, layers) == [{"concept": "toy"}]
    cells[0][0] = cells[2][0] = cells[0][1] = cells[2][1] = cells[1][9] = 1
    assert rules("toy", "cat", cells, layers)[1:] == [
        {"concept": "cat", "layers": "IN01,MID", "timesteps": "801-999"},
        {"concept": "cat", "layers": "IN02", "timesteps": "0-100"},
    ]
    with pytest.raises(UserError, match="another model"):
        rules("toy", "cat", cells[:2], layers)
    with pytest.raises(UserError, match="another model"):
        rules("toy", "cat", [row[:-1] for row in cells], layers)


def test_the_mixture_stands_between_its_parts(services: Services) -> None:
    drawn = style_map(services.library, "toy", "cat", 600)
    request = mix_request(services.library, services.config, "toy", "cat", drawn, "A photo of a {}", "0-1")
    made = list(services.drawer.pictures("one", request))[-1]
    captions = [caption for _, caption in made.pictures]
    assert captions == [f"{name} · seed {seed}" for name in ("toy", "mix", "cat") for seed in (0, 1)]
    assert made.columns == 2
    with pytest.raises(UserError, match="where the mixture belongs"):
        mix_request(services.library, services.config, "toy", "cat", drawn, "A photo", "0")
    assert style_map(services.library, "toy", None, 600) == ""
    with pytest.raises(UserError, match="choose two concepts"):
        mix_request(services.library, services.config, "toy", "cat", "", "A {}", "0")
