"""Decentralised SGD and its plain relatives.

Source: Lian et al., "Can decentralized algorithms outperform centralized algorithms?" (NeurIPS
2017); Sun, Shi, Wang, "Decentralized federated averaging" (TPAMI 2023) for several local steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shoal.core import Context, Differentiable, Tick, methods

from .descent import Descent, Models

__all__ = ["CSGD", "DSGD", "LocalOnly"]


@methods.register("dsgd")
@dataclass(frozen=True)
class DSGD(Descent):
    """Local steps and a weighted average with the neighbours.

    One local step is D-PSGD, several are DFedAvg, with momentum DFedAvgM.

    Args:
        order: ``atc``: adapt then combine, x <- W(x - lr g(x)). ``cta``: combine while adapting,
            x <- Wx - lr g(x), the gradient at the unmixed point. ``combine``: combine then adapt,
            y = Wx, x <- y - lr g(y).
    """

    order: Literal["atc", "cta", "combine"] = "atc"

    def step(self, s: Models, tick: Tick, ctx: Context[Differentiable]) -> Models:
        if self.order == "atc":
            return Models(ctx.net.mix(self.local(s.x, tick, ctx), tick))
        mixed = ctx.net.mix(s.x, tick)
        if self.order == "combine":
            return Models(self.local(mixed, tick, ctx))
        return Models(mixed + (self.local(s.x, tick, ctx) - s.x))


@methods.register("local")
@dataclass(frozen=True)
class LocalOnly(Descent):
    """Every peer for itself: no message is sent."""

    def step(self, s: Models, tick: Tick, ctx: Context[Differentiable]) -> Models:
        return Models(self.local(s.x, tick, ctx))


@methods.register("csgd")
@dataclass(frozen=True)
class CSGD(Descent):
    """All-reduce SGD: one model, the mean of all peers' steps (W = 11'/n)."""

    def step(self, s: Models, tick: Tick, ctx: Context[Differentiable]) -> Models:
        return Models(ctx.net.pool(self.local(s.x, tick, ctx), tick, to="all", base=s.x))
