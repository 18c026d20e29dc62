"""The best weights by semidefinite programming: fastest mixing, and the edge rates of gossip clocks.

Sources: Xiao and Boyd, "Fast linear iterations for distributed averaging" (2004); Boyd, Ghosh,
Prabhakar, Shah, "Randomized gossip algorithms" (2006); the rates as DADAO (arXiv 2208.00779) uses
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shoal.core import BadInput, RunFailed, need
from shoal.network.graphs.base import components

from .base import Weighting, Weights, need_undirected, weightings
from .degree import rest

__all__ = ["Optimal", "optimal_rates"]

LIMIT = 64
Array = Any


def _pairs(slug: str, n: int, src: Tensor, dst: Tensor) -> tuple[tuple[tuple[int, int], ...], Tensor]:
    """The undirected edges (i < j), and for each directed edge the number of its pair."""
    need_undirected(slug, n, src, dst)
    if n > LIMIT:
        raise BadInput("weights", slug, f"a semidefinite program, for at most {LIMIT} peers; here {n}")
    if n > 1 and components(n, src, dst)[0] > 1:
        raise BadInput("weights", slug, "a connected graph")
    key = torch.minimum(src, dst) * n + torch.maximum(src, dst)
    pair, place = torch.unique(key, return_inverse=True)
    return tuple(zip((pair // n).tolist(), (pair % n).tolist(), strict=True)), place


def _laplacian(cp: Any, n: int, pairs: tuple[tuple[int, int], ...], x: Any) -> Any:
    """sum_e x_e L_e as a cvxpy expression, on the n - 1 directions orthogonal to 1.

    Along 1 every Laplacian is 0; with that direction the programs would have no interior.
    """
    incidence = np.zeros((n, len(pairs)))
    for e, (i, j) in enumerate(pairs):
        incidence[i, e], incidence[j, e] = 1.0, -1.0
    basis = np.linalg.qr(np.column_stack([np.ones(n), np.eye(n)[:, 1:]]))[0][:, 1:]
    across = basis.T @ incidence
    return across @ cp.diag(x) @ across.T


def _solve(cp: Any, problem: Any, x: Any) -> Array:
    problem.solve(solver=cp.CLARABEL)
    if problem.status != "optimal":
        raise RunFailed(f"the semidefinite program of the weights ended as {problem.status}")
    return np.asarray(x.value)


@lru_cache(maxsize=32)
def _fastest(n: int, pairs: tuple[tuple[int, int], ...]) -> Array:
    cp = need("cvxpy", "optimal")
    weight, norm = cp.Variable(len(pairs)), cp.Variable()
    eye = np.eye(n - 1)
    gap = eye - _laplacian(cp, n, pairs, weight)
    return _solve(cp, cp.Problem(cp.Minimize(norm), [gap << norm * eye, gap >> -norm * eye]), weight)


@lru_cache(maxsize=32)
def _rates(n: int, pairs: tuple[tuple[int, int], ...]) -> Array:
    cp = need("cvxpy", "optimal")
    rate, second = cp.Variable(len(pairs), nonneg=True), cp.Variable()
    limits = [_laplacian(cp, n, pairs, rate) >> second * np.eye(n - 1), cp.sum(rate) == len(pairs)]
    found = _solve(cp, cp.Problem(cp.Maximize(second), limits), rate).clip(min=0)
    return found / found.sum()


@weightings.register("optimal")
@dataclass(frozen=True)
class Optimal(Weighting):
    """The symmetric W on the graph's edges, W1 = 1, of least ||W - J||_2. Weights may be negative.

    For at most 64 peers (about a minute there) on a connected, undirected graph.
    """

    def __call__(self, n: int, src: Tensor, dst: Tensor) -> Weights:
        pairs, place = _pairs(self.slug, n, src, dst)
        if not pairs:
            return rest(n, dst, torch.zeros(0, dtype=torch.float64))
        return rest(n, dst, torch.from_numpy(_fastest(n, pairs))[place])


def optimal_rates(n: int, src: Tensor, dst: Tensor) -> Tensor:
    """The shares of a total gossip rate that make lambda_2(sum_e rate_e L_e) largest.

    Args:
        n: peers, at most 64 (some 15 seconds there).
        src, dst: int64 [E], both directions of every edge of a connected graph.

    Returns:
        float64 [E]: for each directed edge the rate of its undirected edge; non-negative, those of
        the undirected edges sum to 1.

    Raises:
        BadInput: a directed, disconnected, empty or too large graph.
    """
    pairs, place = _pairs("optimal", n, src, dst)
    if not pairs:
        raise BadInput("rates", "optimal", "a graph with edges")
    return torch.from_numpy(_rates(n, pairs))[place]
