"""What Perfusion learns and what it locks, its running key, and that it compiles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from perfusion_concepts import (
    attention,
    encode,
    make_batch,
    make_perfusion,
    seeded,
)
from torch import Tensor

from neti.models.backbone.backbone import Backbone
from neti.models.conditioning.conditioning import Conditioning
from neti.training.coach.objective import Objective
from neti.training.coach.optimizer import make_optimizer
from neti.training.config.run import OptimConfig
from neti.utils.errors import UserError


class TestWhatIsLearned:
    def test_values_and_word_and_nothing_else(self, tiny_backbone: Backbone) -> None:
        method = make_perfusion(tiny_backbone)
        before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
        frozen = [
            {name: tensor.clone() for name, tensor in part.state_dict().items()}
            for part in (tiny_backbone.unet, tiny_backbone.text_encoder)
        ]
        objective = Objective(method.train(), tiny_backbone)
        optimizer, _ = make_optimizer(method, OptimConfig(), 0.03)
        for step in range(3):
            objective(make_batch(tiny_backbone, seed=step)).backward()
            optimizer.step()
            optimizer.zero_grad()
        after = method.state_dict()
        assert torch.equal(after["key_targets"], before["key_targets"]), "bit for bit"
        assert not method.key_targets.requires_grad and method.key_targets.grad is None
        for name in ("value_targets", "word", "key"):
            assert not torch.equal(after[name], before[name]), name
        assert all(part.diff().abs().max() > 0 for part in (after["value_targets"] - before["value_targets"]).split(16))
        for part, saved in zip((tiny_backbone.unet, tiny_backbone.text_encoder), frozen, strict=True):
            for name, tensor in part.state_dict().items():
                assert torch.equal(tensor, saved[name]), name
            assert not any(p.requires_grad or p.grad is not None for p in part.parameters())

    def test_keys_are_learned_when_asked_for(self, tiny_backbone: Backbone) -> None:
        method = make_perfusion(tiny_backbone, lock="trained")
        Objective(method, tiny_backbone)(make_batch(tiny_backbone)).backward()
        assert method.key_targets.grad is not None and method.key_targets.grad.abs().sum() > 0
        method.eval()
        assert method.lock == "trained" and method.drawn_with(lock="global").lock == "global"
        with pytest.raises(
            UserError, match=r"lock local: the concept was trained with lock trained; .* trained or global"
        ):
            method.drawn_with(lock="local")

    def test_values_and_word_have_their_own_rates(self, tiny_backbone: Backbone) -> None:
        method = make_perfusion(tiny_backbone)
        optimizer, _ = make_optimizer(method, OptimConfig(), 0.03)
        rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
        assert rates[id(method.value_targets)] == pytest.approx(0.03)
        assert rates[id(method.word)] == pytest.approx(0.006)

    def test_the_gradient_is_that_of_the_loss(self, tiny_backbone: Backbone) -> None:
        """Central differences through the text encoder, both projections and the gate."""
        method = make_perfusion(tiny_backbone, key_decay=1.0).train()  # the key stands still, or it would follow
        objective, batch = Objective(method, tiny_backbone), make_batch(tiny_backbone)
        objective(batch).backward()
        for parameter in (method.word, method.value_targets):
            assert parameter.grad is not None
            step = 0.02 * parameter.detach().norm() * torch.nn.functional.normalize(parameter.grad, dim=0)
            with torch.no_grad():
                losses = []
                for sign in (1, -2):
                    parameter += sign * step
                    losses.append(objective(batch).double())
                parameter += step
            assert float(losses[0] - losses[1]) == pytest.approx(float((parameter.grad * 2 * step).sum()), rel=0.02)


class TestTheRunningKey:
    def conditioning(self, encodings: Tensor, slots: list[list[int]]) -> Conditioning:
        keys = encodings.expand(16, -1, -1, -1)
        return Conditioning(keys, keys, torch.tensor(slots))

    def test_it_has_its_closed_form(self, tiny_backbone: Backbone) -> None:
        method = make_perfusion(tiny_backbone).train()
        start = method.key.clone()
        encodings = torch.randn(2, 3, 32, generator=seeded(1))
        slots = [[0, 1, 0], [0, 0, 1]]
        for _ in range(7):
            method.observe(self.conditioning(encodings, slots))
        mean = (encodings[0, 1] + encodings[1, 2]) / 2
        torch.testing.assert_close(method.key, 0.99**7 * start + (1 - 0.99**7) * mean, atol=1e-6, rtol=0)

    def test_the_order_inside_a_batch_does_not_matter(self, tiny_backbone: Backbone) -> None:
        one, other = make_perfusion(tiny_backbone), make_perfusion(tiny_backbone)
        encodings = torch.randn(2, 3, 32, generator=seeded(1))
        one.observe(self.conditioning(encodings, [[0, 1, 0], [0, 0, 1]]))
        other.observe(self.conditioning(encodings.flip(0), [[0, 0, 1], [0, 1, 0]]))
        torch.testing.assert_close(one.key, other.key)

    def test_only_training_moves_it(self, tiny_backbone: Backbone) -> None:
        method = make_perfusion(tiny_backbone)
        start = method.key.clone()
        objective = Objective(method.train(), tiny_backbone)
        objective.eval()
        objective(make_batch(tiny_backbone))
        assert torch.equal(method.key, start)
        objective.train()
        objective(make_batch(tiny_backbone))
        assert not torch.equal(method.key, start)

    def test_no_gradient_goes_through_it(self, tiny_backbone: Backbone) -> None:
        method = make_perfusion(tiny_backbone).train()
        Objective(method, tiny_backbone)(make_batch(tiny_backbone)).backward()
        assert not method.key.requires_grad and method.key.grad is None


def test_the_covariance_must_be_of_the_text_encoder(
    tiny_backbone: Backbone, make_tiny_backbone: Callable[..., Backbone]
) -> None:
    with torch.no_grad():
        tiny_backbone.text_encoder.final_layer_norm.weight *= 2
    with pytest.raises(UserError, match="measured on another text encoder"):
        make_perfusion(tiny_backbone)


def test_a_plan_needs_no_unet_weights(tiny_backbone_folder: Path) -> None:
    sketch = Backbone.from_pretrained(str(tiny_backbone_folder), components=("text_encoder",))
    method = make_perfusion(sketch)
    assert method.key.any() and not method.value_targets.any()


def test_it_compiles_as_one_graph(tiny_backbone: Backbone) -> None:
    """One layer of it: a training step of the whole U-Net takes a minute to compile."""
    method = make_perfusion(tiny_backbone).train()
    layer, text = tiny_backbone.frame.layers[0], encode(tiny_backbone, {"{}": method})
    module, projection = attention(tiny_backbone, layer), method.projection()

    def project(keys: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        return projection.project(module, layer, keys, keys, slots)

    compiled = torch.compile(project, fullgraph=True, backend="eager")
    for _ in range(2):
        expected = project(text.keys[0], text.slots)  # type: ignore[arg-type]
        torch.testing.assert_close(compiled(text.keys[0], text.slots), expected)
        with torch.no_grad():
            method.key += 0.1  # followed by the compiled one too
