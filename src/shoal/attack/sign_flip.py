"""Sign flipping: hostile peers push the other way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta
from torch import Tensor

from shoal.core import Scene, attacks

from .base import Crafted

__all__ = ["SignFlip"]


@attacks.register("sign-flip")
@dataclass(frozen=True)
class SignFlip(Crafted):
    """Sends base - scale * (x - base): the update negated. Where no base is known, -scale * x.

    Args:
        scale: length of what is sent, in honest updates (1; 5 and 1000 are used too).

    Source: Li, Xu, Chen, Giannakis, Ling, "RSA: Byzantine-robust stochastic aggregation methods" (AAAI
    2019), arXiv 1811.03761, section 5.
    """

    scale: Annotated[float, Meta(gt=0)] = 1.0

    def craft(self, own: Tensor, base: Tensor, scene: Scene, who: Tensor) -> Tensor:
        return base - self.scale * (own - base)
