"""The coordinate-wise trimmed mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.core import rules

from .base import Bounded, Coordinatewise
from .order import ascending

__all__ = ["TrimmedMean"]


@rules.register("trimmed-mean")
@dataclass(frozen=True)
class TrimmedMean(Bounded, Coordinatewise):
    """The mean of each coordinate without its f largest and f smallest values, all votes equal.

    Needs n >= 2f + 1 messages, the own value among them.

    Source: Yin et al. (ICML 2018), arXiv 1803.01498, definition 2 (there f = beta n).
    """

    def reduce(self, values: Tensor, mask: Tensor, weight: Tensor, received: Tensor) -> Tensor:
        f, number = self.count(self.f, received), mask.sum(1)
        place = torch.arange(values.shape[1])
        keep = (place >= f[:, None]) & (place < (number - f)[:, None])
        rising = ascending(values, mask)
        # Summed as differences from the lowest value kept: equal messages give that value, bit for bit.
        low = rising[torch.arange(len(rising)), f.clamp(max=values.shape[1] - 1)]
        above = torch.where(keep[:, :, None], rising - low[:, None], 0.0).sum(1)
        return low + above / (number - 2 * f).clamp(min=1)[:, None]
