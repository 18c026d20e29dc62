"""Facts about a graph and its mixing matrix: spectral gap, connectivity, diameter, resistances."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.sparse import csgraph, csr_array, diags_array
from scipy.sparse.linalg import ArpackNoConvergence, eigs, eigsh
from torch import Tensor

from shoal.core import Graph, RunFailed, Topology

from .graphs.base import both, components

__all__ = ["chis", "facts", "jointly_connected"]

DENSE = 500
EXACT = 2000
Facts = dict[str, float | int | bool | None]


def _laplacian(n: int, src: Tensor, dst: Tensor, rate: Tensor) -> csr_array:
    """L = D - A of symmetric rates; both directions of each edge are given."""
    adjacency = csr_array((rate.numpy(), (dst.numpy(), src.numpy())), shape=(n, n))
    return csr_array(diags_array(adjacency.sum(axis=1)) - adjacency)


def chis(n: int, src: Tensor, dst: Tensor, rate: Tensor | None = None) -> tuple[float, float]:
    """chi1 = 1 / lambda_2(L) and chi2 = max over edges of (e_i - e_j)' L^+ (e_i - e_j) / 2.

    L = sum_e rate_e (e_i - e_j)(e_i - e_j)'. With rates that sum to 1, a gossip clock of total rate
    sqrt(2 chi1 chi2) mixes once per unit of time (DADAO, arXiv 2208.00779).

    Args:
        src, dst: int64 [E], both directions of every edge of a connected graph.
        rate: float64 [E], that of its undirected edge; default 1.

    Returns:
        (chi1, chi2); infinite where the edges of positive rate do not connect the peers.
    """
    rate = torch.ones(len(src), dtype=torch.float64) if rate is None else rate
    value, vector = np.linalg.eigh(_laplacian(n, src, dst, rate).toarray())
    if n == 1:
        return 0.0, 0.0
    if value[1] <= 1e-12 * max(value[-1], 1e-300):
        return float("inf"), float("inf")
    root = vector[:, 1:] / np.sqrt(value[1:])
    used = (rate > 0).numpy()
    gap = root[src.numpy()[used]] - root[dst.numpy()[used]]
    return float(1 / value[1]), float((gap**2).sum(axis=1).max() / 2)


def _second(graph: Graph, symmetric: bool) -> float:
    """The second largest modulus among the eigenvalues of W (1 is the largest)."""
    n = graph.n
    if n == 1:
        return 0.0
    if n <= DENSE:
        w = graph.matrix().numpy()
        values = np.linalg.eigvalsh(w) if symmetric else np.linalg.eigvals(w)
        return float(np.sort(np.abs(values))[-2])
    eye = torch.arange(n)
    place = (torch.cat([graph.dst, eye]).numpy(), torch.cat([graph.src, eye]).numpy())
    w = csr_array((torch.cat([graph.weight, graph.self_weight]).numpy(), place), shape=(n, n))
    start = np.random.RandomState(0).standard_normal(n)  # ARPACK's own start is not reproducible
    try:
        if not symmetric:
            values = eigs(w, 2, v0=start, ncv=40, return_eigenvectors=False)
            return float(np.sort(np.abs(values))[-2])
        low = eigsh(w, 1, which="SA", v0=start, ncv=40, return_eigenvectors=False)
        try:
            high = eigsh(w, 2, which="LA", v0=start, ncv=40, maxiter=300, return_eigenvectors=False)
        except ArpackNoConvergence:  # a small gap: factorise W - I instead
            high = eigsh(w, 2, sigma=1 + 1e-5, v0=start, return_eigenvectors=False)
    except ArpackNoConvergence:
        raise RunFailed(f"the eigenvalues of this graph on {n} peers did not converge") from None
    return float(max(high.min(), -low.min()))


def _connectivity(n: int, src: Tensor, dst: Tensor) -> float:
    """lambda_2 of the Laplacian with unit rates."""
    laplacian = _laplacian(n, src, dst, torch.ones(len(src), dtype=torch.float64))
    if n <= DENSE:
        return float(np.linalg.eigvalsh(laplacian.toarray())[1])
    # The shift keeps the factor non-singular; the smallest eigenvalue, 0, is the nearest to it.
    start = np.random.RandomState(0).standard_normal(n)
    values = eigsh(laplacian.tocsc(), 2, sigma=-1e-4, v0=start, return_eigenvectors=False)
    return float(values.max())


def _farthest(n: int, src: Tensor, dst: Tensor) -> tuple[str, int]:
    """The diameter, or for many peers the longest shortest path found from eight of them."""
    hop = csr_array((np.ones(len(src)), (src.numpy(), dst.numpy())), shape=(n, n))
    if n <= EXACT:
        return "diameter", int(csgraph.shortest_path(hop, unweighted=True).max())
    at, longest = 0, 0
    for _ in range(8):
        distance = csgraph.dijkstra(hop, indices=at, unweighted=True)
        at, longest = int(distance.argmax()), max(longest, int(distance.max()))
    return "diameter_at_least", longest


def facts(graph: Graph) -> Facts:
    """What is known about a graph and its mixing matrix W.

    Returns:
        peers, edges (directed), degree_min, degree_mean, degree_max (in-neighbours), symmetric,
        doubly_stochastic, connected (strongly), components, lambda2 (second largest modulus of the
        eigenvalues of W), gap = 1 - lambda2, diameter in hops (``diameter_at_least`` above 2,000
        peers), and of the undirected graph with unit rates: algebraic_connectivity = lambda_2(L),
        chi1, chi2 (above 2,000 peers not computed). None where infinite or not computed.
    """
    n, src, dst = graph.n, graph.src, graph.dst
    degree = graph.in_degree().to(torch.float64)
    order = torch.argsort(src * n + dst)
    symmetric = torch.equal(src[order], dst) and torch.equal(dst[order], src)
    symmetric = symmetric and bool(((graph.weight[order] - graph.weight).abs() < 1e-9).all())
    sums = [graph.self_weight.index_add(0, end, graph.weight) for end in (src, dst)]
    count, _ = components(n, src, dst)
    second = _second(graph, symmetric)
    one, two = both(n, src, dst)
    joined = components(n, one, two)[0] == 1
    found: dict[str, Any] = {
        "peers": n,
        "edges": graph.edges,
        "degree_min": int(degree.min()),
        "degree_mean": float(degree.mean()),
        "degree_max": int(degree.max()),
        "symmetric": symmetric,
        "doubly_stochastic": all(bool(((s - 1).abs() < 1e-9).all()) for s in sums),
        "connected": count == 1,
        "components": count,
        "lambda2": second,
        "gap": 1 - second,
    }
    name, far = _farthest(n, src, dst) if count == 1 and n > 1 else ("diameter", 0 if n == 1 else None)
    found[name] = far
    connectivity = _connectivity(n, one, two) if joined and n > 1 else 0.0
    found["algebraic_connectivity"] = connectivity
    found["chi1"] = 1 / connectivity if connectivity else None
    found["chi2"] = chis(n, one, two)[1] if connectivity and n <= EXACT else None
    return found


def jointly_connected(topology: Topology, n: int, seed: int, first: int, window: int) -> bool:
    """Whether the graphs of ``window`` ticks from ``first`` on, laid over each other, are connected."""
    graphs = [topology.edges(n, seed, first + t) for t in range(window)]
    src, dst = torch.cat([s for s, _ in graphs]), torch.cat([d for _, d in graphs])
    return n == 1 or components(n, src, dst)[0] == 1
