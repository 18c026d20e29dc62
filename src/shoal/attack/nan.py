"""Messages that are not numbers: what every receiver must refuse."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.core import Scene, attacks

from .base import Crafted

__all__ = ["Nan"]


@attacks.register("nan")
@dataclass(frozen=True)
class Nan(Crafted):
    """Sends NaN in every coordinate. One that got through would end the run of all."""

    def craft(self, own: Tensor, base: Tensor, scene: Scene, who: Tensor) -> Tensor:
        return torch.full_like(own, math.nan)
