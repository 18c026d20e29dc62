"""Trees of any branching."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Topology, topologies

from .base import Edges, both

__all__ = ["Tree"]


@topologies.register("tree")
@dataclass(frozen=True)
class Tree(Topology):
    """Peer 0 is the root; the peers are numbered level by level, children beside each other.

    Args:
        branching: children of each peer of the first level, of the second, ...; () for two children of
            every peer, level by level, as far as the peers reach.
    """

    branching: tuple[Annotated[int, Meta(ge=1)], ...] = ()

    @property
    def levels(self) -> list[int]:
        """How many peers each level has, the root's first."""
        return list(accumulate((1, *self.branching), lambda a, b: a * b))

    @property
    def starts(self) -> list[int]:
        """The first peer of each level."""
        return list(accumulate(self.levels[:-1], initial=0))

    def below(self, level: int) -> int:
        """Leaves under each peer of a level."""
        return math.prod(self.branching[level:])

    def up(self, level: int) -> tuple[Tensor, Tensor]:
        """(child, parent) of every peer of a level below the root: int64."""
        i = torch.arange(self.levels[level])
        return self.starts[level] + i, self.starts[level - 1] + i // self.branching[level - 1]

    def edges(self, n: int, seed: int, tick: int) -> Edges:
        if not self.branching:
            child = torch.arange(1, n)
            return both(n, child, (child - 1) // 2)
        if n != sum(self.levels):
            raise BadInput("peers", n, f"{sum(self.levels)}: as many as the tree {self.branching} has")
        pairs = [self.up(level) for level in range(1, len(self.levels))]
        none = torch.zeros(0, dtype=torch.int64)
        return both(
            n, torch.cat([a for a, _ in pairs] or [none]), torch.cat([b for _, b in pairs] or [none])
        )
