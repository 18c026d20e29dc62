"""004 A single merging suffices: almost no communication, then one average of all models.

Source: "A single merging suffices: recovering server-based learning performance in decentralized
learning" (arXiv 2507.06542). Deviations: sampled models carry no batch-norm statistics here (such
layers are refused by the stacked models), so nothing is re-estimated after the merge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from shoal.core import BadInput, Context, Differentiable, Tick, methods

from .descent import Descent, Models

__all__ = ["SingleMerge"]


@methods.register("single-merge")
@dataclass(frozen=True)
class SingleMerge(Descent):
    """Local steps and rare pairwise mixing (the graph's affair), and full averages on a schedule.

    With the graph ``random-peer(p=R)`` a peer mixes 1/2-1/2 with one random peer with probability R.

    Args:
        schedule: ``final``: W = 11'/n at the last tick only. ``window``: in the ticks
            [start, start + length). ``always``: in every tick. ``never``: not at all.
        start: first tick of the window.
        length: ticks in the window.
    """

    schedule: Literal["final", "window", "always", "never"] = "final"
    start: Annotated[int, Meta(ge=0)] = 0
    length: Annotated[int, Meta(ge=1)] = 10
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

    def merges(self, tick: Tick) -> bool:
        """Whether all models are averaged at this tick."""
        if self.schedule == "window":
            return self.start <= tick.index < self.start + self.length
        return self.schedule == "always" or (self.schedule == "final" and tick.last)

    def init(self, ctx: Context[Differentiable]) -> Models:
        if self.schedule == "window" and self.start + self.length > ctx.total:
            raise BadInput("start", self.start, f"window of {self.length} within the {ctx.total} ticks")
        return Models(ctx.task.init(self.same_start))

    def step(self, s: Models, tick: Tick, ctx: Context[Differentiable]) -> Models:
        x = ctx.net.mix(self.local(s.x, tick, ctx), tick)
        return Models(ctx.net.pool(x, tick, to="all") if self.merges(tick) else x)
