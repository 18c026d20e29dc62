"""Complete graph, star, barbell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Topology, topologies

from .base import Edges, both

__all__ = ["Barbell", "Complete", "Star"]


def _clique(members: Tensor) -> Tensor:
    return torch.combinations(members, 2)


@topologies.register("complete")
@dataclass(frozen=True)
class Complete(Topology):
    """Everyone with everyone; Metropolis weights give W = J = 11'/n."""

    def edges(self, n: int, seed: int, tick: int) -> Edges:
        if n > 10_000:
            raise BadInput("peers", n, "at most 10000 on a complete graph, which has n^2 edges")
        i = torch.arange(n * n)
        src, dst = i % n, i // n
        away = src != dst
        return src[away], dst[away]


@topologies.register("star")
@dataclass(frozen=True)
class Star(Topology):
    """Everyone with one.

    Args:
        hub: the number of the one in the middle.
    """

    hub: Annotated[int, Meta(ge=0)] = 0

    def edges(self, n: int, seed: int, tick: int) -> Edges:
        if self.hub >= n:
            raise BadInput("hub", self.hub, f"a peer, 0 to {n - 1}")
        i = torch.arange(n)
        return both(n, i, torch.full_like(i, self.hub))


@topologies.register("barbell")
@dataclass(frozen=True)
class Barbell(Topology):
    """Two complete graphs joined by a path: slow mixing at the bridge.

    Args:
        bridge: peers on the path between them (0: one edge). An odd peer goes to the second bell.
    """

    bridge: Annotated[int, Meta(ge=0)] = 0

    def edges(self, n: int, seed: int, tick: int) -> Edges:
        if n < self.bridge + 2:
            raise BadInput("bridge", self.bridge, f"leaves a peer for each bell: at most {n - 2}")
        first = (n - self.bridge) // 2
        i = torch.arange(n)
        path = i[first - 1 : first + self.bridge]
        pairs = torch.cat(
            [_clique(i[:first]), _clique(i[first + self.bridge :]), torch.stack([path, path + 1], 1)]
        )
        return both(n, pairs[:, 0], pairs[:, 1])
