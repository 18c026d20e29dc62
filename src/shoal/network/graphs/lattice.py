"""Ring, path, torus and grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from msgspec import Meta

from shoal.core import BadInput, Topology, topologies

from .base import Edges, both

__all__ = ["Grid", "Path", "Ring", "Torus"]


@topologies.register("ring")
@dataclass(frozen=True)
class Ring(Topology):
    """Each peer with the next and the one before. W of weights 1/3 has the eigenvalues
    1/3 + (2/3) cos(2 pi k / n)."""

    def edges(self, n: int, seed: int, tick: int) -> Edges:
        i = torch.arange(n)
        return both(n, i, (i + 1) % n)


@topologies.register("path")
@dataclass(frozen=True)
class Path(Topology):
    """A ring with one edge cut."""

    def edges(self, n: int, seed: int, tick: int) -> Edges:
        i = torch.arange(n - 1)
        return both(n, i, i + 1)


@topologies.register("grid")
@dataclass(frozen=True)
class Grid(Topology):
    """A rectangle of rows x columns; peer r * columns + c stands at (r, c).

    Args:
        rows: must divide n; 0: the most square factorisation.
    """

    rows: Annotated[int, Meta(ge=0)] = 0

    def shape(self, n: int) -> tuple[int, int]:
        """(rows, columns).

        Raises:
            BadInput: ``rows`` does not divide n.
        """
        rows = self.rows or next(r for r in range(math.isqrt(n), 0, -1) if n % r == 0)
        if n % rows:
            raise BadInput("rows", rows, f"a divisor of the number of peers, {n}")
        return rows, n // rows

    def edges(self, n: int, seed: int, tick: int) -> Edges:
        at = torch.arange(n).reshape(self.shape(n))
        return both(
            n,
            torch.cat([at[:-1].flatten(), at[:, :-1].flatten()]),
            torch.cat([at[1:].flatten(), at[:, 1:].flatten()]),
        )


@topologies.register("torus")
@dataclass(frozen=True)
class Torus(Grid):
    """A grid whose opposite sides are joined (weights 1/5 where both sides are longer than 2)."""

    def edges(self, n: int, seed: int, tick: int) -> Edges:
        at = torch.arange(n).reshape(self.shape(n))
        return both(
            n,
            torch.cat([at.flatten(), at.flatten()]),
            torch.cat([at.roll(-1, 0).flatten(), at.roll(-1, 1).flatten()]),
        )
