"""What is happening now: the graph, the peers that act, the steps that each may take."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Graph", "Tick"]


@dataclass(frozen=True)
class Graph:
    """Directed, weighted edges among n peers.

    Edges are sorted by receiver, then by sender, so that every sum over neighbours runs in the order
    of their numbers. ``weight[e]`` is w_ij for the message j -> i; the rest of row i is
    ``self_weight[i]`` = w_ii.

    Args:
        n: number of peers.
        src: int64 [E], the sender j of each edge.
        dst: int64 [E], the receiver i.
        weight: float64 [E].
        self_weight: float64 [n].
    """

    n: int
    src: Tensor
    dst: Tensor
    weight: Tensor
    self_weight: Tensor

    @staticmethod
    def of(n: int, src: Tensor, dst: Tensor, weight: Tensor, self_weight: Tensor) -> Graph:
        """A graph from edges in any order."""
        order = torch.argsort(dst * n + src)
        return Graph(n, src[order], dst[order], weight[order], self_weight)

    @property
    def edges(self) -> int:
        return len(self.src)

    def in_degree(self) -> Tensor:
        """Number of in-neighbours: int64 [n]."""
        return torch.bincount(self.dst, minlength=self.n)

    def out_degree(self) -> Tensor:
        return torch.bincount(self.src, minlength=self.n)

    def keep(self, mask: Tensor) -> Graph:
        """Without the edges where ``mask`` [E] is false; their weight returns to the diagonal."""
        if bool(mask.all()):
            return self
        lost = torch.zeros(self.n, dtype=self.weight.dtype)
        lost.index_add_(0, self.dst[~mask], self.weight[~mask])
        return Graph(self.n, self.src[mask], self.dst[mask], self.weight[mask], self.self_weight + lost)

    def matrix(self) -> Tensor:
        """The mixing matrix W, dense: float64 [n, n]. For small n and for tests."""
        w = torch.zeros(self.n, self.n, dtype=self.weight.dtype)
        w[self.dst, self.src] = self.weight
        return w + torch.diag(self.self_weight)

    def neighbours(self) -> tuple[Tensor, Tensor]:
        """Padded lists of in-edges: (edge number [n, K], mask [n, K]), K = the largest in-degree."""
        degree = self.in_degree()
        width = int(degree.max()) if self.n and self.edges else 0
        start = torch.cumsum(degree, 0) - degree
        column = torch.arange(width)
        mask = column[None, :] < degree[:, None]
        return torch.where(mask, start[:, None] + column[None, :], 0), mask


@dataclass(frozen=True)
class Tick:
    """One tick of a run. Every field is a pure function of (configuration, seed, index).

    All fields describe the whole run, not one block: ``active`` and the others are [n]; a method
    takes its own rows with ``ctx.mine``.

    Args:
        index: 0, 1, 2, ...
        total: the number of ticks planned.
        time: float64 [n], the simulated time of each peer's event (its round for round clocks).
        active: bool [n], the peers that act (compute, speak, listen).
        graph: the edges that are up among them.
        steps: int64 [n], local steps that each may take, or None for the method's own number.
        stale: int64 [n], ticks since each active peer last pulled what it works from.
        alive: bool [n], the peers that exist at all, or None where all do; the others neither act nor
            count in the report.
    """

    index: int
    total: int
    time: Tensor
    active: Tensor
    graph: Graph
    steps: Tensor | None = None
    stale: Tensor | None = None
    alive: Tensor | None = None

    @property
    def last(self) -> bool:
        return self.index == self.total - 1

    def replace(self, **changes: object) -> Tick:
        return replace(self, **changes)  # type: ignore[arg-type]
