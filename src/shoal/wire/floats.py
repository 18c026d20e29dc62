"""Rounder floats: 4 or 2 bytes each, to the nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from shoal.core import Draws, Layout, Stage, codecs

from .bits import floats

__all__ = ["BF16", "FP16", "FP32"]


class _Cast(Stage):
    """Every float [M, L] in another format, L * itemsize bytes."""

    final = True
    format: ClassVar[torch.dtype]

    def encode(self, x: Tensor, draws: Draws, layout: Layout) -> tuple[Tensor, list[Tensor]]:
        return x[:, :0], [x.to(self.format).contiguous().view(torch.uint8)]

    def decode(self, x: Tensor, side: list[Tensor], length: int, draws: Draws, layout: Layout) -> Tensor:
        return floats(side[0], self.format).to(x.dtype)

    def sizes(self, length: int, itemsize: int, layout: Layout) -> tuple[int, list[int]]:
        return 0, [length * self.format.itemsize]


@codecs.register("fp32")
@dataclass(frozen=True)
class FP32(_Cast):
    """Single precision: for float64 runs that send float32. Beyond 3.4e38 a message is refused."""

    format = torch.float32


@codecs.register("bf16")
@dataclass(frozen=True)
class BF16(_Cast):
    """bfloat16: relative error at most 2^-8, the range of float32."""

    format = torch.bfloat16


@codecs.register("fp16")
@dataclass(frozen=True)
class FP16(_Cast):
    """Half precision: relative error at most 2^-11 from 6.1e-5 up, absolute 2^-25 below.

    Finite values beyond 65504 are sent as that.
    """

    format = torch.float16

    def encode(self, x: Tensor, draws: Draws, layout: Layout) -> tuple[Tensor, list[Tensor]]:
        top = torch.finfo(torch.float16).max
        held = torch.where(torch.isinf(x), x, x.clamp(-top, top))
        return super().encode(held, draws, layout)
