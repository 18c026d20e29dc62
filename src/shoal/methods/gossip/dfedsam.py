"""013 DFedSAM: local sharpness-aware steps, then one or several gossip averagings.

Source: Shi, Shen, Wei, Sun, Yuan, Wang, Tao, "Improving the model consistency of decentralized
federated learning" (ICML 2023, arXiv 2302.04083), Algorithms 1 (DFedSAM) and 2 (DFedSAM-MGS).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import Context, Differentiable, Tick, methods

from .descent import Descent, Models

__all__ = ["DFedSAM", "ascent"]


def ascent(gradient: Tensor, rho: float) -> Tensor:
    """rho g / |g| per peer, [P, D]; a zero gradient gives zero, not NaN."""
    norm = gradient.norm(dim=1, keepdim=True)
    return gradient * (rho / norm.clamp(min=1e-30)) * (norm > 0)


@methods.register("dfedsam")
@dataclass(frozen=True)
class DFedSAM(Descent):
    """``gossip_steps`` = 1 is DFedSAM, 4 is DFedSAM-MGS. On the graph ``complete`` it is FedSAM with
    everyone sampled. rho = 0 is DFedAvg, with momentum DFedAvgM; ``local_steps`` = 1 then D-PSGD.

    Args:
        rho: radius of the ascent step; its norm is over one peer's parameters.
        gossip_steps: Q, averagings at the end of a tick.
    """

    rho: Annotated[float, Meta(ge=0)] = 0.01
    gossip_steps: Annotated[int, Meta(ge=1)] = 1
    local_steps: Annotated[int, Meta(ge=1)] = 10
    decay: Annotated[float, Meta(gt=0, le=1)] = 0.998
    weight_decay: Annotated[float, Meta(ge=0)] = 5e-4

    recipe: ClassVar[dict[str, Any]] = {
        "task": {
            "name": "supervised",
            "data": "mnist14",
            "partition": {"name": "dirichlet", "alpha": 0.1, "size": 50},
            "model": {"name": "mlp", "hidden": [48]},
        },
        "network": {"graph": "ring"},
        "peers": 20,
        "rounds": 60,
    }

    def sharp(self, x: Tensor, tick: Tick, ctx: Context[Differentiable]) -> Tensor:
        """K sharpness-aware steps: the gradient is taken where the same batch's loss is higher."""
        active, rate = ctx.mine(tick.active), self.rate(tick)
        steps = None if tick.steps is None else ctx.mine(tick.steps)
        velocity = torch.zeros_like(x)
        for k in range(self.local_steps if steps is None else int(steps.max()) if len(steps) else 0):
            moving = active if steps is None else active & (k < steps)
            g = ctx.task.grad(x, tick.index, step=k, active=moving)
            up = ctx.task.grad(x + ascent(g, self.rho), tick.index, step=k, active=moving)
            velocity = self.momentum * velocity + up + self.weight_decay * x
            x = torch.where(moving[:, None], x - rate * velocity, x)
        return x

    def step(self, s: Models, tick: Tick, ctx: Context[Differentiable]) -> Models:
        x = self.sharp(s.x, tick, ctx) if self.rho else self.local(s.x, tick, ctx)
        for hop in range(self.gossip_steps):
            x = ctx.net.mix(x, tick, hop=hop)
        return Models(x)
