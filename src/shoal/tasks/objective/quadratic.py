"""Strongly convex quadratics with a chosen condition number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Draws, Place, Task, tasks

from .base import Objective

__all__ = ["Quadratic", "Quadratics"]


@tasks.register("quadratic")
@dataclass(frozen=True)
class Quadratic(Task):
    """f_i(x) = 1/2 (x - c_i)' U diag(s_i) U' (x - c_i), one orthonormal U for all peers.

    With a basis of its own for each peer the average would be far better conditioned than the parts;
    a shared one keeps the condition number of F at ``kappa``. The eigenvalues run from mu to
    mu * kappa, evenly in the logarithm; those between are each peer's own up to ``spread``.

    Args:
        dim: D.
        kappa: condition number L / mu of every f_i.
        mu: smallest eigenvalue.
        spread: standard deviation of the logarithm of the inner eigenvalues between peers.
        shift: standard deviation of the centres c_i around their common mean.
    """

    dim: Annotated[int, Meta(ge=2)] = 5
    kappa: Annotated[float, Meta(ge=1)] = 100.0
    mu: Annotated[float, Meta(gt=0)] = 1.0
    spread: Annotated[float, Meta(ge=0)] = 0.1
    shift: Annotated[float, Meta(ge=0)] = 1.0

    def check(self) -> None:
        for name in ("kappa", "mu"):
            if getattr(self, name) == float("inf"):
                raise BadInput(name, getattr(self, name), "a finite number")

    def open(self, place: Place) -> Quadratics:
        return Quadratics(self, place)


class Quadratics(Objective):
    """The open task.

    Args:
        config: the task.
        place: this block.
    """

    def __init__(self, config: Quadratic, place: Place) -> None:
        super().__init__(place, config.dim)
        self.config = config
        seed, d, everyone = place.seed, config.dim, torch.arange(place.n)
        one = Draws(seed, "shared/quadratic", torch.zeros(1, dtype=torch.int64))
        own = Draws(seed, "quadratic", everyone)
        basis = torch.linalg.qr(one.at("basis").normal(d, d)[0]).Q
        base = torch.logspace(0, 1, d, base=config.kappa, dtype=torch.float64)
        jitter = torch.exp(config.spread * own.at("eigenvalues").normal(d))
        jitter[:, 0] = jitter[:, -1] = 1.0
        eigenvalues = config.mu * (base * jitter).clamp(1.0, config.kappa)
        centre = one.at("centre").normal(d) + config.shift * own.at("centre").normal(d)
        # The definition is float64 whatever the state: blocks and dtypes see one and the same problem.
        self._a = torch.einsum("jk,nk,lk->njl", basis, eigenvalues, basis)
        self._c = centre
        self.a, self.c = self._a.to(place.dtype), self._c.to(place.dtype)

    def value(self, x: Tensor, who: Tensor) -> Tensor:
        return 0.5 * ((x - self.c[who]) * self.slope(x, who)).sum(1)

    def slope(self, x: Tensor, who: Tensor) -> Tensor:
        return torch.bmm(self.a[who], (x - self.c[who])[:, :, None])[:, :, 0]

    def curvature(self, x: Tensor, who: Tensor) -> Tensor:
        return self.a[who]

    def bounds(self) -> tuple[float, float]:
        return self.config.mu, self.config.mu * self.config.kappa

    def solve(self) -> Tensor:
        """(sum A_i)^-1 sum A_i c_i."""
        return torch.linalg.solve(self._a.sum(0), torch.einsum("nij,nj->i", self._a, self._c))
