"""Gaussian noise, on top of the honest message or instead of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta
from torch import Tensor

from shoal.core import Scene, attacks

from .base import Crafted

__all__ = ["Noise", "Random"]


@attacks.register("noise")
@dataclass(frozen=True)
class Noise(Crafted):
    """Sends x + N(0, sigma^2 I), or, ``alone``, base + N(0, sigma^2 I): each peer its own.

    Args:
        sigma: standard deviation of each coordinate, in units of the messages.
        alone: leave the honest update out.

    Source: Blanchard et al. (NeurIPS 2017), arXiv 1703.02757, section 6 (there sigma = 200, alone).
    """

    sigma: Annotated[float, Meta(gt=0)] = 1.0
    alone: bool = False

    def craft(self, own: Tensor, base: Tensor, scene: Scene, who: Tensor) -> Tensor:
        noise = self.draws(scene, who).normal(own.shape[1], dtype=own.dtype)
        return (base if self.alone else own) + self.sigma * noise


@attacks.register("random")
@dataclass(frozen=True)
class Random(Noise):
    """``noise`` alone: base + N(0, sigma^2 I), nothing of what was learned."""

    alone: bool = True
