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
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ....utils.errors import UserError
from .config import GateMode, Overlap

SAME_KEY = 0.9999  # cosine of two keys in the metric above which they are one concept


@dataclass
class RankOneEdit:
    """The edit of J concepts together, the same for every layer; see the module's equations.

    keys [J, D]: i*_j. duals [J, D]: P i*_j (see `dual`); `explicit` does not use them. beta, tau: of the gates, numbers
    or [J]. scale: of `explicit`, likewise. slot_numbers: the slot of each concept, for `explicit`.

    With several concepts each has its own gate, and an encoding loses its projection onto the span of all keys:
    W (e - sum_j c_j(e) i*_j) + sum_j g_j(e) o*_j with c = G^-1 [<i*_j, e>], G_jk = <i*_j, i*_k>; `overlap` "approx"
    takes c_j = s_j instead, which is exact for orthogonal keys only.
    gram [J, J]: G; its diagonal holds the energies E.
    Raises UserError for two concepts with one key: G is singular, and there is no projection onto their span.
    """

    keys: Tensor
    duals: Tensor
    beta: Tensor | float
    tau: Tensor | float
    scale: Tensor | float = 1.0
    slot_numbers: tuple[int, ...] = (1,)
    mode: GateMode = GateMode.paper
    overlap: Overlap = Overlap.gram

    gram: Tensor = field(init=False)
    _inverse_gram: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.gram = self.keys @ self.duals.T
        if len(self.keys) > 1:
            self._check_distinct()
            if self.mode is GateMode.paper and self.overlap is Overlap.gram:
                self._inverse_gram = torch.linalg.inv(self.gram)

    def _check_distinct(self) -> None:
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
        if self._inverse_gram is not None:
            parts = (similarities * self.gram.diagonal()) @ self._inverse_gram
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


def running_mean(key: Tensor, encoding: Tensor, decay: float) -> Tensor:
    """decay i* + (1 - decay) e: the key [D] after one more batch, in which the concept was encoded as e [D]."""
    return decay * key + (1 - decay) * encoding


def _wide(tensor: Tensor) -> Tensor:
    """At least float32: P has entries of 0.2 and a smallest eigenvalue of 2e-4, beyond half precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
