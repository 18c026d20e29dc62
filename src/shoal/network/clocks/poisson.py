"""Poisson clocks: peers wake, edges ring, gradients and gossip come as independent processes.

The events 0, 1, 2, ... of a run are one sequence that depends on (configuration, seed) alone: event e
draws its waiting time and its peers with e as the counter. A tick is either the next event, or the
longest run of next events that touch different peers; nobody can tell which of the two it was.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Clock, Draws, Graph, Tick, clocks
from shoal.network.graphs.base import both, undirected
from shoal.network.spectrum import chis
from shoal.network.weights import optimal_rates

__all__ = ["PoissonEdge", "PoissonPair", "PoissonPeer"]

BLOCK = 2048
State = dict[str, Tensor]


@lru_cache(maxsize=64)
def _block(seed: int, purpose: str, number: int) -> tuple[Tensor, Tensor]:
    """(exponentials of mean 1 [BLOCK], words in [0, 2^32) [BLOCK, 2]) of the events of one block."""
    events = torch.arange(number * BLOCK, (number + 1) * BLOCK)
    draws = Draws(seed, f"clock/{purpose}", events)
    return draws.at("wait").exponential(1)[:, 0], draws.words(2)


def _draw(seed: int, purpose: str, first: int, count: int) -> tuple[Tensor, Tensor]:
    """The same for the events first .. first + count - 1."""
    start = first // BLOCK
    blocks = [_block(seed, purpose, b) for b in range(start, (first + count - 1) // BLOCK + 1)]
    rows = slice(first - start * BLOCK, first - start * BLOCK + count)
    return torch.cat([w for w, _ in blocks])[rows], torch.cat([u for _, u in blocks])[rows]


def disjoint_prefix(a: Tensor, b: Tensor) -> int:
    """How many of the first events {a, b} touch different peers. A lone peer has b = a."""
    peer, order = torch.stack([a, b], 1).flatten().sort(stable=True)
    event = order // 2
    again = (peer[1:] == peer[:-1]) & (event[1:] != event[:-1])
    return int(event[1:][again].min()) if bool(again.any()) else len(a)


@dataclass(frozen=True)
class _Poisson(Clock):
    """Abstract: the tick is made of the next events of one Poisson process.

    Args:
        group: hand out the longest run of events that touch different peers as one tick, instead of
            one event a tick. The result is the same.
    """

    events: ClassVar[bool] = True
    group: bool = True

    @abstractmethod
    def _rate(self, state: State, n: int) -> float:
        """Events per unit of time."""

    @abstractmethod
    def _peers(self, state: State, tick: Tick, words: Tensor) -> tuple[Tensor, Tensor]:
        """The peers (a, b) of each event from its words [K, 2]; b = a where one peer is alone."""

    @abstractmethod
    def _acting(self, a: Tensor, b: Tensor) -> Tensor:
        """The peers that compute in these events."""

    def _begin(self, n: int) -> State:
        return {
            "event": torch.zeros(1, dtype=torch.int64),
            "now": torch.zeros(1, dtype=torch.float64),
            "time": torch.zeros(n, dtype=torch.float64),
        }

    def next(self, state: State, tick: Tick, seed: int) -> tuple[Tick, State]:
        n, first = len(tick.active), int(state["event"])
        # No more than n events touch different peers; about sqrt(n) do.
        look = 2 * math.isqrt(n) + 4 if self.group else 1
        while True:
            wait, words = _draw(seed, self.slug, first, look)
            a, b = self._peers(state, tick, words)
            count = disjoint_prefix(a, b)
            if count < look or not self.group:
                break
            look *= 2
        a, b = a[:count], b[:count]
        now = torch.cumsum(torch.cat([state["now"], wait[:count] / self._rate(state, n)]), 0)
        time = state["time"].clone()
        time[a] = time[b] = now[1:]

        active = torch.zeros(n, dtype=torch.bool)
        active[self._acting(a, b)] = True
        up = self._up(tick.graph, a, b)
        src, dst = torch.cat([a[up], b[up]]), torch.cat([b[up], a[up]])
        half = torch.full((len(src),), 0.5, dtype=torch.float64)
        own = torch.ones(n, dtype=torch.float64)
        own[src] = 0.5
        tick = tick.replace(
            active=active & tick.active, graph=Graph.of(n, src, dst, half, own), time=time
        )
        return tick, state | {"event": state["event"] + count, "now": now[-1:], "time": time}

    @staticmethod
    def _up(graph: Graph, a: Tensor, b: Tensor) -> Tensor:
        """Bool [K]: the pairs whose edge is up in this tick's graph, in either direction."""
        key = graph.dst * graph.n + graph.src  # ascending: a graph's edges are sorted so
        pair = torch.stack([a * graph.n + b, b * graph.n + a])
        place = torch.searchsorted(key, pair).clamp(max=max(len(key) - 1, 0))
        return (key[place] == pair).any(0) if len(key) else torch.zeros_like(a, dtype=torch.bool)


