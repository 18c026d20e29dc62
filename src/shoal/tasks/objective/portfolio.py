"""Log-optimal portfolios: a generalized self-concordant loss over the simplex."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import Draws, Place, Task, tasks

from .base import Objective

__all__ = ["Portfolio", "Wealth"]


@tasks.register("log-portfolio")
@dataclass(frozen=True)
class Portfolio(Task):
    """f_i(x) = -mean_t log(r_t'x), r_t the price ratios of the assets in the periods that i saw.

    Simulated log-normal ratios with one common market factor; each asset has its own drift. The
    domain of f_i is where every r_t'x > 0; the constraint x in the simplex is the method's.

    Args:
        assets: D.
        periods: of each peer.
        volatility: standard deviation of an asset's own log-ratio in one period.
    """

    assets: Annotated[int, Meta(ge=2)] = 200
    periods: Annotated[int, Meta(ge=1)] = 100
    volatility: Annotated[float, Meta(gt=0, le=1)] = 0.1

    def open(self, place: Place) -> Wealth:
        return Wealth(self, place)


class Wealth(Objective):
    """The open task.

    Args:
        config: the task.
        place: this block.
    """

    def __init__(self, config: Portfolio, place: Place) -> None:
        super().__init__(place, config.assets)
        seed, d, t = place.seed, config.assets, config.periods
        one = Draws(seed, "shared/portfolio", torch.zeros(1, dtype=torch.int64))
        own = Draws(seed, "portfolio", torch.arange(place.n))
        drift = 0.1 * config.volatility * one.at("drift").normal(d)
        beta = 0.5 + one.at("beta").uniform(d)
        market = config.volatility * own.at("market").normal(t, 1)
        noise = config.volatility * own.at("noise").normal(t, d)
        self.ratio = torch.exp(drift + beta * market + noise).to(place.dtype)
        self.sizes = torch.full((len(place.peers),), t)

    def start(self) -> Tensor:
        """The same share of every asset."""
        return torch.full((self.dim,), 1 / self.dim, dtype=self.place.dtype)

    def value(self, x: Tensor, who: Tensor) -> Tensor:
        growth = self._growth(x, who)
        inside = (growth > 0).all(1)
        return torch.where(inside, -torch.log(growth.clamp(min=1e-300)).mean(1), torch.inf)

    def slope(self, x: Tensor, who: Tensor) -> Tensor:
        growth = self._growth(x, who)
        inside = (growth > 0).all(1, keepdim=True)
        weight = torch.where(inside, -1 / (growth * growth.shape[1]), torch.nan)
        return torch.bmm(weight[:, None], self.ratio[who])[:, 0]

    def curvature(self, x: Tensor, who: Tensor) -> Tensor:
        scaled = self.ratio[who] / self._growth(x, who)[:, :, None]
        return torch.bmm(scaled.transpose(1, 2), scaled) / scaled.shape[1]

    def _growth(self, x: Tensor, who: Tensor) -> Tensor:
        return torch.bmm(self.ratio[who], x[:, :, None])[:, :, 0]
