"""Topologies (who can reach whom at a tick) and clocks (what happens when): the contracts."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from .part import Part, Registry
from .tick import Graph, Tick

__all__ = ["Clock", "Topology", "clocks", "topologies"]


class Topology(Part):
    """Who can reach whom. Every graph is a pure function of (n, seed, tick)."""

    static: ClassVar[bool] = True
    """True where the graph does not depend on the tick (it is then built once)."""

    @abstractmethod
    def edges(self, n: int, seed: int, tick: int) -> tuple[Tensor, Tensor]:
        """Directed edges (src, dst), int64 [E] each, no self-loops, no duplicates, any order.

        Raises:
            BadInput: no such graph on n peers.
        """

    def weights(self, n: int, src: Tensor, dst: Tensor) -> tuple[Tensor, Tensor] | None:
        """The topology's own mixing weights (edge weights [E], self weights [n]), where it has them;
        None: the network's weighting decides."""
        return None


class Clock(Part):
    """Turns the full tick (everyone active, the topology's graph) into what really happens.

    Clocks chain: each takes the tick that the one before made. Their state is a tree of tensors and
    is saved with the checkpoint; clocks that are pure functions of (seed, tick index) have none.
    """

    events: ClassVar[bool] = False
    """True for event clocks, which set ``tick.time`` themselves; else the links' time model runs."""

    def start(self, n: int, seed: int, total: int, graph: Graph) -> Any:
        """The clock's state before tick 0."""
        return {}

    @abstractmethod
    def next(self, state: Any, tick: Tick, seed: int) -> tuple[Tick, Any]:
        """The tick, changed, and the state after it."""

    def speed(self, n: int, seed: int) -> Tensor:
        """Relative speed of each peer's computing: float64 [n]."""
        return torch.ones(n, dtype=torch.float64)

    @staticmethod
    def among(graph: Graph, active: Tensor) -> Graph:
        """The graph without the edges of inactive peers."""
        return graph.keep(active[graph.src] & active[graph.dst])


topologies: Registry[Topology] = Registry("graph", "shoal.network.graphs", Topology)
clocks: Registry[Clock] = Registry("clock", "shoal.network.clocks", Clock)
