"""The coordinate-wise median."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from shoal.core import rules

from . import order
from .base import Coordinatewise

__all__ = ["Median"]


@rules.register("median")
@dataclass(frozen=True)
class Median(Coordinatewise):
    """The median of each coordinate over the own value and the messages, all votes equal.

    Of an even number, the average of the two middle values.

    Source: Yin, Chen, Ramchandran, Bartlett, "Byzantine-robust distributed learning: towards optimal
    statistical rates" (ICML 2018), arXiv 1803.01498, definition 1.
    """

    def reduce(self, values: Tensor, mask: Tensor, weight: Tensor, received: Tensor) -> Tensor:
        return order.median(values, mask)
