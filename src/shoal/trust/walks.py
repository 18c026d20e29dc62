"""DecayWalks: batches of random walks that forget, on weighted directed graphs.

Source: Avrachenkov, Litvak, Nemirovsky, Osipova, "Monte Carlo methods in PageRank computation"
(SIAM J. Numer. Anal. 2007) for walks as estimators and for re-walking suffixes (there after Bahmani,
Chowdhury, Goel, "Fast incremental and personalized PageRank", VLDB 2010); Nasrulin, Ishmaev,
Pouwelse, "MeritRank" (arXiv 2207.09950) for the two decays.

Shapes: B walkers' roots, R walks of each, N nodes, L hops of the longest walk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from msgspec import Meta
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from shoal.core import BadInput, Draws, Part

__all__ = ["DecayWalks", "WalkGraph", "Walks"]

_ONE = 1 << 32


@dataclass(frozen=True)
class WalkGraph:
    """A weighted graph, ready to be walked on. A walk leaves a node along an edge in proportion to weight.

    The chances are held as whole numbers of 2^-32, so that a walk takes the same turn whatever other
    graphs share the batch; an edge of relative weight below 2^-33 is never taken.

    Args:
        n: number of nodes.
        source: int64 [E], ascending.
        target: int64 [E].
        key: int64 [E], source * 2^32 + the chance of this edge or an earlier one of its source.
        degree: int64 [n], edges out of each node.
    """

    n: int
    source: Tensor
    target: Tensor
    key: Tensor
    degree: Tensor

    @staticmethod
    def of(n: int, source: Tensor, target: Tensor, weight: Tensor) -> WalkGraph:
        """From edges in any order; edges of weight 0 are left out, parallel edges add up.

        Raises:
            BadInput: negative or non-finite weight; a node outside [0, n).
        """
        weight = weight.to(torch.float64)
        wrong = ~torch.isfinite(weight) | (weight < 0)
        if bool(wrong.any()):
            raise BadInput("weight", float(weight[wrong][0]), "feedback weights are finite and at least 0")
        ends = torch.cat([source, target])
        if len(ends) and not 0 <= int(ends.min()) <= int(ends.max()) < n:
            raise BadInput("node", int(ends.max()), f"nodes are numbered 0 to {n - 1}")
        kept = weight > 0
        source, target, weight = source[kept], target[kept], weight[kept]
        order = torch.argsort(source * n + target, stable=True)
        source, target, weight = source[order], target[order], weight[order]
        total = torch.zeros(n, dtype=torch.float64).index_add_(0, source, weight)
        chance = torch.round(weight / total[source] * _ONE).to(torch.int64)
        degree = torch.bincount(source, minlength=n)
        end = torch.cumsum(degree, 0)
        so_far = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cumsum(chance, 0)])
        within = (so_far[1:] - so_far[(end - degree)[source]]).clamp(max=_ONE)
        within[end[degree > 0] - 1] = _ONE
        return WalkGraph(n, source, target, source * _ONE + within, degree)

    def follow(self, at: Tensor, word: Tensor) -> Tensor:
        """Where a walk at ``at`` [M] goes by the random word [M] in [0, 2^32); -1: no edge leads out."""
        if not len(self.key):
            return torch.full_like(at, -1)
        edge = torch.searchsorted(self.key, at * _ONE + word, right=True).clamp(max=len(self.key) - 1)
        return torch.where(self.degree[at] > 0, self.target[edge], -1)

    def cyclic(self) -> bool:
        """Whether some walk could go on for ever."""
        if bool((self.source == self.target).any()):
            return True
        ones = torch.ones(len(self.source), dtype=torch.int8).numpy()
        matrix = csr_array((ones, (self.source.numpy(), self.target.numpy())), shape=(self.n, self.n))
        parts, _ = connected_components(matrix, directed=True, connection="strong")
        return bool(parts < self.n)


@dataclass(frozen=True)
class Walks:
    """What was walked.

    Args:
        n: nodes of the graph.
        path: int64 [B, R, 1 + L], the nodes in turn, the root first; -1 after the end.
        stuck: bool [B, R], ended for want of an edge, not by decay.
    """

    n: int
    path: Tensor
    stuck: Tensor

    def visits(self) -> Tensor:
        """How often the walks of each root came to each node, the start not counted: int64 [B, n]."""
        return self._count(self.path[:, :, 1:])

    def hits(self) -> Tensor:
        """How many walks of each root came to each node at least once: int64 [B, n]."""
        return self._count(self._firsts(drop_root=False))

    def bottleneck(self) -> Tensor:
        """b_j = max over u (not the root, not j) of (walks at u before j) / (walks that hit j): [B, n].

        1 says that some one node stands between the root and j; nodes that no walk hit have 0.
        """
        first = self._firsts(drop_root=True)
        roots, n = len(first), self.n
        before = torch.zeros(roots * n * n, dtype=torch.int32)
        base = (torch.arange(roots) * n * n)[:, None, None].expand_as(first)
        for lag in range(1, first.shape[2]):
            earlier, later = first[:, :, :-lag], first[:, :, lag:]
            both = later >= 0
            key = base[:, :, lag:][both] + earlier[both] * n + later[both]
            before.index_add_(0, key, torch.ones(len(key), dtype=torch.int32))
        most = before.reshape(roots, n, n).amax(1).to(torch.float64)
        return most / self._count(first).clamp(min=1)

    def fold(self, n: int) -> Walks:
        """Walks on copies of one graph of n nodes, side by side: as walks on that graph."""
        return Walks(n, torch.where(self.path >= 0, self.path % n, -1), self.stuck)

    def _count(self, nodes: Tensor) -> Tensor:
        roots = len(nodes)
        walked = nodes >= 0
        key = (nodes + (torch.arange(roots) * self.n)[:, None, None])[walked]
        return torch.bincount(key, minlength=roots * self.n).reshape(roots, self.n)

    def _firsts(self, drop_root: bool) -> Tensor:
        """The different nodes of each walk after its start, in the order of their first visit, without
        gaps: int64 [B, R, D], padded with -1."""
        roots, each, _ = self.path.shape
        nodes = self.path[:, :, 1:].reshape(roots * each, -1)
        keep = nodes >= 0
        if drop_root:
            keep = keep & (nodes != self.path[:, :, :1].reshape(-1, 1))
        walk, hop = keep.nonzero(as_tuple=True)
        node = nodes[walk, hop]
        key = walk * self.n + node
        order = torch.argsort(key, stable=True)
        new = torch.ones(len(key), dtype=torch.bool)
        new[1:] = key[order][1:] != key[order][:-1]
        chosen = torch.sort(order[new]).values
        walk, node = walk[chosen], node[chosen]
        length = torch.bincount(walk, minlength=roots * each)
        rank = torch.arange(len(walk)) - (torch.cumsum(length, 0) - length)[walk]
        width = int(length.max()) if len(walk) else 0
        out = torch.full((roots * each, width), -1, dtype=torch.int64)
        out[walk, rank] = node
        return out.reshape(roots, each, width)


@dataclass(frozen=True)
class DecayWalks(Part):
    """Walks that stop before each hop with probability alpha (the transitivity decay).

    Args:
        alpha: chance to stop before a hop; a walk makes (1 - alpha) / alpha hops on average.
        walks: R, from each root.
    """

    alpha: Annotated[float, Meta(ge=0, le=1)] = 0.15
    walks: Annotated[int, Meta(ge=1)] = 10_000

    def run(self, graph: WalkGraph, roots: Tensor, draws: Draws) -> Walks:
        """R walks from each of the nodes ``roots`` [B]; ``draws`` has leading axis B.

        Raises:
            BadInput: a root that is not a node; alpha = 0 where walks need not end.
        """
        if len(roots) and not 0 <= int(roots.min()) <= int(roots.max()) < graph.n:
            raise BadInput("seed", roots.tolist(), f"nodes are numbered 0 to {graph.n - 1}")
        self._ends(graph)
        at = roots[:, None].expand(-1, self.walks).reshape(-1)
        hops, stuck = self._go(graph, at, self._names(draws), draws, forced=False)
        shape = (len(roots), self.walks)
        return Walks(graph.n, torch.cat([at[:, None], hops], 1).reshape(*shape, -1), stuck.reshape(shape))

    def again(self, graph: WalkGraph, old: Walks, changed: Tensor, draws: Draws) -> Walks:
        """The walks after the edges out of the nodes ``changed`` [C] became those of ``graph``.

        Each walk is kept up to where it first left (or was stuck at) a changed node and goes on from
        there; the decision to go on was made already, so the result has the law of fresh walks.

        Args:
            draws: not used for walks of this graph before.
        """
        self._ends(graph)
        roots, each, width = old.path.shape
        path, stuck = old.path.reshape(-1, width), old.stuck.reshape(-1)
        column = torch.arange(width)
        last = (path >= 0).sum(1) - 1
        left = torch.isin(path, changed) & ((column < last[:, None]) | stuck[:, None])
        walk = left.any(1).nonzero()[:, 0]
        place = left[walk].to(torch.int8).argmax(1)
        names = self._names(draws)[walk]
        hops, ended = self._go(graph, path[walk, place], names, draws, forced=True)
        long = torch.full((len(path), width + hops.shape[1]), -1, dtype=torch.int64)
        long[:, :width] = path
        tail = torch.arange(long.shape[1])
        # What followed the place is forgotten, and the new hops are written behind it.
        long[walk] = torch.where(tail[None] <= place[:, None], long[walk], -1)
        row, hop = (hops >= 0).nonzero(as_tuple=True)
        long[walk[row], place[row] + 1 + hop] = hops[row, hop]
        stuck = stuck.clone()
        stuck[walk] = ended
        used = max(1, int((long >= 0).sum(1).max())) if len(long) else 1
        return Walks(graph.n, long[:, :used].reshape(roots, each, used), stuck.reshape(roots, each))

    def _ends(self, graph: WalkGraph) -> None:
        if self.alpha == 0 and graph.cyclic():
            raise BadInput("alpha", self.alpha, "above 0 where the graph has a cycle: walks would not end")

    def _names(self, draws: Draws) -> Tensor:
        """Each walk's own number, the same in every placement: int64 [B * R]."""
        return (draws.peers[:, None] * self.walks + torch.arange(self.walks)).reshape(-1)

    def _go(
        self, graph: WalkGraph, at: Tensor, name: Tensor, draws: Draws, forced: bool
    ) -> tuple[Tensor, Tensor]:
        """Hops from ``at`` [M] until all have stopped: (nodes [M, L] padded with -1, stuck [M])."""
        columns: list[Tensor] = []
        stuck = torch.zeros(len(at), dtype=torch.bool)
        alive = torch.arange(len(at))
        here = at
        while len(alive):
            purpose = f"{draws.purpose}/{draws.tick}"
            word = Draws(draws.seed, purpose, name[alive], len(columns)).words(2)
            if not (forced and not columns):
                goes = word[:, 0] >= self.alpha * _ONE
                alive, here, word = alive[goes], here[goes], word[goes]
            reached = graph.follow(here, word[:, 1])
            stuck[alive[reached < 0]] = True
            alive, here = alive[reached >= 0], reached[reached >= 0]
            if not len(alive):
                break
            column = torch.full((len(at),), -1, dtype=torch.int64)
            column[alive] = here
            columns.append(column)
        hops = torch.stack(columns, 1) if columns else torch.zeros(len(at), 0, dtype=torch.int64)
        return hops, stuck
