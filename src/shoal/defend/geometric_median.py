"""The geometric median, by the smoothed Weiszfeld algorithm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import rules

from .base import GramRule

__all__ = ["GeometricMedian"]


@rules.register("geometric-median", "rfa")
@dataclass(frozen=True)
class GeometricMedian(GramRule):
    """z = sum_i u_i b_i / sum_i b_i with b_i = 1 / max(|u_i - z|, nu), repeated from the mean.

    Every iterate is a combination of the messages, z = sum_i c_i u_i, so that |u_i - z|^2 follows from
    their Gram matrix and an iteration costs M^2, whatever D. All votes are equal. From a mean that huge
    hostile messages dragged away, each iteration comes back by a factor of about (n - f)/f: against
    such attackers take more of them.

    Args:
        iterations: T.
        nu: distance below which messages are not weighed up any further.

    Source: Pillutla, Kakade, Harchaoui, "Robust aggregation for federated learning" (RFA), IEEE TSP
    2022, arXiv 1912.13445, algorithm 2. Deviation: weights alpha_i are equal, not shares of the data.
    """

    iterations: Annotated[int, Meta(ge=1)] = 8
    nu: Annotated[float, Meta(gt=0)] = 1e-6

    def weights(self, products: Tensor, mask: Tensor, weight: Tensor, received: Tensor) -> Tensor:
        votes = mask.to(torch.float64)
        length = torch.diagonal(products, dim1=1, dim2=2)
        c = votes / votes.sum(1, keepdim=True).clamp(min=1)
        for _ in range(self.iterations):
            inner = (products @ c[:, :, None])[:, :, 0]
            gap = (length - 2 * inner + (c * inner).sum(1, keepdim=True)).clamp(min=0).sqrt()
            b = votes / gap.clamp(min=self.nu)
            c = b / b.sum(1, keepdim=True).clamp(min=torch.finfo(b.dtype).tiny)
        return c
