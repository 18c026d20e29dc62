"""Quantisers: integers relative to the size of a block (int8, int4, QSGD, ternary)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from msgspec import Meta
from torch import Tensor
from torch.nn.functional import pad

from shoal.core import Draws, Layout, Stage, codecs

from .bits import bit_width, floats, pack, pack_trits, packed_size, unpack, unpack_trits

__all__ = ["QSGD", "Int4", "Int8", "Quantiser", "Ternary", "round_randomly"]

_TINY = 1e-35


def round_randomly(x: Tensor, draws: Draws) -> Tensor:
    """[M, L] to integers (as floats), up with a chance of the fraction: unbiased.

    The chance is the nearest multiple of 2^-16: one random word serves two entries.
    """
    length = x.shape[1]
    words = draws.words((length + 1) // 2)
    chance = torch.cat([words & 0xFFFF, words >> 16], 1)[:, :length].to(x.dtype)
    below = x.floor()
    return below + ((x - below) * 65536 > chance + 0.5)


class Quantiser(Stage):
    """Each block of entries as one float32 size s and integers in [-levels, levels]:
    x ~ s * integer / levels. Blocks smaller than 1e-35 are sent as 0.
    """

    final = True
    two_norm: ClassVar[bool] = False
    """Whether the size is the block's Euclidean norm; else its largest magnitude."""

    @abstractmethod
    def shape(self) -> tuple[int, int, bool]:
        """(levels, entries of a block or 0 for all, whether to round randomly)."""

    def _blocks(self, length: int) -> tuple[int, int]:
        """(blocks, entries of a block)."""
        size = min(self.shape()[1] or length, length)
        return -(-length // max(1, size)), max(1, size)

    def encode(self, x: Tensor, draws: Draws, layout: Layout) -> tuple[Tensor, list[Tensor]]:
        rows, length = x.shape
        levels, _, random = self.shape()
        blocks, size = self._blocks(length)
        whole = x if blocks * size == length else pad(x, (0, blocks * size - length))
        whole = whole.view(rows, blocks, size)
        norm = torch.linalg.vector_norm(whole, 2 if self.two_norm else torch.inf, dim=2)
        norm = norm.to(torch.float32).masked_fill(norm < _TINY, 0)
        factor = (levels / norm.to(x.dtype)).masked_fill(norm == 0, 0)
        scaled = (whole * factor[..., None]).view(rows, blocks * size)[:, :length]
        integer = round_randomly(scaled, draws) if random else scaled.round()
        # Rounding of the size to float32 can carry an entry just over the top.
        return x[:, :0], [norm.view(torch.uint8), self.pack(integer.clamp_(-levels, levels))]

    def decode(self, x: Tensor, side: list[Tensor], length: int, draws: Draws, layout: Layout) -> Tensor:
        rows = len(x)
        blocks, size = self._blocks(length)
        norm = floats(side[0], torch.float32).to(x.dtype)
        integer, valid = self.unpack(side[1], length)
        unit = torch.where(valid[:, None] & (norm >= 0), norm / self.shape()[0], torch.nan)
        value = integer.to(x.dtype)
        if blocks * size != length:
            value = pad(value, (0, blocks * size - length))
        value = value.view(rows, blocks, size).mul_(unit[..., None])
        return value.view(rows, blocks * size)[:, :length]

    def sizes(self, length: int, itemsize: int, layout: Layout) -> tuple[int, list[int]]:
        return 0, [4 * self._blocks(length)[0], self.packed(length)]

    def width(self) -> int:
        """Bits of an integer."""
        return bit_width(2 * self.shape()[0] + 1)

    def pack(self, integer: Tensor) -> Tensor:
        """Whole numbers in [-levels, levels] as bytes."""
        return pack((integer + self.shape()[0]).to(torch.int32), self.width())

    def unpack(self, data: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The integers [M, length], and bool [M]: all within the levels."""
        levels = self.shape()[0]
        integer = unpack(data, length, self.width()) - levels
        return integer, (integer <= levels).all(1)

    def packed(self, length: int) -> int:
        """Bytes of ``length`` integers."""
        return packed_size(length, self.width())


@codecs.register("int8")
@dataclass(frozen=True)
class Int8(Quantiser):
    """A byte an entry and 4 bytes a block; error at most max|block| / 254 (twice that if random).

    Source: Dettmers et al., "8-bit optimizers via block-wise quantization" (ICLR 2022), linear code.

    Args:
        block: entries that share one size.
        stochastic: round randomly, which is unbiased.
    """

    block: Annotated[int, Meta(ge=1)] = 256
    stochastic: bool = False

    def shape(self) -> tuple[int, int, bool]:
        return 127, self.block, self.stochastic

    def pack(self, integer: Tensor) -> Tensor:
        return integer.to(torch.int8).view(torch.uint8)

    def unpack(self, data: Tensor, length: int) -> tuple[Tensor, Tensor]:
        integer = data.view(torch.int8)
        return integer, integer.amin(1) > -128 if length else torch.ones(len(data), dtype=torch.bool)


@codecs.register("int4")
@dataclass(frozen=True)
class Int4(Quantiser):
    """Half a byte an entry and 4 bytes a block; error at most max|block| / 14 (twice that if random).

    Args:
        block: entries that share one size.
        stochastic: round randomly, which is unbiased.
    """

    block: Annotated[int, Meta(ge=1)] = 64
    stochastic: bool = False

    def shape(self) -> tuple[int, int, bool]:
        return 7, self.block, self.stochastic


@codecs.register("qsgd")
@dataclass(frozen=True)
class QSGD(Quantiser):
    """Random levels of the Euclidean norm: unbiased, E|Q(x) - x|^2 <= min(d/s^2, sqrt(d)/s) |x|^2 for
    s levels and blocks of d. ceil(log2(2s + 1)) bits an entry and 4 bytes a block.

    Source: Alistarh et al., "QSGD" (NeurIPS 2017). Deviation: integers of one width instead of Elias
    codes; an entropy packer behind it gains the rest.

    Args:
        levels: s.
        block: entries that share one norm; 0 for the whole message.
    """

    levels: Annotated[int, Meta(ge=1, le=32767)] = 127
    block: Annotated[int, Meta(ge=0)] = 0
    two_norm = True

    def shape(self) -> tuple[int, int, bool]:
        return self.levels, self.block, True


@codecs.register("ternary")
@dataclass(frozen=True)
class Ternary(Quantiser):
    """-s, 0 or s with s = max|block|: unbiased; 1.6 bits an entry (five to a byte), 4 bytes a block.

    Source: Wen et al., "TernGrad" (NeurIPS 2017).

    Args:
        block: entries that share one size; 0 for the whole message.
    """

    block: Annotated[int, Meta(ge=0)] = 0

    def shape(self) -> tuple[int, int, bool]:
        return 1, self.block, True

    def pack(self, integer: Tensor) -> Tensor:
        return pack_trits(integer + 1)

    def unpack(self, data: Tensor, length: int) -> tuple[Tensor, Tensor]:
        digits, valid = unpack_trits(data, length)
        return digits - 1, valid

    def packed(self, length: int) -> int:
        return -(-length // 5)
