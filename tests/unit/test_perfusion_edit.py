"""The rank-one edit of Perfusion in float64: what its equations promise, to 1e-10."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from neti.models.methods.perfusion.config import GateMode, Overlap
from neti.models.methods.perfusion.edit import RankOneEdit, dual, running_mean
from neti.utils.errors import UserError

D, WIDTH = 12, 7
BETA, TAU = 0.7, 0.15


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


COVARIANCE = draw(D, 4 * D, seed=1) @ draw(D, 4 * D, seed=1).T / 40 + 0.1 * torch.eye(D, dtype=torch.float64)
P = torch.linalg.inv(COVARIANCE)
W = draw(WIDTH, D, seed=2)
KEYS, TARGETS = draw(3, D, seed=3), draw(3, WIDTH, seed=4)
ENCODINGS = draw(2, 5, D, seed=5)


def make(count: int = 1, covariance_scale: float = 1.0, keys: Tensor = KEYS, **changes: Any) -> RankOneEdit:
    keys = keys[:count]
    edit = RankOneEdit(
        keys=keys,
        duals=dual(keys, P / covariance_scale),
        beta=torch.full((count,), BETA, dtype=torch.float64),
        tau=torch.full((count,), TAU, dtype=torch.float64),
        scale=torch.ones(count, dtype=torch.float64),
        slot_numbers=tuple(range(1, count + 1)),
    )
    return replace(edit, **changes)


def project(edit: RankOneEdit, e: Tensor, slots: Tensor | None = None, targets: Tensor | None = None) -> Tensor:
    """h(e), as a layer computes it."""
    rows = edit.rows(lambda x: x @ W.T, TARGETS[: len(edit.keys)] if targets is None else targets)
    return e @ W.T + edit.coefficients(e, slots) @ rows


def gate(similarity: Tensor | float, beta: float = BETA, tau: float = TAU) -> Tensor:
    return torch.sigmoid((torch.as_tensor(similarity, dtype=torch.float64) - beta) / tau)


def without_key(e: Tensor, key: Tensor = KEYS[0]) -> Tensor:
    """e minus its part along the key, by the definition."""
    return e - ((e @ P @ key) / (key @ P @ key))[..., None] * key


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-10, rtol=0)


class TestOneConcept:
    def test_equation_3_as_it_is_written(self) -> None:
        edit = make()
        expected = without_key(ENCODINGS) @ W.T + gate(edit.similarities(ENCODINGS)) * TARGETS[0]
        close(project(edit, ENCODINGS), expected)

    def test_similarity_is_one_at_the_key_and_zero_across_it(self) -> None:
        close(make().similarities(KEYS[0]), torch.ones(1, dtype=torch.float64))
        close(make().similarities(without_key(ENCODINGS)), torch.zeros(2, 5, 1, dtype=torch.float64))

    def test_without_the_gate_it_is_the_static_edit(self) -> None:
        """s in the gate's place: i* goes to o*, what is across it to W e, all of it as one matrix W'."""
        edit = make()
        rows = edit.rows(lambda x: x @ W.T, TARGETS[:1])

        def ungated(e: Tensor) -> Tensor:
            similarity = edit.similarities(e)
            return e @ W.T + torch.cat([-similarity, similarity], dim=-1) @ rows

        close(ungated(KEYS[0]), TARGETS[0])
        close(ungated(without_key(ENCODINGS)), without_key(ENCODINGS) @ W.T)
        energy = KEYS[0] @ P @ KEYS[0]
        static = W + torch.outer(TARGETS[0] - W @ KEYS[0], P @ KEYS[0]) / energy
        close(ungated(ENCODINGS), ENCODINGS @ static.T)

    def test_the_key_goes_to_the_target_as_far_as_the_gate_opens(self) -> None:
        close(project(make(), KEYS[0]), gate(1.0) * TARGETS[0])

    @pytest.mark.parametrize(
        ("beta", "tau", "at_key", "leak"), [(0.75, 0.1, 0.9241, 0.00055), (0.7, 0.15, 0.8808, 0.00932)]
    )
    def test_the_numbers_of_the_two_settings(self, beta: float, tau: float, at_key: float, leak: float) -> None:
        edit = make(beta=torch.tensor([beta]), tau=torch.tensor([tau]))
        gates = edit.coefficients(torch.stack([KEYS[0], without_key(ENCODINGS[0, 0])]))[:, 1]
        torch.testing.assert_close(gates, torch.tensor([at_key, leak], dtype=torch.float64), atol=5e-5, rtol=0)

    def test_a_closed_gate_takes_the_keys_part_away(self) -> None:
        closed = project(make(beta=torch.full((1,), torch.inf, dtype=torch.float64)), ENCODINGS)
        close(closed, without_key(ENCODINGS) @ W.T)
        assert (closed - ENCODINGS @ W.T).abs().max() > 0.1

    def test_the_leak_where_there_is_no_similarity(self) -> None:
        across = without_key(ENCODINGS)
        changed = (project(make(), across) - across @ W.T).norm(dim=-1)
        close(changed, (gate(0.0) * TARGETS[0].norm()).expand(2, 5))

    def test_the_scale_of_the_covariance_does_not_matter(self) -> None:
        for factor in (1e-3, 7.0):
            close(project(make(covariance_scale=factor), ENCODINGS), project(make(), ENCODINGS))

    def test_the_key_is_not_normalised(self) -> None:
        close(make(keys=3 * KEYS).similarities(ENCODINGS), make().similarities(ENCODINGS) / 3)

    def test_at_the_start_it_is_near_the_frozen_layer(self) -> None:
        edit = make()
        similarity = edit.similarities(ENCODINGS)
        start = project(edit, ENCODINGS, targets=KEYS[:1] @ W.T)
        close(start - ENCODINGS @ W.T, (gate(similarity) - similarity) * (W @ KEYS[0]))

    def test_half_precision_encodings_are_compared_in_float32(self) -> None:
        edit = replace(make(), keys=KEYS[:1].float(), duals=make().duals.float())
        assert edit.similarities(ENCODINGS.half()).dtype == torch.float32
        assert make().similarities(ENCODINGS).dtype == torch.float64


class TestOtherModes:
    def test_residual_with_a_closed_gate_is_the_frozen_layer(self) -> None:
        edit = make(mode=GateMode.residual, beta=torch.full((1,), torch.inf, dtype=torch.float64))
        assert torch.equal(project(edit, ENCODINGS), ENCODINGS @ W.T)

    def test_residual_as_it_is_written(self) -> None:
        edit = make(2, mode=GateMode.residual)
        gates = gate(edit.similarities(ENCODINGS))
        expected = ENCODINGS @ W.T
        for j in range(2):
            expected = expected + gates[..., j : j + 1] * (TARGETS[j] - W @ KEYS[j])
        close(project(edit, ENCODINGS), expected)

    def test_explicit_touches_the_concepts_token_alone(self) -> None:
        edit = make(2, mode=GateMode.explicit, slot_numbers=(1, 3), scale=torch.tensor([0.5, 2.0], dtype=torch.float64))
        slots = torch.tensor([[0, 1, 2, 3, 0], [0, 0, 0, 0, 1]])
        change = project(edit, ENCODINGS, slots) - ENCODINGS @ W.T
        for place in [(0, 1), (1, 4)]:
            cosine = torch.cosine_similarity(ENCODINGS[place], KEYS[0], dim=0)
            close(change[place], 0.5 * cosine * TARGETS[0])
        close(change[0, 3], 2 * torch.cosine_similarity(ENCODINGS[0, 3], KEYS[1], dim=0) * TARGETS[1])
        assert not change[slots == 0].any() and not change[slots == 2].any()

    def test_explicit_without_scale_or_concept_is_the_frozen_layer(self) -> None:
        slots = torch.ones(2, 5, dtype=torch.long)
        off = make(mode=GateMode.explicit, scale=torch.zeros(1, dtype=torch.float64))
        assert torch.equal(project(off, ENCODINGS, slots), ENCODINGS @ W.T)
        assert torch.equal(project(make(mode=GateMode.explicit), ENCODINGS, None), ENCODINGS @ W.T)


class TestSeveralConcepts:
    def test_one_of_many_is_the_single_concept(self) -> None:
        single = make()
        alone = replace(make(2), **{name: getattr(make(2), name)[:1] for name in ("keys", "duals", "beta", "tau")})
        close(project(alone, ENCODINGS), project(single, ENCODINGS))

    def test_the_order_does_not_matter(self) -> None:
        order = [2, 0, 1]
        beta = torch.tensor([0.5, 0.6, 0.7], dtype=torch.float64)
        edit = make(3, beta=beta)
        turned = replace(edit, keys=KEYS[order], duals=edit.duals[order], beta=beta[order])
        close(project(turned, ENCODINGS, targets=TARGETS[order]), project(edit, ENCODINGS))

    def test_what_is_left_is_orthogonal_to_every_key(self) -> None:
        parts = -make(3).coefficients(ENCODINGS)[..., :3]
        left = ENCODINGS - parts @ KEYS
        close(left @ P @ KEYS.T, torch.zeros(2, 5, 3, dtype=torch.float64))

    def test_it_is_the_projection_by_cholesky_and_qr(self) -> None:
        upper = torch.linalg.cholesky(P, upper=True)
        basis = torch.linalg.qr(upper @ KEYS.T)[0]
        expected = ENCODINGS - torch.linalg.solve(upper, basis @ basis.T @ upper @ ENCODINGS[..., None]).squeeze(-1)
        parts = -make(3).coefficients(ENCODINGS)[..., :3]
        close(ENCODINGS - parts @ KEYS, expected)

    def test_orthogonal_keys_meet_by_the_leak_alone(self) -> None:
        keys = torch.stack([KEYS[0], without_key(KEYS[1])])
        both = project(make(2, keys=keys, beta=torch.full((2,), 0.6, dtype=torch.float64)), keys[0])
        alone = project(make(1, keys=keys, beta=torch.full((1,), 0.6, dtype=torch.float64)), keys[0])
        close((both - alone).norm(), gate(0.0, beta=0.6) * TARGETS[1].norm())

    def test_the_approximation_is_exact_for_orthogonal_keys_only(self) -> None:
        keys = torch.stack([KEYS[0], without_key(KEYS[1])])
        close(project(make(2, keys=keys, overlap=Overlap.approx), ENCODINGS), project(make(2, keys=keys), ENCODINGS))
        oblique = project(make(2, overlap=Overlap.approx), ENCODINGS) - project(make(2), ENCODINGS)
        assert oblique.abs().max() > 1e-3

    def test_the_same_concept_twice_is_refused(self) -> None:
        with pytest.raises(UserError, match="concepts 1 and 2 of the prompt have the same key"):
            make(2, keys=torch.stack([KEYS[0], 1.01 * KEYS[0]]))


def test_the_running_key_has_its_closed_form() -> None:
    encoding = draw(D, seed=7)
    key = KEYS[0]
    for _ in range(9):
        key = running_mean(key, encoding, 0.99)
    close(key, 0.99**9 * KEYS[0] + (1 - 0.99**9) * encoding)
