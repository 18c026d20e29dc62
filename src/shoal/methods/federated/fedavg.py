"""062 FedAvg: a few sampled peers train, an aggregator averages.

Source: McMahan, Moore, Ramage, Hampson, Arcas, "Communication-efficient learning of deep networks
from decentralized data" (AISTATS 2017, arXiv 1602.05629), Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import Context, Method, Tick, methods
from shoal.tasks.supervised import Training

__all__ = ["FedAvg", "FedSGD", "Served"]


@dataclass(frozen=True)
class Served:
    """Models at the peers x [P, D] and at the aggregator server [A, D] (left as it was where
    a peer aggregates)."""

    x: Tensor
    server: Tensor


@methods.register("fedavg")
@dataclass(frozen=True)
class FedAvg(Method):
    """Who takes part is the clock's affair: ``participation(fraction=0.1)`` gives C = 0.1.

    A sampled peer without data neither trains nor counts; where all of a round's are so, the model
    stays. A peer with n_k examples takes E ceil(n_k / B) local steps.

    Args:
        epochs: E, local passes over a peer's own data.
        batch: B, rows per local step, or ``all`` (the paper's infinity).
        lr: local step size.
        decay: factor on ``lr`` per round.
        momentum: of the local steps.
        aggregator: ``server``: it holds the model, and the sampled peers download it. ``peer``: there
            is none; a peer drawn anew each round adds up and sends the mean to every peer.
    """

    epochs: Annotated[int, Meta(ge=1)] = 5
    batch: Annotated[int, Meta(ge=1)] | Literal["all"] = 10
    lr: Annotated[float, Meta(gt=0)] = 0.1
    decay: Annotated[float, Meta(gt=0, le=1)] = 1.0
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    aggregator: Literal["server", "peer"] = "server"

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

    def local(self, x: Tensor, tick: Tick, ctx: Context[Training]) -> Tensor:
        """The sampled peers' models after their local passes, [P, D]."""
        return ctx.task.epochs(
            x,
            tick.index,
            self.epochs,
            0 if self.batch == "all" else self.batch,
            self.lr * self.decay**tick.index,
            momentum=self.momentum,
            active=ctx.mine(tick.active),
        )

    def step(self, s: Served, tick: Tick, ctx: Context[Training]) -> Served:
        sizes = ctx.task.sizes
        if self.aggregator == "peer":
            up = self.local(s.x, tick, ctx)
            there = torch.ones_like(tick.active) if tick.alive is None else tick.alive
            sampled = sizes * ctx.mine(tick.active)
            wide = tick.replace(active=there)
            return Served(ctx.net.pool(up, wide, weight=sampled, to="all", base=s.x), s.server)
        down = ctx.net.cast(s.server, tick, like=s.x)
        up = self.local(down, tick, ctx)
        return Served(up, ctx.net.pool(up, tick, weight=sizes, base=down, held=s.server))

    def output(self, s: Served) -> Tensor:
        """What every peer would download now: the server's model, [A, D] for all; without one what
        each peer holds."""
        served = self.aggregator == "server" and len(s.server) > 0
        return s.server.expand(len(s.x), -1) if served else s.x


@methods.register("fedsgd")
@dataclass(frozen=True)
class FedSGD(FedAvg):
    """One full-batch gradient a round: E = 1, B = all."""

    epochs: Annotated[int, Meta(ge=1)] = 1
    batch: Annotated[int, Meta(ge=1)] | Literal["all"] = "all"
