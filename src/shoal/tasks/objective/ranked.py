"""Quadratics whose minimisers follow the peers' numbers, with noisy gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import Draws, Place, tasks

from .quadratic import Quadratic, Quadratics

__all__ = ["RankedQuadratic", "RankedQuadratics"]


@tasks.register("ranked-quadratic")
@dataclass(frozen=True)
class RankedQuadratic(Quadratic):
    """``quadratic`` with centres c_i + trend (i / (n - 1) - 1/2) u for one random unit vector u.

    Whatever depends on a peer's number, such as how often it takes part, is thereby correlated with
    its data.

    Args:
        trend: distance between the centres of the first and the last peer that is due to their numbers.
        noise: standard deviation of each coordinate of a stochastic gradient.
    """

    kappa: Annotated[float, Meta(ge=1)] = 2.0
    spread: Annotated[float, Meta(ge=0)] = 0.0
    trend: Annotated[float, Meta(ge=0)] = 4.0
    noise: Annotated[float, Meta(ge=0)] = 1.0

    def open(self, place: Place) -> RankedQuadratics:
        return RankedQuadratics(self, place)


class RankedQuadratics(Quadratics):
    """The open task.

    Args:
        config: the task.
        place: this block.
    """

    def __init__(self, config: RankedQuadratic, place: Place) -> None:
        super().__init__(config, place)
        self.noise = config.noise
        one = Draws(place.seed, "shared/quadratic", torch.zeros(1, dtype=torch.int64))
        u = one.at("trend").normal(config.dim)
        rank = torch.arange(place.n, dtype=torch.float64) / max(place.n - 1, 1) - 0.5
        self._c = self._c + config.trend * rank[:, None] * u / u.norm()
        self.c = self._c.to(place.dtype)

    def grad(self, x: Tensor, tick: int, *, step: int = 0, active: Tensor | None = None) -> Tensor:
        g = super().grad(x, tick, step=step, active=active)
        draws = Draws(self.place.seed, f"noise/{step}", self.peers, tick)
        noise = self.noise * draws.normal(self.dim, dtype=x.dtype)
        return g + (noise if active is None else noise * active[:, None])
