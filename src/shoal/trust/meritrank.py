"""046 MeritRank: subjective reputation by random walks whose decays bound what Sybils can gain.

Source: Nasrulin, Ishmaev, Pouwelse, "MeritRank: Sybil tolerant reputation for merit-based
tokenomics" (BRAINS 2022, arXiv 2207.09950) and the authors' repository.

The seed node sees the others by R walks on the graph of feedback. The transitivity decay alpha ends
walks early; the connectivity decay beta takes from nodes that nearly all walks reach through one
other node, as all Sybils are reached through their attacker.

Deviation: a node's penalty looks at one intermediary at a time, as in the authors' code; the paper
speaks of edge-disjoint paths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from msgspec import Meta
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow
from torch import Tensor

from shoal.core import BadInput, Draws

from .walks import DecayWalks, WalkGraph, Walks

__all__ = ["MeritRank", "max_flow"]

_Share = Annotated[float, Meta(ge=0, le=1)]


@dataclass(frozen=True)
class MeritRank(DecayWalks):
    """Reputation of every node as seen by some seeds.

    Baselines: ``beta=0`` is personalised PageRank, with ``score="hitting"`` the hitting probability.

    Args:
        beta: connectivity decay, taken from a node's score where b_j >= theta.
        theta: share of the walks to a node that one other node may carry unpunished.
        gamma: transitivity in time: the share of the old reputation that an epoch forgets.
        score: ``ppr``: visits per walk; ``hitting``: walks that came at all, per walk.
    """

    beta: _Share = 0.9
    theta: _Share = 0.95
    gamma: _Share = 0.1
    score: Literal["ppr", "hitting"] = "ppr"

    def raw(self, walks: Walks) -> Tensor:
        """Scores before the connectivity decay: float64 [B, n]."""
        counted = walks.visits() if self.score == "ppr" else walks.hits()
        return counted.to(torch.float64) / walks.path.shape[1]

    def merit(self, walks: Walks) -> Tensor:
        """Scores with both decays: float64 [B, n]."""
        raw = self.raw(walks)
        if self.beta == 0:
            return raw
        return torch.where(walks.bottleneck() >= self.theta, raw * (1 - self.beta), raw)

    def rank(self, graph: WalkGraph, seeds: Tensor, draws: Draws) -> Tensor:
        """The seeds' [B] views of all nodes: float64 [B, n]; nodes out of reach have 0.

        Raises:
            BadInput: a seed that is not a node; alpha = 0 where walks need not end.
        """
        return self.merit(self.run(graph, seeds, draws))

    def epoch(self, before: Tensor, now: Tensor) -> Tensor:
        """Reputation after one more epoch: (1 - gamma) before + now."""
        return (1 - self.gamma) * before + now


def max_flow(n: int, source: Tensor, target: Tensor, weight: Tensor, seed: int) -> Tensor:
    """The baseline that no Sybil region can beat and few can compute: maximum flow from ``seed``.

    Args:
        weight: [E], capacities; rounded to whole numbers.

    Returns:
        float64 [n]; the seed has 0.

    Raises:
        BadInput: the seed is not a node.
    """
    if not 0 <= seed < n:
        raise BadInput("seed", seed, f"nodes are numbered 0 to {n - 1}")
    capacity = np.rint(weight.numpy()).astype(np.int32)
    graph = csr_array((capacity, (source.numpy(), target.numpy())), shape=(n, n), dtype=np.int32)
    flows = [0 if j == seed else maximum_flow(graph, seed, j).flow_value for j in range(n)]
    return torch.tensor(flows, dtype=torch.float64)