@clocks.register("poisson-peer")
@dataclass(frozen=True)
class PoissonPeer(_Poisson):
    """Each peer wakes at its own rate and meets one uniformly drawn neighbour: both mix 1/2 - 1/2.

    Only the waking peer is active (computes); both ends of its edge are in the graph. A peer without
    neighbours wakes alone. Works on time-varying graphs too: the neighbour is one of this tick's.

    Args:
        rates: wake-ups of each peer per unit of time; none: 1 each.
    """

    rates: tuple[Annotated[float, Meta(gt=0)], ...] = ()

    def start(self, n: int, seed: int, total: int, graph: Graph) -> State:
        if self.rates and len(self.rates) != n:
            raise BadInput("clock.rates", len(self.rates), f"one rate for each of the {n} peers")
        rate = torch.tensor(self.rates or (1.0,) * n, dtype=torch.float64)
        return self._begin(n) | {"rate": torch.cumsum(rate, 0)}

    def _rate(self, state: State, n: int) -> float:
        return float(state["rate"][-1])

    def _peers(self, state: State, tick: Tick, words: Tensor) -> tuple[Tensor, Tensor]:
        graph, rate = tick.graph, state["rate"]
        at = words[:, 0].to(torch.float64) * 2.0**-32 * rate[-1]
        a = torch.searchsorted(rate, at, right=True).clamp(max=len(rate) - 1)
        degree = graph.in_degree()
        place = (torch.cumsum(degree, 0) - degree)[a] + (words[:, 1] * degree[a] >> 32)
        lone = degree[a] == 0
        return a, torch.where(lone, a, graph.src[place.masked_fill(lone, 0)] if graph.edges else a)

    def _acting(self, a: Tensor, b: Tensor) -> Tensor:
        return a


Rates = Literal["uniform", "optimal"] | tuple[Annotated[float, Meta(ge=0)], ...]


