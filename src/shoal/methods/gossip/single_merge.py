"""004 A single merging suffices: almost no communication, then one average of all models.

Source: "A single merging suffices: recovering server-based learning performance in decentralized
learning" (arXiv 2507.06542). There H = 100 with SGD (lr 0.01) or AdamW (lr 5e-4), weight decay 5e-4.
Deviations: models with batch-norm statistics are refused by the stacked models, so nothing is
re-estimated after a merge; the merge goes over one peer drawn for it, which sends nothing to itself:
2(m - 1) models, not 2m.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Context, Differentiable, Tick, methods

from .descent import Descent, Models

__all__ = ["Merging", "SingleMerge"]

_BETAS, _EPSILON = (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class Merging(Models):
    """Models x [P, D]; AdamW's moments m, v [P, D] and steps taken int64 [P], never sent (SGD: [P, 0])."""

    m: Tensor
    v: Tensor
    taken: Tensor


@methods.register("single-merge")
@dataclass(frozen=True)
class SingleMerge(Descent):
    """Local steps and rare pairwise mixing (the graph's affair), and full averages on a schedule.

    With the graph ``random-peer(p=R)`` a peer mixes 1/2-1/2 with one random peer with probability R.
    What a merge would give at any time is the report's ``merged_accuracy``.

    Args:
        schedule: ``final``: W = 11'/n at the last tick only. ``window``: in the ticks
            [start, start + length). ``always``: in every tick. ``never``: not at all.
        start: first tick of the window.
        length: ticks in the window.
        optimizer: of the local steps; AdamW keeps its moments from tick to tick.
    """

    schedule: Literal["final", "window", "always", "never"] = "final"
    start: Annotated[int, Meta(ge=0)] = 0
    length: Annotated[int, Meta(ge=1)] = 10
    optimizer: Literal["sgd", "adamw"] = "sgd"
    weight_decay: Annotated[float, Meta(ge=0)] = 5e-4
    same_start: bool = False

    recipe: ClassVar[dict[str, Any]] = {
        "task": {
            "name": "supervised",
            "data": "mnist14",
            "partition": {"name": "dirichlet", "alpha": 0.1},
            "model": {"name": "mlp", "hidden": [48]},
        },
        "network": {"graph": "random-peer(p=0.2)"},
        "peers": 16,
        "rounds": 150,
        "every": 10,
    }

    def check(self) -> None:
        if self.optimizer == "adamw" and self.momentum:
            raise BadInput("momentum", self.momentum, "0: adamw has its own")

    def merges(self, tick: Tick) -> bool:
        """Whether all models are averaged at this tick."""
        if self.schedule == "window":
            return self.start <= tick.index < self.start + self.length
        return self.schedule == "always" or (self.schedule == "final" and tick.last)

    def init(self, ctx: Context[Differentiable]) -> Merging:
        if self.schedule == "window" and self.start + self.length > ctx.total:
            raise BadInput("start", self.start, f"window of {self.length} within the {ctx.total} ticks")
        x = ctx.task.init(self.same_start)
        moment = torch.zeros_like(x) if self.optimizer == "adamw" else x[:, :0]
        return Merging(x, moment, moment, torch.zeros(len(x), dtype=torch.int64))

    def step(self, s: Merging, tick: Tick, ctx: Context[Differentiable]) -> Merging:
        if self.optimizer == "adamw":
            s = self.adamw(s, tick, ctx)
        else:
            s = replace(s, x=self.local(s.x, tick, ctx))
        x = ctx.net.mix(s.x, tick)
        return replace(s, x=ctx.net.pool(x, tick, to="all") if self.merges(tick) else x)

    def adamw(self, s: Merging, tick: Tick, ctx: Context[Differentiable]) -> Merging:
        """The local steps of a tick. Source: Loshchilov, Hutter (ICLR 2019)."""
        steps = torch.full_like(s.taken, self.local_steps) if tick.steps is None else ctx.mine(tick.steps)
        active, rate, (b1, b2) = ctx.mine(tick.active), self.rate(tick), _BETAS
        x, m, v, taken = s.x, s.m, s.v, s.taken
        for k in range(int(steps.max()) if len(steps) else 0):
            moving = active & (k < steps)
            g = ctx.task.grad(x, tick.index, step=k, active=moving)
            taken = taken + moving
            row, age = moving[:, None], taken.clamp(min=1)[:, None].to(x.dtype)
            m = torch.where(row, b1 * m + (1 - b1) * g, m)
            v = torch.where(row, b2 * v + (1 - b2) * g * g, v)
            move = (m / (1 - b1**age)) / ((v / (1 - b2**age)).sqrt() + _EPSILON)
            x = torch.where(row, x - rate * (move + self.weight_decay * x), x)
        return Merging(x, m, v, taken)
