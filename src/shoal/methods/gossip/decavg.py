"""064 Disrupted peer-to-peer communications: DecAvg, and what sudden losses of devices do to it.

Source: "Exploring the impact of disrupted peer-to-peer communications on fully decentralized
learning in disaster scenarios" (arXiv 2310.02986). Who disappears, and when, is the clock
``disruption``; peers without data (``relays``) mix and never train.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from msgspec import Meta

from shoal.core import Context, Tick, methods
from shoal.tasks.supervised import Training

from .descent import Descent, Models

__all__ = ["DecAvg"]


@methods.register("disaster-dfl")
@dataclass(frozen=True)
class DecAvg(Descent):
    """x_i <- sum_j omega_j x_j / sum_j omega_j over the neighbours and i, then local SGD.

    The mixing weights must be equal within a row (``uniform``); the data sizes are put in here.

    Args:
        sizes: omega is the number of a peer's examples; else every model counts alike (sizes hidden).
    """

    lr: Annotated[float, Meta(gt=0)] = 0.01
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.5
    local_steps: Annotated[int, Meta(ge=1)] = 2
    sizes: bool = True

    work: ClassVar[type[Training]] = Training
    recipe: ClassVar[dict[str, Any]] = {
        "task": {
            "name": "supervised",
            "data": "mnist14",
            "partition": {"name": "iid", "size": 40},
            "model": {"name": "mlp", "hidden": [32]},
        },
        "network": {
            "graph": "barabasi-albert(m=2)",
            "weights": "uniform",
            "clock": "disruption(at=10, fraction=0.2, who=degree)",
        },
        "peers": 50,
        "rounds": 60,
    }

    trial: ClassVar[dict[str, Any]] = {
        "network": {"graph": "ring", "weights": "uniform", "clock": "disruption(at=1, fraction=0.2)"}
    }

    def step(self, s: Models, tick: Tick, ctx: Context[Training]) -> Models:
        omega = ctx.task.sizes.to(s.x.dtype) if self.sizes else torch.ones(len(s.x), dtype=s.x.dtype)
        sums = ctx.net.mix({"x": s.x * omega[:, None], "omega": omega}, tick)
        total = sums["omega"][:, None]
        # Among relays only there is nothing to average: a relay then keeps its model.
        mixed = torch.where(total > 0, sums["x"] / total.clamp(min=1e-30), s.x)
        return Models(self.local(mixed, tick, ctx))
