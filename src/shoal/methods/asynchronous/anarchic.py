"""042 Anarchic federated learning: each peer decides when, from what and how long it works.

Source: Yang, Zhang, Khanduri, Liu, "Anarchic federated learning" (ICML 2022, arXiv 2108.09875),
Algorithms 1 and 2 (AFA-CD, AFA-CS). When a peer returns, how stale the model was that it had pulled
and how many steps it took is the clock ``arrivals``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Context, Differentiable, Method, Tick, methods

__all__ = ["AFACD", "AFACS", "Anarchy"]


@dataclass(frozen=True)
class Anarchy:
    """What the aggregator holds, A = 1 (0 in blocks that do not host it), and the peers' models.

    Args:
        x: [P, D], what each peer last pulled.
        server: [A, V, D], the V latest versions; the newest is 0.
        returned: [A, n, D] (cross-silo) or [A, 0, D]: each peer's last return.
        momentum: [A, D], of the server's steps.
    """

    x: Tensor
    server: Tensor
    returned: Tensor
    momentum: Tensor


@dataclass(frozen=True)
class _Anarchic(Method):
    """Abstract: what the two variants share.

    Args:
        lr: eta_L, local step size.
        server_lr: eta; the model moves by eta eta_L times a mean of normalised returns.
        local_steps: K_i where the clock does not say.
        versions: how many versions the aggregator keeps; a peer's delay must be smaller.
        beta: momentum of the server's steps.
    """

    lr: Annotated[float, Meta(gt=0)] = 0.01
    server_lr: Annotated[float, Meta(gt=0)] = 5.0
    local_steps: Annotated[int, Meta(ge=1)] = 5
    versions: Annotated[int, Meta(ge=1)] = 6
    beta: Annotated[float, Meta(ge=0, lt=1)] = 0.0

    memory: ClassVar[bool] = False
    recipe: ClassVar[dict[str, Any]] = {
        "task": {
            "name": "supervised",
            "data": "mnist14",
            "partition": {"name": "classes", "k": 2},
            "model": "linear",
        },
        "network": {"clock": "arrivals(m=5, delay_max=5)"},
        "peers": 50,
        "rounds": 600,
        "every": 20,
    }
    trial: ClassVar[dict[str, Any]] = {"network": {"clock": "arrivals(m=2, delay_max=2)"}}

    def init(self, ctx: Context[Differentiable]) -> Anarchy:
        x = ctx.task.init()
        one = x[:1] if ctx.net.hosts_server else x[:0]
        table = torch.zeros(len(one), ctx.n if self.memory else 0, x.shape[1], dtype=x.dtype)
        return Anarchy(x, one[:, None].repeat(1, self.versions, 1), table, torch.zeros_like(one))

    def work_of(self, s: Anarchy, tick: Tick, ctx: Context[Differentiable]) -> tuple[Tensor, Tensor]:
        """Pull a stale version and take K_i steps from it: (pulled, G_i = (1/K_i) sum_k g_k)."""
        stale = torch.zeros(ctx.n, dtype=torch.int64) if tick.stale is None else tick.stale
        late = stale[tick.active]
        if len(late) and int(late.max()) >= self.versions:
            raise BadInput(
                "versions", self.versions, f"more than the clock's largest delay, {int(late.max())}"
            )
        x = ctx.net.cast(s.server, tick, like=s.x, pick=stale)
        active = ctx.mine(tick.active)
        steps = torch.full_like(stale, self.local_steps) if tick.steps is None else tick.steps
        mine = ctx.mine(steps).clamp(min=1)
        after = ctx.task.sgd(x, tick.index, mine, self.lr, active=active)
        return x, (x - after) / (self.lr * mine[:, None].to(x.dtype))

    def advance(self, s: Anarchy, direction: Tensor) -> Anarchy:
        """The server's step along ``direction`` [A, D]; the oldest version is forgotten."""
        momentum = self.beta * s.momentum + direction
        new = s.server[:, :1] - self.server_lr * self.lr * momentum[:, None]
        return replace(s, server=torch.cat([new, s.server[:, :-1]], 1), momentum=momentum)

    def output(self, s: Anarchy) -> Tensor:
        """The newest model, for every peer."""
        return s.server[:, 0].expand(len(s.x), -1) if len(s.server) else s.x


@methods.register("afa-cd")
@dataclass(frozen=True)
class AFACD(_Anarchic):
    """Cross-device: the model moves along the mean of the returns that have just come in."""

    def step(self, s: Anarchy, tick: Tick, ctx: Context[Differentiable]) -> Anarchy:
        x, g = self.work_of(s, tick, ctx)
        mean = ctx.net.pool(g, tick, held=torch.zeros_like(s.momentum))
        return self.advance(replace(s, x=x), mean)


@methods.register("anarchic-fl", "afa-cs")
@dataclass(frozen=True)
class AFACS(_Anarchic):
    """Cross-silo: the server keeps each peer's last return and moves along the mean of them all, so
    that peers who come often do not count for more."""

    memory: ClassVar[bool] = True

    def step(self, s: Anarchy, tick: Tick, ctx: Context[Differentiable]) -> Anarchy:
        x, g = self.work_of(s, tick, ctx)
        returned = ctx.net.collect(g, tick, held=s.returned)
        return self.advance(replace(s, x=x, returned=returned), returned.mean(1))
