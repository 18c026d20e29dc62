"""Signs: one bit an entry, and one size for all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.core import Draws, Layout, Stage, codecs

from .bits import floats, pack, packed_size, spread, unpack
from .topk import spans

__all__ = ["Sign"]


@codecs.register("sign")
@dataclass(frozen=True)
class Sign(Stage):
    """sign(x) mean|x|: ceil(L / 8) bytes, and 4 for each size. 0 counts as positive.

    A contraction: |C(x) - x|^2 = (1 - |x|_1^2 / (L |x|_2^2)) |x|_2^2 where no entry is 0.

    Source: Karimireddy et al., "Error feedback fixes SignSGD" (ICML 2019).

    Args:
        per_layer: one size for each layer of the message, instead of one in all.
    """

    per_layer: bool = False
    final = True
    incremental = True

    def encode(self, x: Tensor, draws: Draws, layout: Layout) -> tuple[Tensor, list[Tensor]]:
        size = torch.stack([x[:, s].abs().mean(1) for s in spans(x.shape[1], layout, self.per_layer)], 1)
        return x[:, :0], [size.to(torch.float32).view(torch.uint8), pack(x >= 0, 1)]

    def decode(self, x: Tensor, side: list[Tensor], length: int, draws: Draws, layout: Layout) -> Tensor:
        size = floats(side[0], torch.float32).to(x.dtype)
        size = torch.where(size >= 0, size, torch.nan)
        bit = unpack(side[1], length, 1).to(x.dtype)
        return bit.mul_(2).sub_(1).mul_(spread(size, spans(length, layout, self.per_layer)))

    def sizes(self, length: int, itemsize: int, layout: Layout) -> tuple[int, list[int]]:
        return 0, [4 * len(spans(length, layout, self.per_layer)), packed_size(length, 1)]
