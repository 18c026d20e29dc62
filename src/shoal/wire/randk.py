"""Random-k: a random subset of the entries, which both ends draw from the same seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import Draws, Layout, Stage, codecs

from .topk import kept

__all__ = ["RandK", "subset"]

_ROUNDS = 4


def subset(draws: Draws, length: int, count: int) -> Tensor:
    """``count`` different numbers of 0..length-1 for each peer: int64 [M, count].

    The first ``count`` values of a keyed Feistel permutation (walked until inside the range; Black
    and Rogaway 2002) turned by a uniform shift: O(count) where shuffling is O(length log length).
    The shift alone makes every number equally likely, whatever the permutation.
    """
    bits = max(2, (length - 1).bit_length())
    low = bits // 2
    keys = draws.words(_ROUNDS + 1)

    def shuffle(value: Tensor, key: Tensor) -> Tensor:
        # The halves may differ by a bit: they swap widths in each round, and are back after the last.
        mine, other = bits - low, low
        left, right = value >> other, value & ((1 << other) - 1)
        for r in range(_ROUNDS):
            mixed = ((right + key[..., r]) * 0x9E3779B1) & 0xFFFFFFFF
            mixed = ((mixed ^ (mixed >> 15)) * 0x85EBCA77) & 0xFFFFFFFF
            left, right = right, left ^ (mixed >> (32 - mine))
            mine, other = other, mine
        return (left << low) | right

    out = shuffle(torch.arange(count), keys[:, None]).view(-1)
    outside = (out >= length).nonzero()[:, 0]
    while len(outside):
        moved = shuffle(out[outside], keys[outside // count])
        out[outside] = moved
        outside = outside[moved >= length]
    shift = (keys[:, -1:] * length) >> 32
    return (out.view(len(keys), count) + shift) % length


@codecs.register("randk")
@dataclass(frozen=True)
class RandK(Stage):
    """Keeps a random subset: k floats passed on and no bytes besides.

    With ``scale`` the kept entries are multiplied by L / k: unbiased, E|C(x) - x|^2 = (L/k - 1)|x|^2.
    Without it a contraction, E|C(x) - x|^2 = (1 - k/L)|x|^2, which is what error feedback and public
    replicas need: scaled messages make those diverge as soon as L > 2k.

    Source: Stich, Cordonnier, Jaggi, "Sparsified SGD with memory" (NeurIPS 2018).

    Args:
        fraction: share of the entries that is kept (rounded up, at least one).
        scale: multiply by L / k.
    """

    fraction: Annotated[float, Meta(gt=0, le=1)] = 0.01
    scale: bool = False
    incremental = True

    def encode(self, x: Tensor, draws: Draws, layout: Layout) -> tuple[Tensor, list[Tensor]]:
        length = x.shape[1]
        count = kept(self.fraction, length)
        if count == length:
            return x, []
        values = x.gather(1, subset(draws, length, count))
        return (values * (length / count) if self.scale else values), []

    def decode(self, x: Tensor, side: list[Tensor], length: int, draws: Draws, layout: Layout) -> Tensor:
        count = kept(self.fraction, length)
        if count == length:
            return x
        return x.new_zeros(len(x), length).scatter_(1, subset(draws, length, count), x)

    def sizes(self, length: int, itemsize: int, layout: Layout) -> tuple[int, list[int]]:
        return kept(self.fraction, length), []
