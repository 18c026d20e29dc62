"""Weights from the degrees: Metropolis, uniform, Laplacian, push; and their lazy form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.network.graphs.base import equal_weights

from .base import Weighting, Weights, need_undirected, weightings

__all__ = ["Laplacian", "Lazy", "Metropolis", "Push", "Uniform"]


def rest(n: int, dst: Tensor, weight: Tensor) -> Weights:
    """Edge weights with what is left of each row on the diagonal."""
    return weight, 1.0 - torch.zeros(n, dtype=torch.float64).index_add_(0, dst, weight)


@weightings.register("metropolis")
@dataclass(frozen=True)
class Metropolis(Weighting):
    """Metropolis-Hastings: w_ij = 1 / (1 + max(d_i, d_j)), the rest on the diagonal. Symmetric."""

    def __call__(self, n: int, src: Tensor, dst: Tensor) -> Weights:
        need_undirected(self.slug, n, src, dst)
        degree = torch.bincount(dst, minlength=n)
        weight = 1.0 / (1.0 + torch.maximum(degree[src], degree[dst]).to(torch.float64))
        return rest(n, dst, weight)


@weightings.register("uniform")
@dataclass(frozen=True)
class Uniform(Weighting):
    """1 / (d_i + 1) for each in-neighbour and oneself: row-stochastic only, unless regular."""

    def __call__(self, n: int, src: Tensor, dst: Tensor) -> Weights:
        return equal_weights(n, dst)


@weightings.register("laplacian")
@dataclass(frozen=True)
class Laplacian(Weighting):
    """W = I - L / (d_max + 1). Symmetric."""

    def __call__(self, n: int, src: Tensor, dst: Tensor) -> Weights:
        need_undirected(self.slug, n, src, dst)
        largest = int(torch.bincount(dst, minlength=n).max())
        return rest(n, dst, torch.full((len(dst),), 1.0 / (largest + 1.0), dtype=torch.float64))


@weightings.register("push")
@dataclass(frozen=True)
class Push(Weighting):
    """w_ij = 1 / (1 + out-degree of j): column-stochastic, for push-sum on directed graphs.

    Replaces weights that the topology fixes.
    """

    def __call__(self, n: int, src: Tensor, dst: Tensor) -> Weights:
        weight, self_weight = equal_weights(n, src)
        return weight, self_weight

    def given(self, n: int, src: Tensor, dst: Tensor, weights: Weights) -> Weights:
        return self(n, src, dst)


@weightings.register("lazy")
@dataclass(frozen=True)
class Lazy(Weighting):
    """(I + W) / 2 of other weights: all eigenvalues of a symmetric W become non-negative."""

    of: Weighting = weightings.field("metropolis")

    def __call__(self, n: int, src: Tensor, dst: Tensor) -> Weights:
        weight, own = self.of(n, src, dst)
        return weight / 2, (1 + own) / 2

    def given(self, n: int, src: Tensor, dst: Tensor, weights: Weights) -> Weights:
        weight, own = self.of.given(n, src, dst, weights)
        return weight / 2, (1 + own) / 2
