"""The wire's contract: messages as real bytes.

A chain of stages turns messages [M, D] into rows of bytes and back. A stage either passes floats on
(fewer, rounder, noisier) and puts what the receiver needs besides into ``side``, or consumes them
all. What floats are left at the end travel as they are, or through one coder whose messages differ
in length; packers then transform whole frames. The receiver knows the configuration, so nothing that
follows from it (shapes, seeds) is sent.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .part import Part, Registry
from .random import Draws

__all__ = ["Coder", "Frames", "Layout", "Link", "Packer", "Stage", "codecs"]

Layout = list[tuple[str, slice, tuple[int, ...]]]
"""Named slices of a message: (name, columns, shape)."""


@dataclass(frozen=True)
class Frames:
    """M encoded messages.

    Args:
        data: uint8 [M, B]; a row's bytes beyond its length are 0.
        length: int64 [M].
    """

    data: Tensor
    length: Tensor


class Link(Part):
    """Anything that can stand in the wire pipeline: a :class:`Stage`, :class:`Coder` or :class:`Packer`."""

    incremental: ClassVar[bool] = False
    """True where most of a message is dropped (sparsifiers, signs) or bounded by clipping: such a
    stage is given differences, against a public replica or a known base, never whole models."""
    noisy: ClassVar[bool] = False
    """True for privacy mechanisms: their releases are counted for the accountant."""


class Stage(Link):
    """One step of the wire pipeline, floats in, batched over messages.

    ``draws`` are the senders' counter-based numbers (leading axis M): sender and receiver can both
    regenerate what they yield, so seeded choices cost no bytes.
    """

    final: ClassVar[bool] = False
    """True where it consumes all floats (L' = 0): no stage can follow."""

    @abstractmethod
    def encode(self, x: Tensor, draws: Draws, layout: Layout) -> tuple[Tensor, list[Tensor]]:
        """Floats [M, L] -> (floats [M, L'], side bytes: list of uint8 [M, b])."""

    @abstractmethod
    def decode(self, x: Tensor, side: list[Tensor], length: int, draws: Draws, layout: Layout) -> Tensor:
        """Inverse: floats [M, L'] and the side bytes -> floats [M, length].

        Side bytes come from another peer: out-of-range values must give NaN in that message (which
        the exchange then refuses), never an exception or an access out of bounds.
        """

    @abstractmethod
    def sizes(self, length: int, itemsize: int, layout: Layout) -> tuple[int, list[int]]:
        """(L', widths b of the side bytes) for messages of ``length`` floats of ``itemsize`` bytes."""

    def after(self, length: int, layout: Layout) -> Layout:
        """The layout of the floats passed on: the same where they are as many, else none."""
        return layout if self.sizes(length, 4, layout)[0] == length else []


class Coder(Link):
    """Floats straight to frames of differing length (entropy coding that needs to see the values).

    At most one in a pipeline, behind the stages: it consumes the floats that they leave.
    """

    @abstractmethod
    def encode(self, x: Tensor, draws: Draws, layout: Layout) -> Frames:
        """Floats [M, L] -> frames."""

    @abstractmethod
    def decode(
        self, frames: Frames, length: int, dtype: torch.dtype, draws: Draws, layout: Layout
    ) -> tuple[Tensor, Tensor]:
        """Floats [M, length] and bool [M]: False for streams that are no encoding (never an exception)."""

    @abstractmethod
    def bound(self, length: int, layout: Layout) -> int:
        """The most bytes that a message of ``length`` floats can take."""


class Packer(Link):
    """A step behind the stages that turns whole frames of bytes into others, lossless."""

    fixed: ClassVar[bool] = False
    """True where every frame of w bytes becomes one of exactly ``bound(w)`` bytes."""

    @abstractmethod
    def pack(self, frames: Frames) -> Frames:
        """Shorter (entropy coding) or longer (checksum, encryption) frames."""

    @abstractmethod
    def unpack(self, frames: Frames, width: int) -> tuple[Frames, Tensor]:
        """What :meth:`pack` was given, each row at most ``width`` bytes (the decompression bound),
        and bool [M]: False for frames that are damaged."""

    @abstractmethod
    def bound(self, width: int) -> int:
        """The most bytes that a frame of at most ``width`` bytes becomes."""


codecs: Registry[Link] = Registry("codec", "shoal.wire", Link)
