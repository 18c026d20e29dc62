"""064 Disrupted peer-to-peer communications: DecAvg, and what sudden losses of devices do to it.

Source: "Exploring the impact of disrupted peer-to-peer communications on fully decentralized
learning in disaster scenarios" (arXiv 2310.02986). Who disappears, and when, is the clock
``disruption``; peers without data (``relays``) mix and never train; survivors without a neighbour go
on alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from msgspec import Meta
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from shoal.core import BadInput, Context, Tick, methods
from shoal.tasks.supervised import Training

from .descent import Descent, Models

__all__ = ["DecAvg"]


@methods.register("disaster-dfl")
@dataclass(frozen=True)
class DecAvg(Descent):
    """x_i <- sum_j omega_j x_j / sum_j omega_j over the neighbours and i, then local SGD.

    The network's weights must be ``uniform`` (equal within a row); the data sizes are put in here.

    Args:
        sizes: omega is the number of a peer's examples, so that what a relay says weighs nothing; else
            every model counts alike (sizes hidden) and relays pass on what they heard.

    Raises:
        BadInput: nobody who is left holds data.
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
        holders = ctx.task.counts.sum(1) > 0
        if bool(tick.active.any()) and not bool((holders & tick.active).any()):
            raise BadInput(
                "partition", ctx.task.config.partition.slug, "leaves every survivor without data"
            )
        omega = ctx.task.sizes.to(s.x.dtype) if self.sizes else torch.ones(len(s.x), dtype=s.x.dtype)
        sums = ctx.net.mix({"x": s.x * omega[:, None], "omega": omega}, tick)
        total = sums["omega"][:, None]
        # Among relays only there is nothing to average, and who is gone hears nothing: both stay as
        # they are.
        heard = ctx.mine(tick.active)[:, None] & (total > 0)
        mixed = torch.where(heard, sums["x"] / total.clamp(min=1e-30), s.x)
        return Models(self.local(mixed, tick, ctx))

    def measure(self, s: Models, tick: Tick, ctx: Context[Training]) -> dict[str, float | Tensor]:
        """How the survivors hang together: the number of components, and the size of each peer's own
        (NaN: the peer is gone)."""
        n, graph = ctx.n, tick.graph
        edges = coo_matrix((torch.ones(graph.edges), (graph.src, graph.dst)), shape=(n, n))
        part = torch.from_numpy(connected_components(edges, directed=False)[1]).to(torch.int64)
        size = torch.bincount(part[tick.active], minlength=int(part.max()) + 1)
        mine = torch.where(tick.active, size[part].to(torch.float64), torch.nan)
        return {"components": float((size > 0).sum()), "component_size": ctx.mine(mine)}
