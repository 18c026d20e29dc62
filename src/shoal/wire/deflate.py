"""Deflate (zlib) on each frame."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import Frames, Packer, codecs

from .bits import byte_rows, join

__all__ = ["Deflate"]


@codecs.register("deflate")
@dataclass(frozen=True)
class Deflate(Packer):
    """RFC 1951 without a header; a frame never unpacks to more than what was to be expected.

    Args:
        level: 1 (fast) to 9 (small).
    """

    level: Annotated[int, Meta(ge=1, le=9)] = 1

    def pack(self, frames: Frames) -> Frames:
        return join([zlib.compress(row, self.level, -15) for row in byte_rows(frames)])

    def unpack(self, frames: Frames, width: int) -> tuple[Frames, Tensor]:
        rows, ok = [], frames.length <= min(self.bound(width), frames.data.shape[1])
        for i, row in enumerate(byte_rows(frames)):
            inflater = zlib.decompressobj(-15)
            try:
                text = inflater.decompress(row, width + 1)
            except zlib.error:
                text = b""
            sound = inflater.eof and not inflater.unused_data and len(text) <= width
            ok[i] = bool(ok[i]) and sound
            rows.append(text if sound else b"")
        return join(rows), ok.to(torch.bool)

    def bound(self, width: int) -> int:
        # zlib's own compressBound, for any level and window.
        return width + (width >> 12) + (width >> 14) + (width >> 25) + 13
