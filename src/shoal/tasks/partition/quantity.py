"""Peers that hold much and peers that hold little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Draws

from .base import Partition, apportion, partitions
from .dirichlet import log_dirichlet
from .iid import dealt, lognormal

__all__ = ["Quantity"]


@partitions.register("quantity")
@dataclass(frozen=True)
class Quantity(Partition):
    """Quantity skew: all rows, at random, in unequal shares of at least one row.

    Source: Li, Diao, Chen & He (ICDE 2022) for Dirichlet shares.

    Args:
        beta: shares ~ Dir_n(beta).
        sigma: shares in proportion to exp(sigma z), z standard normal. One of the two; neither: beta 0.5.
    """

    beta: Annotated[float, Meta(gt=0)] | None = None
    sigma: Annotated[float, Meta(gt=0)] | None = None

    def check(self) -> None:
        if self.beta is not None and self.sigma is not None:
            raise BadInput("sigma", self.sigma, "either sigma or beta")

    def owner(self, y: Tensor, groups: Tensor | None, n: int, seed: int) -> Tensor:
        if self.sigma is not None:
            weight = lognormal(n, self.sigma, seed)
        else:
            draws = Draws(seed, "partition/quantity", torch.zeros(1, dtype=torch.int64))
            weight = np.exp(log_dirichlet(draws, self.beta or 0.5, n)[0])
        return dealt(apportion(weight, len(y)), len(y), seed)
