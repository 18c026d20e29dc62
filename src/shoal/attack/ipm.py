"""Inner product manipulation: point the aggregate away from the honest mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta
from torch import Tensor

from shoal.core import Scene, attacks

from .base import Informed

__all__ = ["Ipm"]


@attacks.register("ipm")
@dataclass(frozen=True)
class Ipm(Informed):
    """Sends base - epsilon * mean of the honest updates (x - base).

    A small epsilon passes for one of the crowd and turns the result around where f is large; a large
    one (10) outweighs everybody under averaging.

    Args:
        epsilon: length, in mean honest updates (0.1; 0.5 and 10 are used too).

    Source: Xie, Koyejo, Gupta, "Fall of empires: breaking Byzantine-tolerant SGD by inner product
    manipulation" (UAI 2019), arXiv 1903.03936, section 4.
    """

    epsilon: Annotated[float, Meta(gt=0)] = 0.1

    def craft(self, own: Tensor, base: Tensor, scene: Scene, who: Tensor) -> Tensor | None:
        if self.knowledge == "self":
            return base - self.epsilon * (own - base)
        known = self.informants(scene)
        if not len(known):
            return None
        return base - self.epsilon * (scene.honest[known] - scene.base[known]).mean(0)
