"""Random graphs that are drawn once, from the seed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import networkx
import torch
from msgspec import Meta
from scipy.spatial import cKDTree
from torch import Tensor

from shoal.core import BadInput, Draws, Topology, topologies

from .base import Edges, both, draw_connected, from_networkx, group_of

__all__ = ["BarabasiAlbert", "ErdosRenyi", "Geometric", "StochasticBlocks", "WattsStrogatz"]

Chance = Annotated[float, Meta(ge=0, le=1)]


def bernoulli(count: int, p: float, draws: Draws) -> Tensor:
    """The numbers in [0, count) that each win an independent coin of chance ``p``: int64, ascending.

    Draws the geometric gaps between them, so that the work is that of the winners alone (Batagelj
    and Brandes, "Efficient generation of large random networks", 2005).
    """
    if p <= 0 or count == 0:
        return torch.zeros(0, dtype=torch.int64)
    if p >= 1:
        return torch.arange(count)
    size = int(count * p + 6 * math.sqrt(count * p)) + 16
    found: list[Tensor] = []
    last = -1
    while last < count:
        u = draws.at(str(len(found))).uniform(size)[0]
        gap = torch.floor(torch.log1p(-u) / math.log1p(-p)).clamp(max=count).to(torch.int64)
        found.append(last + torch.cumsum(gap + 1, 0))
        last = int(found[-1][-1])
    cells = torch.cat(found)
    return cells[cells < count]


def triangle(cell: Tensor) -> tuple[Tensor, Tensor]:
    """The pair (i, j), i < j, of each number j (j - 1) / 2 + i."""
    j = torch.floor((1 + torch.sqrt(1 + 8 * cell.to(torch.float64))) / 2).to(torch.int64)
    j -= (j * (j - 1) // 2 > cell).to(torch.int64)
    j += (j * (j + 1) // 2 <= cell).to(torch.int64)
    return cell - j * (j - 1) // 2, j


@topologies.register("erdos-renyi")
@dataclass(frozen=True)
class ErdosRenyi(Topology):
    """G(n, p): each pair is an edge with chance p.

    Args:
        connected: draw again (at most 100 times) until it is connected.
    """

    p: Chance = 0.3
    connected: bool = True

    def edges(self, n: int, seed: int, tick: int) -> Edges:
        def build(draws: Draws) -> Edges:
            return both(n, *triangle(bernoulli(n * (n - 1) // 2, self.p, draws)))

        return draw_connected(n, seed, self.slug, build, self.connected, "p", self.p)


@topologies.register("sbm")
@dataclass(frozen=True)
class StochasticBlocks(Topology):
    """Stochastic block model: ``groups`` parts of consecutive numbers.

    Args:
        p_in: chance of an edge inside a group.
        p_out: chance of an edge between groups.
        connected: draw again (at most 100 times) until it is connected.
    """

    groups: Annotated[int, Meta(ge=1)] = 2
    p_in: Chance = 0.6
    p_out: Chance = 0.1
    connected: bool = True

    def edges(self, n: int, seed: int, tick: int) -> Edges:
        if self.groups > n:
            raise BadInput("groups", self.groups, f"at most one group a peer, {n}")
        size = torch.bincount(group_of(n, self.groups), minlength=self.groups).tolist()
        start = [sum(size[:g]) for g in range(self.groups)]

        def build(draws: Draws) -> Edges:
            pairs = []
            for g in range(self.groups):
                i, j = triangle(bernoulli(size[g] * (size[g] - 1) // 2, self.p_in, draws.at(f"{g}")))
                pairs.append((i + start[g], j + start[g]))
                for h in range(g + 1, self.groups):
                    cell = bernoulli(size[g] * size[h], self.p_out, draws.at(f"{g}-{h}"))
                    pairs.append((cell // size[h] + start[g], cell % size[h] + start[h]))
            return both(n, torch.cat([i for i, _ in pairs]), torch.cat([j for _, j in pairs]))

        return draw_connected(n, seed, self.slug, build, self.connected, "p_out", self.p_out)


@topologies.register("barabasi-albert")
@dataclass(frozen=True)
class BarabasiAlbert(Topology):
    """Preferential attachment: each new peer joins ``m`` old ones, by degree. Always connected."""

    m: Annotated[int, Meta(ge=1)] = 2

    def edges(self, n: int, seed: int, tick: int) -> Edges:
        if self.m >= n:
            raise BadInput("m", self.m, f"less than the number of peers, {n}")

        def build(draws: Draws) -> Edges:
            word = int(draws.words(1)[0, 0])
            return from_networkx(n, networkx.barabasi_albert_graph(n, self.m, seed=word))

        return draw_connected(n, seed, self.slug, build, False, "m", self.m)


@topologies.register("watts-strogatz")
@dataclass(frozen=True)
class WattsStrogatz(Topology):
    """Small world: a ring of ``k`` nearest neighbours (k even), each edge rewired with chance p.

    Args:
        connected: draw again (at most 100 times) until it is connected.
    """

    k: Annotated[int, Meta(ge=2, multiple_of=2)] = 4
    p: Chance = 0.1
    connected: bool = True

    def edges(self, n: int, seed: int, tick: int) -> Edges:
        if self.k >= n:
            raise BadInput("k", self.k, f"less than the number of peers, {n}")

        def build(draws: Draws) -> Edges:
            word = int(draws.words(1)[0, 0])
            return from_networkx(n, networkx.watts_strogatz_graph(n, self.k, self.p, seed=word))

        return draw_connected(n, seed, self.slug, build, self.connected, "p", self.p)


@topologies.register("geometric")
@dataclass(frozen=True)
class Geometric(Topology):
    """Peers at uniform places in the unit square; edges up to the distance ``radius``.

    Args:
        connected: draw again (at most 100 times) until it is connected.
    """

    radius: Annotated[float, Meta(gt=0)] = 0.4
    connected: bool = True

    def edges(self, n: int, seed: int, tick: int) -> Edges:
        def build(draws: Draws) -> Edges:
            place = draws.uniform(n, 2)[0].numpy()
            pairs = torch.from_numpy(cKDTree(place).query_pairs(self.radius, output_type="ndarray"))
            return both(n, pairs[:, 0].to(torch.int64), pairs[:, 1].to(torch.int64))

        return draw_connected(n, seed, self.slug, build, self.connected, "radius", self.radius)
