"""What all image sets share: pooling, flattening, scaling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor
from torch.nn.functional import avg_pool2d

from shoal.core import BadInput

from .base import Source

__all__ = ["Images"]


@dataclass(frozen=True)
class Images(Source):
    """Grey images with values in [0, 1], shape [1, H, W].

    Args:
        pool: side of the squares whose mean becomes one pixel (2: 28 x 28 becomes 14 x 14).
        standardize: bring the training pixels to mean 0 and deviation 1 (one figure for all pixels).
        flat: features as one row, [H W].
    """

    pool: Annotated[int, Meta(ge=1)] = 1
    standardize: bool = False
    flat: bool = False

    def shape(self, pixels: Tensor, top: float) -> Tensor:
        """Raw pixels [N, H, W] in 0..top as float32 features.

        Raises:
            BadInput: ``pool`` does not divide the side.
        """
        height, width = pixels.shape[1:]
        if height % self.pool or width % self.pool:
            raise BadInput("data.pool", self.pool, f"a divisor of {height} and {width}")
        x = pixels[:, None].to(torch.float32) / top
        if self.pool > 1:
            x = avg_pool2d(x, self.pool)
        return x.flatten(1) if self.flat else x
