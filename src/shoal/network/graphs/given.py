"""Graphs that the user brings: a file of edges, or a networkx graph."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx
import torch
from torch import Tensor

from shoal.core import BadInput, Topology, topologies

from .base import Edges, both, unique

__all__ = ["EdgeList", "NetworkX"]


def _row_weights(n: int, src: Tensor, dst: Tensor, given: Tensor, field: str) -> tuple[Tensor, Tensor]:
    """Edge weights in the order of (src, dst), from (dst, src, w) rows; the rest is the peer's own."""
    held = dict(zip((given[:, 0] * n + given[:, 1]).long().tolist(), given[:, 2].tolist(), strict=True))
    weight = torch.tensor([held[k] for k in (dst * n + src).tolist()], dtype=torch.float64)
    total = torch.zeros(n, dtype=torch.float64).index_add_(0, dst, weight)
    if len(dst) and float(total.max()) > 1 + 1e-9:
        worst = int(total.argmax())
        raise BadInput(field, float(total[worst]), f"weights into peer {worst} must sum to at most 1")
    return weight, (1.0 - total).clamp(min=0.0)


@topologies.register("edge-list")
@dataclass(frozen=True)
class EdgeList(Topology):
    """Edges from a text file: ``src dst`` or ``src dst weight`` a line; # begins a comment.

    Args:
        file: its path.
        directed: whether ``src dst`` is one direction only.

    Weights are the mixing weights w_dst,src, non-negative, on all lines or on none; the rest of each
    row is the peer's own weight. Without them the network's weighting decides.

    Raises:
        BadInput: naming the line: not two or three numbers, a peer out of range, an edge to itself,
            an edge given twice, a weight that is negative or not finite.
    """

    file: str = ""
    directed: bool = False

    def check(self) -> None:
        if not self.file:
            raise BadInput("file", self.file, "the path of a text file with lines: src dst [weight]")

    def _lines(self, n: int) -> list[tuple[int, int, float | None]]:
        try:
            text = Path(self.file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput("file", self.file, f"not readable ({error})") from None
        found: list[tuple[int, int, float | None]] = []
        seen: dict[tuple[int, int], int] = {}

        def refuse(number: int, line: str, why: str) -> BadInput:
            return BadInput("file", line.strip(), f"line {number} of {self.file}: {why}")

        for number, line in enumerate(text.splitlines(), 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            try:
                src, dst = int(words[0]), int(words[1])
                weight = float(words[2]) if len(words) == 3 else None
            except (ValueError, IndexError):
                raise refuse(number, line, "src dst [weight], two peers and a number") from None
            if len(words) > 3:
                raise refuse(number, line, "at most three columns: src dst [weight]")
            if not (0 <= src < n and 0 <= dst < n):
                raise refuse(number, line, f"peers are numbered 0 to {n - 1}")
            if src == dst:
                raise refuse(number, line, "no edge from a peer to itself")
            key = (src, dst) if self.directed else (min(src, dst), max(src, dst))
            if key in seen:
                raise refuse(number, line, f"the edge was given on line {seen[key]}")
            seen[key] = number
            if weight is not None and not (math.isfinite(weight) and weight >= 0):
                raise refuse(number, line, "a finite weight, at least 0")
            if found and (weight is None) != (found[0][2] is None):
                raise refuse(number, line, "weights on all lines or on none")
            found.append((src, dst, weight))
        return found

    def edges(self, n: int, seed: int, tick: int) -> Edges:
        lines = self._lines(n)
        pairs = torch.tensor([(s, d) for s, d, _ in lines], dtype=torch.int64).reshape(-1, 2)
        return (unique if self.directed else both)(n, pairs[:, 0], pairs[:, 1])

    def weights(self, n: int, src: Tensor, dst: Tensor) -> tuple[Tensor, Tensor] | None:
        lines = self._lines(n)
        given = [(d, s, w) for s, d, w in lines if w is not None]
        if not given:
            return None
        if not self.directed:
            given += [(s, d, w) for d, s, w in given]
        return _row_weights(n, src, dst, torch.tensor(given, dtype=torch.float64), "file")


@topologies.register("networkx")
@dataclass(frozen=True)
class NetworkX(Topology):
    """A networkx graph, from Python. Directed graphs keep their directions; loops are dropped.

    Nodes that are the numbers 0..n-1 are the peers of those numbers; other nodes are numbered in the
    order of the graph.

    Args:
        graph: any nx.Graph or nx.DiGraph with n nodes.
        weight: the edge attribute that holds the mixing weights w_ij of the message j -> i; empty:
            the network's weighting decides.
    """

    graph: Any = None
    weight: str = ""

    def check(self) -> None:
        if not isinstance(self.graph, networkx.Graph):
            raise BadInput("graph", self.graph, "a networkx Graph or DiGraph (from Python only)")
        if self.weight and self.graph.is_multigraph():
            raise BadInput("weight", self.weight, "none, as a multigraph has several for one edge")

    def _edges(self, n: int) -> list[tuple[int, int, float]]:
        nodes = list(self.graph.nodes)
        if len(nodes) != n:
            raise BadInput("graph", len(nodes), f"a graph with as many nodes as peers, {n}")
        order = range(n) if set(nodes) == set(range(n)) else nodes
        number = {v: i for i, v in enumerate(order)}
        found = []
        for a, b, data in self.graph.edges(data=True):
            if self.weight and not isinstance(data.get(self.weight), int | float):
                raise BadInput("weight", self.weight, f"a number on every edge; {a}-{b} has none")
            found.append((number[a], number[b], float(data[self.weight]) if self.weight else 1.0))
        return [e for e in found if e[0] != e[1]]

    def edges(self, n: int, seed: int, tick: int) -> Edges:
        pairs = torch.tensor([e[:2] for e in self._edges(n)], dtype=torch.int64).reshape(-1, 2)
        return (unique if self.graph.is_directed() else both)(n, pairs[:, 0], pairs[:, 1])

    def weights(self, n: int, src: Tensor, dst: Tensor) -> tuple[Tensor, Tensor] | None:
        if not self.weight:
            return None
        given = [(b, a, w) for a, b, w in self._edges(n)]
        if not self.graph.is_directed():
            given += [(a, b, w) for b, a, w in given]
        return _row_weights(n, src, dst, torch.tensor(given, dtype=torch.float64).reshape(-1, 3), "weight")
