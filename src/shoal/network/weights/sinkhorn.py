"""Doubly stochastic weights on any strongly connected graph, directed or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from msgspec import Meta
from scipy.sparse import csr_array
from torch import Tensor

from shoal.core import BadInput
from shoal.network.graphs.base import undirected

from .base import Weighting, Weights, weightings
from .degree import rest

__all__ = ["Sinkhorn"]


@weightings.register("sinkhorn")
@dataclass(frozen=True)
class Sinkhorn(Weighting):
    """A + I scaled to row and column sums of 1 within ``tolerance``; symmetric on undirected graphs.

    Source: Sinkhorn and Knopp, "Concerning nonnegative matrices and doubly stochastic matrices"
    (1967). On a long path the passes grow with n^2, and on a directed graph that is not strongly
    connected they never end: both are refused after ``passes``.
    """

    tolerance: Annotated[float, Meta(gt=0)] = 1e-12
    passes: Annotated[int, Meta(ge=1)] = 20000

    def __call__(self, n: int, src: Tensor, dst: Tensor) -> Weights:
        eye = np.arange(n)
        to, by = np.concatenate([dst.numpy(), eye]), np.concatenate([src.numpy(), eye])
        matrix = csr_array((np.ones(len(to)), (to, by)), shape=(n, n))
        across = matrix.T.tocsr()
        row, column = np.ones(n), np.ones(n)
        for _ in range(self.passes):
            row = 1 / (matrix @ column)
            column = 1 / (across @ row)
            if np.abs(row * (matrix @ column) - 1).max() <= self.tolerance:
                break
        else:
            raise BadInput("weights", self.slug, f"not converged in {self.passes} passes; use metropolis")
        # On an undirected graph both scalings agree up to a factor; their mean makes W symmetric.
        if undirected(n, src, dst):
            row = column = np.sqrt(row * column)
        return rest(n, dst, torch.from_numpy(row)[dst] * torch.from_numpy(column)[src])
