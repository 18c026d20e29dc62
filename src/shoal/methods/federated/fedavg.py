"""062 FedAvg: a few sampled peers train, an aggregator averages.

Source: McMahan, Moore, Ramage, Hampson, Arcas, "Communication-efficient learning of deep networks
from decentralized data" (AISTATS 2017, arXiv 1602.05629), Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from msgspec import Meta
from torch import Tensor

from shoal.core import Context, Method, Tick, methods
from shoal.tasks.supervised import Training

__all__ = ["FedAvg", "FedSGD", "Served"]


@dataclass(frozen=True)
class Served:
    """Models at the peers x [P, D] and at the aggregator server [A, D]."""

    x: Tensor
    server: Tensor


@methods.register("fedavg")
@dataclass(frozen=True)
class FedAvg(Method):
    """Who takes part is the clock's affair: ``participation(fraction=0.1)`` gives C = 0.1.

    Args:
        epochs: E, local passes over a peer's own data.
        batch: B, rows per local step; 0: all of them.
        lr: local step size.
        decay: factor on ``lr`` per round.
        momentum: of the local steps.
    """

    epochs: Annotated[int, Meta(ge=1)] = 5
    batch: Annotated[int, Meta(ge=0)] = 10
    lr: Annotated[float, Meta(gt=0)] = 0.1
    decay: Annotated[float, Meta(gt=0, le=1)] = 1.0
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.0

    work: ClassVar[type[Training]] = Training
    recipe: ClassVar[dict[str, Any]] = {
        "task": {
            "name": "supervised",
            "data": "mnist",
            "partition": "iid",
            "model": {"name": "mlp", "hidden": [64]},
        },
        "network": {"clock": "participation(fraction=0.1)"},
        "peers": 40,
        "rounds": 40,
    }

    def init(self, ctx: Context[Training]) -> Served:
        x = ctx.task.init()
        return Served(x, x[:1] if ctx.net.hosts_server else x[:0])

    def step(self, s: Served, tick: Tick, ctx: Context[Training]) -> Served:
        down = ctx.net.cast(s.server, tick, like=s.x)
        up = ctx.task.epochs(
            down,
            tick.index,
            self.epochs,
            self.batch,
            self.lr * self.decay**tick.index,
            momentum=self.momentum,
            active=ctx.mine(tick.active),
        )
        server = ctx.net.pool(up, tick, weight=ctx.task.sizes, base=down, held=s.server)
        return Served(up, server)

    def output(self, s: Served) -> Tensor:
        """What every peer would download now: the server's model, [A, D] for all."""
        return s.server.expand(len(s.x), -1) if len(s.server) else s.x


@methods.register("fedsgd")
@dataclass(frozen=True)
class FedSGD(FedAvg):
    """One full-batch gradient a round: E = 1, B = all."""

    epochs: Annotated[int, Meta(ge=1)] = 1
    batch: Annotated[int, Meta(ge=0)] = 0
