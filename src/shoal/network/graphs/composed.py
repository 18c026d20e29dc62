"""Graphs made of graphs: disjoint components, cycles, windows of full averaging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Topology, topologies

from .base import Edges, Switching, group_of
from .dense import Complete

__all__ = ["Components", "Cycle", "Windows"]


@topologies.register("components")
@dataclass(frozen=True)
class Components(Topology):
    """``parts`` disjoint copies of a graph, on consecutive peers as equal in number as can be.

    Args:
        inner: the graph of each part. All parts of one size are the same graph.
    """

    parts: Annotated[int, Meta(ge=1)] = 2
    inner: Topology = topologies.field("ring")

    def check(self) -> None:
        object.__setattr__(self, "static", self.inner.static)

    def _sizes(self, n: int) -> list[int]:
        if self.parts > n:
            raise BadInput("parts", self.parts, f"at most one part a peer, {n}")
        return torch.bincount(group_of(n, self.parts)).tolist()

    def edges(self, n: int, seed: int, tick: int) -> Edges:
        found, start = [], 0
        for size in self._sizes(n):
            src, dst = self.inner.edges(size, seed, tick)
            found.append((src + start, dst + start))
            start += size
        return torch.cat([s for s, _ in found]), torch.cat([d for _, d in found])

    def weights(self, n: int, src: Tensor, dst: Tensor) -> tuple[Tensor, Tensor] | None:
        weight = torch.zeros(len(src), dtype=torch.float64)
        own, start = [], 0
        for size in self._sizes(n):
            here = (src >= start) & (src < start + size)
            part = self.inner.weights(size, src[here] - start, dst[here] - start)
            if part is None:
                return None
            weight[here] = part[0]
            own.append(part[1])
            start += size
        return weight, torch.cat(own)


@topologies.register("cycle")
@dataclass(frozen=True)
class Cycle(Switching):
    """A finite cycle of graphs, one a tick: tick t has graph t mod their number.

    A time-varying graph in it sees the rounds of the cycle as its ticks.
    """

    graphs: tuple[Topology, ...] = topologies.fields(("ring", "complete"))

    def check(self) -> None:
        if not self.graphs:
            raise BadInput("graphs", self.graphs, "at least one graph")

    def at(self, tick: int) -> tuple[Topology, int]:
        return self.graphs[tick % len(self.graphs)], tick // len(self.graphs)


@dataclass(frozen=True)
class _Everyone(Complete):
    """The complete graph with W = J, whatever weights the network uses elsewhere."""

    def weights(self, n: int, src: Tensor, dst: Tensor) -> tuple[Tensor, Tensor]:
        return (
            torch.full((len(src),), 1.0 / n, dtype=torch.float64),
            torch.full((n,), 1.0 / n, dtype=torch.float64),
        )


@topologies.register("windows")
@dataclass(frozen=True)
class Windows(Switching):
    """A graph, except for some ticks in which everyone averages with everyone (W = J).

    Args:
        inner: the graph outside the window.
        start: first tick of the window.
        length: its ticks; 0: there is none.
        every: repeat the window with this period in ticks; 0: only once.

    Source: the schedules of "A single merging suffices" (arXiv 2507.06542).
    """

    inner: Topology = topologies.field("random-peer")
    start: Annotated[int, Meta(ge=0)] = 0
    length: Annotated[int, Meta(ge=0)] = 1
    every: Annotated[int, Meta(ge=0)] = 0

    def check(self) -> None:
        if self.every and self.length > self.every:
            raise BadInput("length", self.length, f"at most the period, every = {self.every}")

    def at(self, tick: int) -> tuple[Topology, int]:
        since = tick - self.start
        if since >= 0 and (since % self.every if self.every else since) < self.length:
            return _Everyone(), tick
        return self.inner, tick
