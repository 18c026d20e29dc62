"""Log byte: one byte a float, the sign and a logarithm of the magnitude.

Source: "Just one byte (per gradient)" (arXiv 2306.10015): 16 steps an e-fold, 128 levels in all.
Deviation: the authors' code keeps the sign apart; here it is the byte's top bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.core import Draws, Layout, Stage, codecs

__all__ = ["LogByte"]

STEPS = 16
LOW = -7.0
LEVELS = 128
NOT_FINITE = 255


@codecs.register("log-byte")
@dataclass(frozen=True)
class LogByte(Stage):
    """Magnitudes rounded to exp(-7 + k/16), k = 0 ... 127, with a sign: 1 byte a float.

    From e^-7 to e^(7/8), 9e-4 to 2.4, the relative error is at most e^(1/32) - 1, about 3.2 %. Larger
    magnitudes become the largest level, smaller ones the smallest: there is no zero. The byte of the
    largest negative level says that the float was not finite.
    """

    final = True

    def encode(self, x: Tensor, draws: Draws, layout: Layout) -> tuple[Tensor, list[Tensor]]:
        level = torch.round((torch.log(x.abs().to(torch.float64)) - LOW) * STEPS)
        negative = x < 0
        most = torch.where(negative, LEVELS - 2, LEVELS - 1)
        byte = torch.minimum(level.clamp(min=0), most) + LEVELS * negative
        return x[:, :0], [torch.where(torch.isfinite(x), byte, NOT_FINITE).to(torch.uint8)]

    def decode(self, x: Tensor, side: list[Tensor], length: int, draws: Draws, layout: Layout) -> Tensor:
        byte = side[0].to(torch.int64)
        size = torch.exp(LOW + (byte % LEVELS).to(torch.float64) / STEPS)
        value = torch.where(byte >= LEVELS, -size, size)
        return value.masked_fill(byte == NOT_FINITE, torch.nan).to(x.dtype)

    def sizes(self, length: int, itemsize: int, layout: Layout) -> tuple[int, list[int]]:
        return 0, [length]
