"""FedAsync and FedBuff: asynchronous averaging that discounts stale returns.

Sources: Xie, Koyejo, Gupta, "Asynchronous federated optimization" (2019, arXiv 1903.03934); Nguyen
et al., "Federated learning with buffered asynchronous aggregation" (AISTATS 2022, arXiv 2106.06639).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import Context, Differentiable, Tick, methods

from .anarchic import AFACD, Anarchy
from .versions import Versioned, staleness

__all__ = ["FedAsync", "FedBuff", "Latest"]


@methods.register("fedbuff")
@dataclass(frozen=True)
class FedBuff(AFACD):
    """x <- x + eta mean (1 + s_i)^-a Delta_i when m peers have returned; Delta_i is the whole local
    change of the model, and s_i how stale the version was that it started from.

    Args:
        discount: a.
    """

    server_lr: Annotated[float, Meta(gt=0)] = 1.0
    normalise: bool = False
    discount: Annotated[float, Meta(ge=0)] = 0.5

    def work_of(self, s: Anarchy, tick: Tick, ctx: Context[Differentiable]) -> tuple[Tensor, Tensor]:
        x, g = super().work_of(s, tick, ctx)
        return x, g * (1 + ctx.mine(staleness(tick))[:, None].to(g.dtype)) ** -self.discount


@dataclass(frozen=True)
class Latest:
    """x [P, D], what each peer last pulled; server [A, V, D], the V latest versions."""

    x: Tensor
    server: Tensor


@methods.register("fedasync")
@dataclass(frozen=True)
class FedAsync(Versioned):
    """x <- (1 - alpha_s) x + alpha_s x_i on a return, alpha_s = alpha (1 + s)^-a.

    Where several peers return in one tick, x moves by the mean of what each would have done.

    Args:
        alpha: mixing weight of a fresh return.
        discount: a.
    """

    alpha: Annotated[float, Meta(gt=0, le=1)] = 0.6
    discount: Annotated[float, Meta(ge=0)] = 0.5

    def init(self, ctx: Context[Differentiable]) -> Latest:
        x = ctx.task.init()
        one = x[:1] if ctx.net.hosts_server else x[:0]
        return Latest(x, one[:, None].repeat(1, self.versions, 1))

    def step(self, s: Latest, tick: Tick, ctx: Context[Differentiable]) -> Latest:
        x = self.pull(s.server, s.x, tick, ctx)
        local = x - self.lr * self.gradients(x, tick, ctx)
        weight = self.alpha * (1 + staleness(tick).to(torch.float64)) ** -self.discount
        now = s.server[:, 0]
        mean = ctx.net.pool(local, tick, weight=ctx.mine(weight), held=now)
        share = float(weight[tick.active].mean()) if bool(tick.active.any()) else 0.0
        new = now + share * (mean - now)
        return replace(s, x=x, server=torch.cat([new[:, None], s.server[:, :-1]], 1))

    def output(self, s: Latest) -> Tensor:
        """The newest model, for every peer."""
        return s.server[:, 0].expand(len(s.x), -1) if len(s.server) else s.x
