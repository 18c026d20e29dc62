"""Round clocks: everyone, a sample, one peer, or everyone at their own speed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Clock, Draws, Graph, Tick, clocks

__all__ = ["OnePeer", "Participation", "Rounds", "Stragglers"]


@clocks.register("rounds")
@dataclass(frozen=True)
class Rounds(Clock):
    """Synchronous rounds: every peer acts in every tick."""

    def next(self, state: Any, tick: Tick, seed: int) -> tuple[Tick, Any]:
        return tick, state


@clocks.register("participation")
@dataclass(frozen=True)
class Participation(Clock):
    """Only some of the active peers take part in a tick; the others neither compute nor speak.

    Args:
        fraction: C, the share that takes part.
        kind: ``uniform``: max(floor(C n), 1) peers, drawn without replacement (C = 0: one peer).
            ``bernoulli``: each peer by its own coin; a tick may then have nobody.
        rates: bernoulli only: each peer's own chance (its own will), instead of ``fraction``.
    """

    fraction: Annotated[float, Meta(ge=0, le=1)] = 0.1
    kind: Literal["uniform", "bernoulli"] = "uniform"
    rates: tuple[Annotated[float, Meta(ge=0, le=1)], ...] = ()

    def check(self) -> None:
        if self.rates and self.kind != "bernoulli":
            raise BadInput("rates", self.rates, 'chances of a peer\'s own: set kind = "bernoulli"')

    def start(self, n: int, seed: int, total: int, graph: Graph) -> dict[str, Tensor]:
        if self.rates and len(self.rates) != n:
            raise BadInput("clock.rates", len(self.rates), f"one chance for each of the {n} peers")
        return {}

    def next(self, state: Any, tick: Tick, seed: int) -> tuple[Tick, Any]:
        n = len(tick.active)
        coin = Draws(seed, "clock/participation", torch.arange(n), tick.index).uniform(1)[:, 0]
        if self.kind == "bernoulli":
            chance = torch.tensor(self.rates or (self.fraction,) * n, dtype=torch.float64)
            chosen = coin < chance
        else:
            # The lowest coins win; 1e-9 keeps 0.29 x 100 from being floored to 28.
            count = max(int(self.fraction * n + 1e-9), 1)
            order = torch.where(tick.active, coin, 2.0).argsort(stable=True)
            chosen = torch.zeros(n, dtype=torch.bool)
            chosen[order[:count]] = True
        active = tick.active & chosen
        return tick.replace(active=active, graph=self.among(tick.graph, chosen)), state


@clocks.register("one-peer")
@dataclass(frozen=True)
class OnePeer(Clock):
    """One uniformly drawn active peer a tick; the edges that touch it are up, both ways."""

    def next(self, state: Any, tick: Tick, seed: int) -> tuple[Tick, Any]:
        there = tick.active.nonzero()[:, 0]
        draws = Draws(seed, "clock/one-peer", torch.zeros(1, dtype=torch.int64), tick.index)
        active = torch.zeros_like(tick.active)
        active[there[draws.integers(len(there), 1)[0, :1] if len(there) else there]] = True
        graph = tick.graph
        return tick.replace(active=active, graph=graph.keep(active[graph.src] | active[graph.dst])), state


@clocks.register("stragglers")
@dataclass(frozen=True)
class Stragglers(Clock):
    """Some peers compute slower.

    Args:
        slow: share of slow peers (rounded), drawn from the seed.
        factor: how many times slower they are.
        deadline: a tick ends when a normal peer has done this many local steps; a slow one has then
            done floor(deadline / factor), and sits the tick out where that is none. 0: the tick waits
            for all, and only simulated time shows the difference.
    """

    slow: Annotated[float, Meta(ge=0, le=1)] = 0.2
    factor: Annotated[float, Meta(ge=1)] = 4.0
    deadline: Annotated[int, Meta(ge=0)] = 0

    def speed(self, n: int, seed: int) -> Tensor:
        coin = Draws(seed, "clock/stragglers", torch.arange(n)).uniform(1)[:, 0]
        speed = torch.ones(n, dtype=torch.float64)
        speed[coin.argsort(stable=True)[: round(self.slow * n)]] = 1.0 / self.factor
        return speed

    def next(self, state: Any, tick: Tick, seed: int) -> tuple[Tick, Any]:
        if not self.deadline:
            return tick, state
        done = (self.deadline * self.speed(len(tick.active), seed) + 1e-9).to(torch.int64)
        steps = done if tick.steps is None else torch.minimum(done, tick.steps)
        able = steps > 0
        graph = self.among(tick.graph, able)
        return tick.replace(active=tick.active & able, graph=graph, steps=steps), state
