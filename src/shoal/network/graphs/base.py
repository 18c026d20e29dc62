"""What the graphs share: both directions of undirected edges, connectivity, draws that all agree on."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from shoal.core import BadInput, Draws, Topology

__all__ = [
    "Edges", "Switching", "agreed", "both", "components", "draw_connected", "equal_weights",
    "from_networkx", "group_of", "undirected", "unique",
]  # fmt: skip

Edges = tuple[Tensor, Tensor]
"""(src, dst), int64 [E] each."""

TRIES = 100


class Switching(Topology):
    """Abstract: a topology that is another one at each tick."""

    static: ClassVar[bool] = False

    @abstractmethod
    def at(self, tick: int) -> tuple[Topology, int]:
        """The topology of this tick, and the tick as that topology counts."""

    def edges(self, n: int, seed: int, tick: int) -> Edges:
        topology, own = self.at(tick)
        return topology.edges(n, seed, own)


def agreed(seed: int, purpose: str, tick: int = 0) -> Draws:
    """Random numbers that every peer agrees on without asking: leading axis 1."""
    return Draws(seed, f"graph/{purpose}", torch.zeros(1, dtype=torch.int64), tick)


def unique(n: int, src: Tensor, dst: Tensor) -> Edges:
    """Without self-loops and duplicates, sorted by receiver, then sender."""
    key = torch.unique((dst * n + src)[src != dst])
    return key % n, key // n


def both(n: int, a: Tensor, b: Tensor) -> Edges:
    """The undirected edges {a, b} as directed edges both ways."""
    return unique(n, torch.cat([a, b]), torch.cat([b, a]))


def undirected(n: int, src: Tensor, dst: Tensor) -> bool:
    """Whether every edge has its reverse."""
    return torch.equal((src * n + dst).sort().values, (dst * n + src).sort().values)


def components(n: int, src: Tensor, dst: Tensor) -> tuple[int, Tensor]:
    """The strongly connected components: their number, and each peer's, int64 [n]."""
    one = np.ones(len(src), dtype=np.int8)
    matrix = coo_array((one, (src.numpy(), dst.numpy())), shape=(n, n))
    count, label = connected_components(matrix, directed=True, connection="strong")
    return int(count), torch.from_numpy(label.astype(np.int64))


def draw_connected(
    n: int,
    seed: int,
    purpose: str,
    build: Callable[[Draws], Edges],
    connected: bool,
    field: str,
    value: Any,
) -> Edges:
    """The first draw; where it must be connected, the first of at most 100 draws that is.

    Raises:
        BadInput: none of them is; it names ``field`` and its ``value``.
    """
    for attempt in range(TRIES):
        src, dst = build(agreed(seed, f"{purpose}/{attempt}"))
        if not connected or n == 1 or components(n, src, dst)[0] == 1:
            return src, dst
    raise BadInput(
        field,
        value,
        f"none of {TRIES} draws is connected on {n} peers: change it, or set connected = false",
    )


def equal_weights(n: int, dst: Tensor) -> tuple[Tensor, Tensor]:
    """Weight 1 / (in-degree + 1) for each message and for oneself: rows sum to 1."""
    self_weight = 1.0 / (torch.bincount(dst, minlength=n).to(torch.float64) + 1.0)
    return self_weight[dst], self_weight


def from_networkx(n: int, graph: Any) -> Edges:
    """The edges of a networkx graph on the nodes 0..n-1; undirected graphs give both directions."""
    pairs = torch.tensor(list(graph.edges())).reshape(-1, 2).to(torch.int64)
    if graph.is_directed():
        return unique(n, pairs[:, 0], pairs[:, 1])
    return both(n, pairs[:, 0], pairs[:, 1])


def group_of(n: int, groups: int) -> Tensor:
    """Peers in ``groups`` parts of consecutive numbers: the part of each, int64 [n]."""
    return torch.arange(n) * groups // n