@dataclass(frozen=True)
class _Edges(_Poisson):
    """Abstract: every edge of tick 0's graph rings at its rate; an edge that is down rings in vain.

    Args:
        rates: of the undirected edges {i, j}, i < j, sorted by (i, j): ``uniform``, ``optimal`` (a
            semidefinite program), or one number each.
        total: rings of all edges together per unit of time; 0: see the clock.
    """

    rates: Rates = "uniform"
    total: Annotated[float, Meta(ge=0)] = 0.0

    def shares(self, graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
        """The undirected edges (low, high), int64 [E], and each one's share of the total rate [E].

        Raises:
            BadInput: a graph without edges or with one-way edges, or not one rate for each edge.
        """
        n, src, dst = graph.n, graph.src, graph.dst
        if not graph.edges or not undirected(n, src, dst):
            raise BadInput("graph", f"{graph.edges} edges", f"an undirected graph with edges, for {self.slug}")
        up = src < dst
        low, high = src[up], dst[up]
        order = torch.argsort(low * n + high)
        low, high = low[order], high[order]
        if self.rates == "optimal":
            share = optimal_rates(n, src, dst)[up][order]
        elif self.rates == "uniform":
            share = torch.ones(len(low), dtype=torch.float64)
        else:
            share = torch.tensor(self.rates, dtype=torch.float64)
            if len(share) != len(low) or not bool(share.sum() > 0):
                raise BadInput("clock.rates", len(share), f"one rate for each of {len(low)} edges, not all 0")
        return low, high, share / share.sum()

    @abstractmethod
    def total_rate(self, graph: Graph) -> float:
        """Rings of all edges together per unit of time."""

    def start(self, n: int, seed: int, total: int, graph: Graph) -> State:
        low, high, share = self.shares(graph)
        rate = torch.cumsum(share, 0) * self.total_rate(graph)
        return self._begin(n) | {"low": low, "high": high, "rate": rate}

    def _ring(self, state: State, at: Tensor) -> tuple[Tensor, Tensor]:
        edge = torch.searchsorted(state["rate"], at, right=True).clamp(max=len(state["rate"]) - 1)
        return state["low"][edge], state["high"][edge]


@clocks.register("poisson-edge")
@dataclass(frozen=True)
class PoissonEdge(_Edges):
    """Each edge rings at its rate; its two ends are active and mix 1/2 - 1/2.

    ``total`` 0: given rates are per unit of time; else one ring an edge on average.

    Source: Boyd, Ghosh, Prabhakar, Shah, "Randomized gossip algorithms" (2006).
    """

    def total_rate(self, graph: Graph) -> float:
        if self.total:
            return self.total
        return float(sum(self.rates)) if isinstance(self.rates, tuple) else graph.edges / 2

    def _rate(self, state: State, n: int) -> float:
        return float(state["rate"][-1])

    def _peers(self, state: State, tick: Tick, words: Tensor) -> tuple[Tensor, Tensor]:
        return self._ring(state, words[:, 0].to(torch.float64) * 2.0**-32 * state["rate"][-1])

    def _acting(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a, b])


@clocks.register("poisson-pair")
@dataclass(frozen=True)
class PoissonPair(_Edges):
    """Independent Poisson processes for computing and for talking.

    Gradient events come at rate ``gradients`` at each peer: it alone is active. Edge events come at
    the total rate ``total``: the edge is in the graph, both ways with weight 1/2, and its ends are not
    active. ``total`` 0: sqrt(2 chi1 chi2) of the rates' Laplacian, which is the least that DADAO needs.

    Source: Nabli and Oyallon, "DADAO" (arXiv 2208.00779).
    """

    gradients: Annotated[float, Meta(gt=0)] = 1.0

    def total_rate(self, graph: Graph) -> float:
        if self.total:
            return self.total
        low, high, share = self.shares(graph)
        src, dst = both(graph.n, low, high)
        edge = torch.searchsorted(low * graph.n + high, torch.minimum(src, dst) * graph.n + torch.maximum(src, dst))
        one, two = chis(graph.n, src, dst, share[edge])
        if math.isinf(one):
            raise BadInput("clock.total", self.total, "above 0, as the graph is not connected")
        return math.sqrt(2 * one * two)

    def _rate(self, state: State, n: int) -> float:
        return n * self.gradients + float(state["rate"][-1])

    def _peers(self, state: State, tick: Tick, words: Tensor) -> tuple[Tensor, Tensor]:
        n = len(tick.active)
        compute = n * self.gradients
        at = words[:, 0].to(torch.float64) * 2.0**-32 * self._rate(state, n)
        lone = (at / self.gradients).to(torch.int64).clamp(max=n - 1)
        low, high = self._ring(state, at - compute)
        gradient = at < compute
        return torch.where(gradient, lone, low), torch.where(gradient, lone, high)

    def _acting(self, a: Tensor, b: Tensor) -> Tensor:
        return a[a == b]
