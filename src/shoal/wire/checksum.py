"""A checksum behind each frame: damaged frames are found out."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from shoal.core import Frames, Packer, codecs

__all__ = ["Checksum"]


@codecs.register("checksum")
@dataclass(frozen=True)
class Checksum(Packer):
    """Against accidents, not against adversaries: whoever changes a frame can change its sum too.

    Args:
        kind: ``crc32`` (4 bytes; misses 1 random damage in 4e9) or ``blake2b`` (8 bytes).
    """

    kind: Literal["crc32", "blake2b"] = "crc32"
    fixed = True

    @property
    def _size(self) -> int:
        return 4 if self.kind == "crc32" else 8

    def _sums(self, data: np.ndarray, length: list[int]) -> Tensor:
        if self.kind == "crc32":
            sums = b"".join(
                zlib.crc32(row[:n]).to_bytes(4, "little") for row, n in zip(data, length, strict=True)
            )
        else:
            sums = b"".join(
                hashlib.blake2b(row[:n], digest_size=8).digest()
                for row, n in zip(data, length, strict=True)
            )
        return torch.from_numpy(np.frombuffer(bytearray(sums), np.uint8).reshape(len(data), self._size))

    def pack(self, frames: Frames) -> Frames:
        data = np.ascontiguousarray(frames.data.numpy())
        sums = self._sums(data, frames.length.tolist())
        out = torch.zeros(len(data), data.shape[1] + self._size, dtype=torch.uint8)
        out[:, : data.shape[1]] = frames.data
        out.scatter_(1, frames.length[:, None] + torch.arange(self._size), sums)
        return Frames(out, frames.length + self._size)

    def unpack(self, frames: Frames, width: int) -> tuple[Frames, Tensor]:
        held = frames.data.shape[1]
        length = frames.length - self._size
        ok = (length >= 0) & (length <= width) & (frames.length <= held)
        length = torch.where(ok, length, torch.zeros_like(length))
        if held < self._size:
            return Frames(frames.data[:, :0], length), torch.zeros_like(ok)
        data = frames.data
        sums = self._sums(np.ascontiguousarray(data.numpy()), length.tolist())
        at = length[:, None] + torch.arange(self._size)
        ok &= (data.gather(1, at) == sums).all(1)
        if bool((length == held - self._size).all()):
            return Frames(data[:, : held - self._size], length), ok
        inside = torch.arange(held) < length[:, None]
        return Frames(data * inside, length), ok

    def bound(self, width: int) -> int:
        return width + self._size
