"""042 Anarchic federated learning: each peer decides when, from what and how long it works.

Source: Yang, Zhang, Khanduri, Liu, "Anarchic federated learning" (ICML 2022, arXiv 2108.09875),
Algorithms 1 and 2 (AFA-CD, AFA-CS). When a peer returns, how stale the model was that it had pulled
and how many steps it took is the clock ``arrivals``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import Context, Differentiable, Tick, methods

from .versions import Versioned

__all__ = ["AFACD", "AFACS", "Anarchy"]


@dataclass(frozen=True)
class Anarchy:
    """What the aggregator holds, A = 1 (0 in blocks that do not host it), and the peers.

    Args:
        x: [P, W], what each peer last pulled: the model, and with control variates c behind it.
        variate: [P, D], each peer's c_i ([P, 0] without variates).
        server: [A, V, W], the V latest versions; the newest is 0.
        returned: [A, n, D] (cross-silo) or [A, 0, D]: each peer's last return, 0 before the first.
        momentum: [A, D], of the server's steps.
    """

    x: Tensor
    variate: Tensor
    server: Tensor
    returned: Tensor
    momentum: Tensor


@dataclass(frozen=True)
class _Anarchic(Versioned):
    """Abstract: what the two variants share.

    Args:
        server_lr: eta; the model moves by eta eta_L times a mean of normalised returns.
        beta: momentum of the server's steps.
        normalise: return G_i = (1/K_i) sum_k g_k; else the sum, which counts the diligent for more.
        variates: SCAFFOLD inside: local steps follow g - c_i + c, with c_i the peer's last G_i and c
            their mean over all peers; each download carries c too.
    """

    server_lr: Annotated[float, Meta(gt=0)] = 5.0
    beta: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    normalise: bool = True
    variates: bool = False

    memory: ClassVar[bool] = False

    def init(self, ctx: Context[Differentiable]) -> Anarchy:
        x = ctx.task.init()
        wide = torch.cat([x, torch.zeros_like(x)], 1) if self.variates else x
        one = wide[:1] if ctx.net.hosts_server else wide[:0]
        table = torch.zeros(len(one), ctx.n if self.memory else 0, x.shape[1], dtype=x.dtype)
        variate = torch.zeros_like(x) if self.variates else x[:, :0]
        momentum = torch.zeros_like(one[:, : x.shape[1]])
        return Anarchy(wide, variate, one[:, None].repeat(1, self.versions, 1), table, momentum)

    def work_of(self, s: Anarchy, tick: Tick, ctx: Context[Differentiable]) -> tuple[Tensor, Tensor]:
        """Pull a stale version and take K_i steps from it: (pulled, G_i)."""
        pulled = self.pull(s.server, s.x, tick, ctx)
        model, c = pulled[:, : ctx.task.dim], pulled[:, ctx.task.dim :]
        g = self.gradients(model, tick, ctx, c - s.variate if self.variates else None)
        if self.normalise:
            g = g / self.count(tick, ctx).clamp(min=1)[:, None].to(g.dtype)
        return pulled, g

    def remember(self, s: Anarchy, g: Tensor, tick: Tick, ctx: Context[Differentiable]) -> Tensor:
        """The peers' variates after a tick: G_i at those who returned."""
        return torch.where(ctx.mine(tick.active)[:, None], g, s.variate) if self.variates else s.variate

    def advance(self, s: Anarchy, direction: Tensor, c: Tensor) -> Anarchy:
        """The server's step along ``direction`` [A, D]; the oldest version is forgotten."""
        momentum = self.beta * s.momentum + direction
        new = s.server[:, 0, : direction.shape[1]] - self.server_lr * self.lr * momentum
        if self.variates:
            new = torch.cat([new, c], 1)
        return replace(s, server=torch.cat([new[:, None], s.server[:, :-1]], 1), momentum=momentum)

    def output(self, s: Anarchy) -> Tensor:
        """The newest model, for every peer."""
        dim = s.momentum.shape[1]
        return s.server[:, 0, :dim].expand(len(s.x), -1) if len(s.server) else s.x[:, :dim]


@methods.register("afa-cd")
@dataclass(frozen=True)
class AFACD(_Anarchic):
    """Cross-device: the model moves along the mean of the returns that have just come in.

    With ``variates`` peers return G_i - c_i; the mean of that plus c is the direction, and m/n of it
    is what c moves by.
    """

    def step(self, s: Anarchy, tick: Tick, ctx: Context[Differentiable]) -> Anarchy:
        x, g = self.work_of(s, tick, ctx)
        c = s.server[:, 0, ctx.task.dim :] if self.variates else torch.zeros_like(s.momentum)
        up = g - s.variate if self.variates else g
        mean = ctx.net.pool(up, tick, held=torch.zeros_like(s.momentum))
        share = float(tick.active.sum()) / ctx.n
        after = replace(s, x=x, variate=self.remember(s, g, tick, ctx))
        return self.advance(after, c + mean, c + share * mean)


@methods.register("anarchic-fl", "afa-cs")
@dataclass(frozen=True)
class AFACS(_Anarchic):
    """Cross-silo: the server keeps each peer's last return and moves along the mean of them all, so
    that peers who come often do not count for more."""

    memory: ClassVar[bool] = True

    def step(self, s: Anarchy, tick: Tick, ctx: Context[Differentiable]) -> Anarchy:
        x, g = self.work_of(s, tick, ctx)
        returned = ctx.net.collect(g, tick, held=s.returned)
        mean = returned.mean(1)
        after = replace(s, x=x, returned=returned, variate=self.remember(s, g, tick, ctx))
        return self.advance(after, mean, mean)
