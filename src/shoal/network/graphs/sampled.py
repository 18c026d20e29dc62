"""Graphs of chance meetings: each peer may hear one random other peer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import Draws, Topology, topologies

from .base import Edges, equal_weights

__all__ = ["RandomPeer"]


@topologies.register("random-peer")
@dataclass(frozen=True)
class RandomPeer(Topology):
    """With chance ``p`` peer i hears one uniformly random other peer and mixes 1/2 - 1/2 with it.

    Directed and row-stochastic: the mean of all models is kept only in expectation.

    Source: "A single merging suffices" (arXiv 2507.06542).
    """

    static: ClassVar[bool] = False
    p: Annotated[float, Meta(ge=0, le=1)] = 1.0

    def edges(self, n: int, seed: int, tick: int) -> Edges:
        peers = torch.arange(n)
        draws = Draws(seed, f"graph/{self.slug}", peers, tick)
        hears = (draws.uniform(1)[:, 0] < self.p) & (n > 1)
        other = draws.at("other").integers(n - 1, 1)[:, 0]
        other = other + (other >= peers).to(torch.int64)
        return other[hears], peers[hears]

    def weights(self, n: int, src: Tensor, dst: Tensor) -> tuple[Tensor, Tensor]:
        return equal_weights(n, dst)
