"""D-optimal experiment design: which points to measure, and how often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Draws, Place, Task, tasks

from .base import Objective

__all__ = ["Design", "Information"]


@tasks.register("d-optimal")
@dataclass(frozen=True)
class Design(Task):
    """f_i(x) = -log det(sum_j x_j a_ij a_ij'): x_j is the share of measurements at point j.

    Peer i sees each candidate point through regressors of its own (a common part and its own part),
    so F is the compound criterion of designs that must serve several models. f_i is finite where the
    information matrix is positive definite, so never at a vertex of the simplex.

    Args:
        points: D, the candidate points.
        regressors: d, their features; at most ``points``.
        own: weight of a peer's own part of the features, 0: all peers have one model.
    """

    points: Annotated[int, Meta(ge=2)] = 60
    regressors: Annotated[int, Meta(ge=1)] = 8
    own: Annotated[float, Meta(ge=0, le=1)] = 0.3

    def check(self) -> None:
        if self.regressors > self.points:
            raise BadInput("regressors", self.regressors, f"at most points ({self.points})")

    def open(self, place: Place) -> Information:
        return Information(self, place)


class Information(Objective):
    """The open task.

    Args:
        config: the task.
        place: this block.
    """

    def __init__(self, config: Design, place: Place) -> None:
        super().__init__(place, config.points)
        shape = (config.points, config.regressors)
        one = Draws(place.seed, "shared/design", torch.zeros(1, dtype=torch.int64)).normal(*shape)
        own = Draws(place.seed, "design", torch.arange(place.n)).normal(*shape)
        a = (1 - config.own**2) ** 0.5 * one + config.own * own
        self.a = a.to(place.dtype)

    def start(self) -> Tensor:
        """The same share for every point."""
        return torch.full((self.dim,), 1 / self.dim, dtype=self.place.dtype)

    def value(self, x: Tensor, who: Tensor) -> Tensor:
        factor, bad = torch.linalg.cholesky_ex(self._information(x, who))
        diagonal = torch.diagonal(factor, dim1=1, dim2=2)
        inside = (bad == 0) & (diagonal > 0).all(1)
        return torch.where(inside, -2 * torch.log(diagonal.abs().clamp(min=1e-300)).sum(1), torch.inf)

    def slope(self, x: Tensor, who: Tensor) -> Tensor:
        """-a_j' M^-1 a_j."""
        return -self._whitened(x, who).pow(2).sum(1)

    def curvature(self, x: Tensor, who: Tensor) -> Tensor:
        """(a_j' M^-1 a_k)^2."""
        w = self._whitened(x, who)
        return torch.bmm(w.transpose(1, 2), w).pow(2)

    def _information(self, x: Tensor, who: Tensor) -> Tensor:
        a = self.a[who]
        return torch.bmm((a * x[:, :, None]).transpose(1, 2), a)

    def _whitened(self, x: Tensor, who: Tensor) -> Tensor:
        """C^-1 a_j with M = CC': [M, d, points], NaN outside the domain."""
        factor, bad = torch.linalg.cholesky_ex(self._information(x, who))
        right = torch.linalg.solve_triangular(factor, self.a[who].transpose(1, 2), upper=False)
        inside = (bad == 0) & (torch.diagonal(factor, dim1=1, dim2=2) > 0).all(1)
        return torch.where(inside[:, None, None], right, torch.nan)
