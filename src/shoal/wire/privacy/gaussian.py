"""The Gaussian mechanism on messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import Draws, Layout, Stage, codecs

__all__ = ["Gaussian"]


@codecs.register("gaussian")
@dataclass(frozen=True)
class Gaussian(Stage):
    """Clips each message's Euclidean norm, then adds N(0, (sigma clip)^2) to every entry.

    One release is the Gaussian mechanism with noise multiplier ``sigma`` at sensitivity ``clip``
    (a message against its absence; one message against another has 2 clip, so half the multiplier).
    The noise comes from the run's seed, as everything does: whoever knows the seed can remove it, and
    floats are no reals (Mironov 2012). It shows what privacy costs; where the seed or the last bits
    are the adversary's, it protects less than the accountant says.

    Source: Dwork and Roth (2014), appendix A; Abadi et al., "Deep learning with differential privacy"
    (CCS 2016).

    Args:
        clip: bound on the norm.
        sigma: noise multiplier; 0 only clips.
        delta: at which the report states epsilon; the messages do not depend on it.
    """

    clip: Annotated[float, Meta(gt=0)] = 1.0
    sigma: Annotated[float, Meta(ge=0)] = 1.0
    delta: Annotated[float, Meta(gt=0, lt=1)] = 1e-5
    incremental = True
    noisy = True

    def encode(self, x: Tensor, draws: Draws, layout: Layout) -> tuple[Tensor, list[Tensor]]:
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        clipped = x * (self.clip / norm.clamp(min=self.clip))
        if self.sigma == 0:
            return clipped, []
        return clipped.add_(draws.normal(x.shape[1], dtype=x.dtype), alpha=self.sigma * self.clip), []

    def decode(self, x: Tensor, side: list[Tensor], length: int, draws: Draws, layout: Layout) -> Tensor:
        return x

    def sizes(self, length: int, itemsize: int, layout: Layout) -> tuple[int, list[int]]:
        return length, []
