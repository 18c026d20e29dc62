"""Poisson clocks: peers wake, edges ring, gradients and gossip come as independent processes."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Graph, Tick, clocks
from shoal.network.graphs.base import both, undirected
from shoal.network.spectrum import chis
from shoal.network.weights import optimal_rates

from .events import Events, State

__all__ = ["PoissonEdge", "PoissonPair", "PoissonPeer"]


@clocks.register("poisson-peer")
@dataclass(frozen=True)
class PoissonPeer(Events):
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

    def _acting(self, a: Tensor, b: Tensor, up: Tensor) -> Tensor:
        return a


Rates = Literal["uniform", "optimal"] | tuple[Annotated[float, Meta(ge=0)], ...]


@dataclass(frozen=True)
class _Edges(Events):
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
            raise BadInput(
                "graph", f"{graph.edges} edges", f"an undirected graph with edges, for {self.slug}"
            )
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
                raise BadInput(
                    "clock.rates", len(share), f"one rate for each of {len(low)} edges, not all 0"
                )
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

    def _acting(self, a: Tensor, b: Tensor, up: Tensor) -> Tensor:
        return torch.cat([a[up], b[up]])


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
        edge = torch.searchsorted(
            low * graph.n + high, torch.minimum(src, dst) * graph.n + torch.maximum(src, dst)
        )
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

    def _acting(self, a: Tensor, b: Tensor, up: Tensor) -> Tensor:
        return a[a == b]
