"""Multi-Krum: the mean of the messages that lie closest to most others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import rules

from .krum import Krum

__all__ = ["MultiKrum"]


@rules.register("multi-krum")
@dataclass(frozen=True)
class MultiKrum(Krum):
    """The mean of the m messages with the least Krum scores.

    Args:
        m: how many; None: n - f. A receiver with fewer messages averages all that it has.

    Source: Blanchard et al. (NeurIPS 2017), section 5. The default m = n - f is that of later practice;
    the paper leaves m free.
    """

    m: Annotated[int, Meta(ge=1)] | None = None

    def best(self, number: Tensor, f: Tensor) -> Tensor:
        return number - f if self.m is None else torch.clamp(number, max=self.m)
