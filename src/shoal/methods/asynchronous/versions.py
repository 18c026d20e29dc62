"""What the asynchronous methods around one aggregator share: stale versions, and work from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Context, Differentiable, Method, Tick

__all__ = ["Versioned", "staleness"]


def staleness(tick: Tick) -> Tensor:
    """How many versions ago each active peer pulled: int64 [n], 0 for the others."""
    if tick.stale is None:
        return torch.zeros(len(tick.active), dtype=torch.int64)
    return torch.where(tick.active, tick.stale, 0)


@dataclass(frozen=True)
class Versioned(Method):
    """Abstract: the aggregator keeps its latest versions, of which the clock says who pulled which.

    Args:
        lr: eta_L, local step size.
        local_steps: K_i where the clock does not say.
        versions: how many versions the aggregator keeps; a peer's delay must be smaller.
    """

    lr: Annotated[float, Meta(gt=0)] = 0.01
    local_steps: Annotated[int, Meta(ge=1)] = 5
    versions: Annotated[int, Meta(ge=1)] = 6

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
    trial: ClassVar[dict[str, Any]] = {"network": {"clock": "arrivals(m=2, delay_max=2, steps=[1, 3])"}}

    def pull(self, server: Tensor, held: Tensor, tick: Tick, ctx: Context[Any]) -> Tensor:
        """Each active peer's version of ``server`` [A, V, D]: [P, D]; the others keep ``held``.

        Raises:
            BadInput: a version that is no longer kept.
        """
        stale = staleness(tick)
        if int(stale.max()) >= self.versions:
            raise BadInput(
                "versions", self.versions, f"more than the clock's largest delay, {int(stale.max())}"
            )
        return ctx.net.cast(server, tick, like=held, pick=stale)

    def count(self, tick: Tick, ctx: Context[Any]) -> Tensor:
        """K_i: int64 [P]."""
        if tick.steps is None:
            return torch.full((len(ctx.peers),), self.local_steps)
        return ctx.mine(tick.steps)

    def gradients(
        self, x: Tensor, tick: Tick, ctx: Context[Differentiable], correction: Tensor | None = None
    ) -> Tensor:
        """sum_k g_k over the K_i local steps w <- w - lr (g_k + correction) from ``x``: [P, D]."""
        active, steps = ctx.mine(tick.active), self.count(tick, ctx)
        if correction is None:
            return (x - ctx.task.sgd(x, tick.index, steps, self.lr, active=active)) / self.lr
        w, total = x, torch.zeros_like(x)
        for k in range(int(steps.max())):
            going = active & (steps > k)
            g = ctx.task.grad(w, tick.index, step=k, active=going)
            w = w - self.lr * (g + correction) * going[:, None]
            total = total + g
        return total
