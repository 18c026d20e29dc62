"""Delaunay graphs: peers at places in the plane, joined to those around them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.spatial import Delaunay as Triangulation

from shoal.core import Topology, topologies

from .base import Edges, agreed, both

__all__ = ["Delaunay"]


@topologies.register("delaunay")
@dataclass(frozen=True)
class Delaunay(Topology):
    """The Delaunay triangulation of uniform places in the unit square: planar and connected.

    One peer has no edge, two have one.
    """

    def edges(self, n: int, seed: int, tick: int) -> Edges:
        if n < 3:
            return both(n, torch.arange(n - 1), torch.arange(1, n))
        places = agreed(seed, self.slug).uniform(n, 2)[0].numpy()
        corner = torch.from_numpy(Triangulation(places).simplices.astype("int64"))
        return both(n, corner.flatten(), corner.roll(1, 1).flatten())
