"""Random regular graphs, drawn once or afresh each tick, and random matchings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Draws, RunFailed, Topology, topologies

from .base import Edges, agreed, both, draw_connected, unique

__all__ = ["FreshRegular", "Matching", "RandomRegular"]

ROUNDS = 2000


def _bad(n: int, a: Tensor, b: Tensor) -> Tensor:
    """Bool [E]: loops, and every edge that repeats an earlier one."""
    key = torch.minimum(a, b) * n + torch.maximum(a, b)
    value, order = key.sort(stable=True)
    bad = a == b
    bad[order[1:][value[1:] == value[:-1]]] = True
    return bad


def regular(n: int, degree: int, draws: Draws) -> Edges:
    """A random ``degree``-regular graph on n peers, in both directions.

    The pairing model: n * degree half-edges are paired at random; loops and double edges are then
    mended by permuting their ends with those of as many random edges. The mending makes it uniform
    only as n grows. Above half of the possible degree it is the complement of such a graph.

    Raises:
        BadInput: degree >= n, or n * degree is odd.
    """
    if degree >= n or n * degree % 2:
        raise BadInput("degree", degree, f"below {n} peers, and peers * degree even")
    if degree == 0:
        none = torch.zeros(0, dtype=torch.int64)
        return none, none
    if degree > (n - 1) // 2:
        src, dst = regular(n, n - 1 - degree, draws)
        absent = torch.ones(n, n, dtype=torch.bool)
        absent[dst, src] = False
        to, by = absent.nonzero(as_tuple=True)
        return unique(n, by, to)
    stubs = draws.permutation(n * degree)[0] % n
    a, b = stubs.reshape(2, -1)
    for attempt in range(ROUNDS):
        bad = _bad(n, a, b)
        if not bool(bad.any()):
            return both(n, a, b)
        order = draws.at(f"mend/{attempt}").permutation(len(a))[0]
        if attempt % 20 < 19:
            broken = order[bad[order]]
            order = torch.cat([broken, order[~bad[order]][: len(broken)]])
        # Ends move along one cycle through the chosen edges; now and then through all of them.
        b = b.clone()
        b[order] = b[order.roll(1)]
    raise RunFailed(f"no simple {degree}-regular graph on {n} peers found in {ROUNDS} rounds")


@topologies.register("random-regular", "regular")
@dataclass(frozen=True)
class RandomRegular(Topology):
    """One random graph in which every peer has ``degree`` neighbours.

    Args:
        connected: draw again (at most 100 times) until it is connected.
    """

    degree: Annotated[int, Meta(ge=1)] = 4
    connected: bool = True

    def edges(self, n: int, seed: int, tick: int) -> Edges:
        return draw_connected(
            n, seed, self.slug, lambda d: regular(n, self.degree, d), self.connected, "degree", self.degree
        )


@topologies.register("fresh-regular")
@dataclass(frozen=True)
class FreshRegular(Topology):
    """A fresh random ``degree``-regular graph each tick; connected only jointly over ticks."""

    static: ClassVar[bool] = False
    degree: Annotated[int, Meta(ge=1)] = 4

    def edges(self, n: int, seed: int, tick: int) -> Edges:
        return regular(n, self.degree, agreed(seed, self.slug, tick))


@topologies.register("matching")
@dataclass(frozen=True)
class Matching(Topology):
    """A fresh random matching each tick: pairs average; with odd n one peer stays alone."""

    static: ClassVar[bool] = False

    def edges(self, n: int, seed: int, tick: int) -> Edges:
        order = agreed(seed, self.slug, tick).permutation(n)[0]
        half = n // 2
        return both(n, order[:half], order[half : 2 * half])
