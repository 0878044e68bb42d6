"""The gated rank-one edit of one key or value projection: the mathematics alone (Perfusion, Tewel et al. 2023).

A projection W maps an encoding e [D] to W e [width]. A concept has a key i* [D] among the encodings and a target o*
[width] among the outputs. In the metric of P = C^-1, C the second moments of all encodings,

    <x, y> = x^T P y,    E = <i*, i*>,    s(e) = <i*, e> / E,    g(e) = sigmoid((s(e) - beta) / tau)

    paper:      h(e) = W (e - s(e) i*) + g(e) o*       (its equation 3; ours is gated where its equation 2 is linear)
    residual:   h(e) = W e + g(e) (o* - W i*)          (ours: with the gate closed nothing changes)
    explicit:   h(e) = W e + scale cos(e, i*) o*       (DemoCaricature: only where the concept stands, and no C)

All three are W e plus a few rows of outputs, weighted by numbers that depend on e:

    h(e) = W e + coefficients(e) @ rows(W, o*)

so that the frozen projection runs as it is, and the rows, which hold W i*, are computed once per layer.

Mind, of `paper`: a closed gate does not give W e back, but takes s(e) of the key's direction away from it; h(i*) is
sigmoid((1 - beta) / tau) o*, not o*; and every token gets sigmoid(-beta / tau) o* even where s = 0 (the leak).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ....utils.config.choices import Choice
from ....utils.errors import UserError

SAME_KEY = 0.9999  # cosine of two keys in the metric above which they are one concept


class GateMode(Choice):
    """Which of the three edits: `paper` is Perfusion, `residual` and `explicit` are variants."""

    paper = "paper"
    residual = "residual"
    explicit = "explicit"


class Overlap(Choice):
    """How the keys of several concepts are taken out of an encoding: exactly (`gram`), or as if orthogonal."""

    gram = "gram"
    approx = "approx"


@dataclass(frozen=True)
class RankOneEdit:
    """The edit of J concepts together, the same for every layer; see the module's equations.

    keys [J, D]: i*_j. duals [J, D]: P i*_j (see `dual`); `explicit` does not use them. beta, tau: of the gates, numbers
    or [J]. scale: of `explicit`, likewise. slot_numbers: the slot of each concept, for `explicit`.

    With several concepts each has its own gate, and an encoding loses its projection onto the span of all keys:
    W (e - sum_j c_j(e) i*_j) + sum_j g_j(e) o*_j with c = G^-1 [<i*_j, e>], G_jk = <i*_j, i*_k>; `overlap` "approx"
    takes c_j = s_j instead, which is exact for orthogonal keys only.
    Raises UserError for two concepts with one key: G is singular.
    """

    keys: Tensor
    duals: Tensor
    beta: Tensor | float
    tau: Tensor | float
    scale: Tensor | float = 1.0
    slot_numbers: tuple[int, ...] = (1,)
    mode: GateMode = GateMode.paper
    overlap: Overlap = Overlap.gram

    @cached_property
    def gram(self) -> Tensor:
        """G [J, J], the products of the keys in the metric; its diagonal holds their energies E."""
        return self.keys @ self.duals.T

    @cached_property
    def inverse_gram(self) -> Tensor:
        return torch.linalg.inv(self.gram)

    def check_distinct(self) -> None:
        """Raise UserError if two of the concepts are one: the exact projection does not exist for them."""
        lengths = self.gram.diagonal().sqrt()
        cosines = (self.gram / (lengths[:, None] * lengths)).fill_diagonal_(0)
        if cosines.max() > SAME_KEY:
            first, second = divmod(int(cosines.argmax()), len(cosines))
            raise UserError(
                f"concepts {self.slot_numbers[first]} and {self.slot_numbers[second]} of the prompt have the same key: "
                "one Perfusion concept can stand in a prompt under one name only"
            )

    def similarities(self, encodings: Tensor) -> Tensor:
        """s_j(e) of encodings [..., D]: [..., J], at least float32; 1 at e = i*_j."""
        return _wide(encodings) @ self.duals.T / self.gram.diagonal()

    def coefficients(self, encodings: Tensor, slots: Tensor | None = None) -> Tensor:
        """The weights [..., R] of `rows` for encodings [..., D].

        slots, long, of the shape of encodings without D: the concept standing at each token (0: none); `explicit` edits
        nothing without them.
        """
        if self.mode is GateMode.explicit:
            return self._explicit_coefficients(encodings, slots)
        similarities = self.similarities(encodings)
        gates = torch.sigmoid((similarities - self.beta) / self.tau)
        if self.mode is GateMode.residual:
            return gates
        parts = similarities
        if len(self.keys) > 1 and self.overlap is Overlap.gram:
            parts = (similarities * self.gram.diagonal()) @ self.inverse_gram
        return torch.cat([-parts, gates], dim=-1)

    def rows(self, project: Callable[[Tensor], Tensor], targets: Tensor) -> Tensor:
        """The outputs that are added, [R, width]. project: e -> W e, the frozen layer; targets: o*_j [J, width]."""
        if self.mode is GateMode.explicit:
            return targets
        projected = project(self.keys).to(targets)  # W i*
        if self.mode is GateMode.residual:
            return targets - projected
        return torch.cat([projected, targets])

    def _explicit_coefficients(self, encodings: Tensor, slots: Tensor | None) -> Tensor:
        cosines = torch.nn.functional.normalize(_wide(encodings), dim=-1) @ torch.nn.functional.normalize(self.keys).T
        if slots is None:
            return torch.zeros_like(cosines)
        return self.scale * cosines * torch.stack([slots == number for number in self.slot_numbers], dim=-1)


def dual(key: Tensor, inverse: Tensor) -> Tensor:
    """P i* [..., D] of keys [..., D] and P [D, D]: what turns products with the key into those of the metric."""
    return key @ inverse


def running_mean(key: Tensor, encodings: Tensor, decay: float) -> Tensor:
    """decay i* + (1 - decay) mean(e): the key after one more batch of the concept's encodings [n, D]."""
    return decay * key + (1 - decay) * encodings.mean(dim=0)


def _wide(tensor: Tensor) -> Tensor:
    """At least float32: P has entries of 0.2 and a smallest eigenvalue of 2e-4, beyond half precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
