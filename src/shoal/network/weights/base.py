"""What a weighting is, the weighted graph of a tick, and what may be asked of it."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from shoal.core import BadInput, Graph, Part, Registry, Topology
from shoal.network.graphs.base import Switching, components, undirected

__all__ = ["Weighting", "check_weights", "make_graph", "need_undirected", "weightings"]

Weights = tuple[Tensor, Tensor]
"""(edge weights float64 [E], in the order of the edges given; self weights float64 [n])."""

TOLERANCE = 1e-9


class Weighting(Part):
    """Mixing weights w_ij for the messages j -> i of a graph."""

    @abstractmethod
    def __call__(self, n: int, src: Tensor, dst: Tensor) -> Weights:
        """Weights of the edges ``src -> dst`` (int64 [E]) among n peers.

        Raises:
            BadInput: a graph on which these weights are not defined.
        """

    def given(self, n: int, src: Tensor, dst: Tensor, weights: Weights) -> Weights:
        """What becomes of the weights that the topology itself fixes: they stay, unless said so."""
        return weights


weightings: Registry[Weighting] = Registry("weights", "shoal.network.weights", Weighting)


def need_undirected(slug: str, n: int, src: Tensor, dst: Tensor) -> None:
    """Raise BadInput where an edge has no reverse."""
    if not undirected(n, src, dst):
        raise BadInput(
            "weights", slug, "defined on undirected graphs only; on this one use push or uniform"
        )


def make_graph(topology: Topology, weighting: Weighting, n: int, seed: int, tick: int) -> Graph:
    """The weighted graph of one tick.

    A topology's own weights come first; ``weighting`` decides where it has none.

    Raises:
        BadInput: no such graph on n peers, or weights that are not defined on it.
    """
    try:
        while isinstance(topology, Switching):
            topology, tick = topology.at(tick)
        src, dst = topology.edges(n, seed, tick)
        own = topology.weights(n, src, dst)
    except BadInput as error:
        raise error.under("graph") from None
    weights = weighting(n, src, dst) if own is None else weighting.given(n, src, dst, own)
    return Graph.of(n, src, dst, *weights)


def check_weights(
    graph: Graph, *, symmetric: bool = False, connected: bool = False, columns: bool = False
) -> None:
    """Refuse weights that a method cannot use.

    Args:
        symmetric: W must equal its transpose (with rows that sum to 1: doubly stochastic).
        connected: every peer must be reached from every other (along edges of non-zero weight).
        columns: the columns must sum to 1 instead of the rows (push-sum).

    Raises:
        BadInput: saying where it fails.
    """
    n, src, dst, weight = graph.n, graph.src, graph.dst, graph.weight
    if not bool(torch.isfinite(weight).all() and torch.isfinite(graph.self_weight).all()):
        raise BadInput("weights", "nan or inf", "finite mixing weights")
    total = graph.self_weight.index_add(0, src if columns else dst, weight)
    worst = int((total - 1).abs().argmax())
    if abs(float(total[worst]) - 1) > TOLERANCE:
        what, other = ("column", "row") if columns else ("row", "column")
        raise BadInput(
            "weights",
            round(float(total[worst]), 6),
            f"{what} {worst} of the mixing matrix must sum to 1 (this method needs {what}-stochastic "
            f"weights, not {other}-stochastic ones)",
        )
    if symmetric:
        # Sorted by (sender, receiver), the reversed edges line up with the graph's own order.
        order = torch.argsort(src * n + dst)
        same = torch.equal(src[order], dst) and torch.equal(dst[order], src)
        if not same or bool(((weight[order] - weight).abs() > TOLERANCE).any()):
            raise BadInput(
                "weights", "asymmetric", "symmetric mixing weights (metropolis, on an undirected graph)"
            )
    if connected:
        carries = weight != 0
        count, _ = components(n, src[carries], dst[carries])
        if count > 1:
            raise BadInput(
                "graph", f"{count} components", "a connected graph: every peer reaches every other"
            )
