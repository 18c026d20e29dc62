"""119 Learning from history: worker momentum, and a server that clips around what it last believed.

Source: Karimireddy, He, Jaggi, "Learning from history for Byzantine robust optimization" (ICML 2021,
arXiv 2012.10333), Algorithm 2; the aggregation itself is the rule ``centered-clip``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import Context, Differentiable, Method, Tick, methods

__all__ = ["WorkerMomentum", "Workers"]


@dataclass(frozen=True)
class Workers:
    """x [P, D] the model as each peer holds it, m [P, D] worker momenta, v [A, D] the last aggregate,
    server [A, D] the model."""

    x: Tensor
    m: Tensor
    v: Tensor
    server: Tensor


@methods.register("centered-clip")
@dataclass(frozen=True)
class WorkerMomentum(Method):
    """m_i <- b m_i + (1-b) g_i; v <- rule(m_1..m_n around v); x <- x - lr v.

    Args:
        lr: step size.
        beta: b, momentum of the workers; 0: plain gradients.
    """

    lr: Annotated[float, Meta(gt=0)] = 0.1
    beta: Annotated[float, Meta(ge=0, lt=1)] = 0.9

    recipe: ClassVar[dict[str, Any]] = {
        "task": {
            "name": "supervised",
            "data": "mnist14",
            "partition": "iid",
            "model": {"name": "mlp", "hidden": [32]},
        },
        "network": {"rule": "centered-clip(tau=1)", "attack": "ipm", "hostile": 0.2},
        "peers": 25,
        "rounds": 300,
        "every": 20,
    }

    def init(self, ctx: Context[Differentiable]) -> Workers:
        x = ctx.task.init()
        server = x[:1] if ctx.net.hosts_server else x[:0]
        return Workers(x, torch.zeros_like(x), torch.zeros_like(server), server)

    def step(self, s: Workers, tick: Tick, ctx: Context[Differentiable]) -> Workers:
        active = ctx.mine(tick.active)
        x = ctx.net.cast(s.server, tick, like=s.x)
        g = ctx.task.grad(x, tick.index, active=active)
        m = torch.where(active[:, None], self.beta * s.m + (1 - self.beta) * g, s.m)
        v = ctx.net.pool(m, tick, held=s.v)
        return Workers(x, m, v, s.server - self.lr * v)

    def output(self, s: Workers) -> Tensor:
        """The server's model, for every peer."""
        return s.server.expand(len(s.x), -1) if len(s.server) else s.x
