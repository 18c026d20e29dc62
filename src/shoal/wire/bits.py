"""Bytes and bits, batched over messages: fixed-width integers, trits, floats, rows of any length.

Integers are little-endian, bit by bit: value i of width w takes the bits i*w ... i*w + w - 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from shoal.core import Frames

__all__ = [
    "bit_width", "byte_rows", "floats", "join", "pack", "pack_trits", "packed_size", "spread",
    "unpack", "unpack_trits",
]  # fmt: skip


def bit_width(count: int) -> int:
    """Bits that tell ``count`` things apart: ceil(log2 count)."""
    return max(0, count - 1).bit_length()


def packed_size(count: int, width: int) -> int:
    """Bytes of ``count`` integers of ``width`` bits."""
    return -(-count * width // 8)


def pack(values: Tensor, width: int) -> Tensor:
    """Integers in [0, 2^width), [M, n] -> uint8 [M, ceil(n width / 8)]; width up to 32."""
    rows, count = values.shape
    size = packed_size(count, width)
    if width == 0 or count == 0:
        return torch.zeros(rows, size, dtype=torch.uint8)
    if width == 1:
        return torch.from_numpy(np.packbits(values.numpy().astype(bool), axis=1, bitorder="little"))
    # The pattern of values over bytes repeats every `group` values: one pass per value and byte of it.
    group, span = 8 // math.gcd(width, 8), width // math.gcd(width, 8)
    groups = -(-count // group)
    wide = values if values.dtype == torch.int64 else values.to(torch.int32)
    wide = pad(wide, (0, groups * group - count)).view(rows, groups, group)
    out = torch.zeros(rows, groups, span, dtype=torch.uint8)
    for i in range(group):
        first = i * width
        for byte in range(first // 8, (first + width - 1) // 8 + 1):
            shift = 8 * byte - first
            part = wide[..., i] >> shift if shift >= 0 else wide[..., i] << -shift
            out[..., byte] |= (part & 255).to(torch.uint8)
    return out.view(rows, groups * span)[:, :size]


def unpack(data: Tensor, count: int, width: int) -> Tensor:
    """Inverse of :func:`pack`: uint8 [M, b] -> integers [M, count], int32 (int64 from 32 bits up)."""
    rows = len(data)
    kind = torch.int64 if width > 31 else torch.int32
    if width == 0 or count == 0:
        return torch.zeros(rows, count, dtype=kind)
    if width == 1:
        bits = np.unpackbits(data.numpy(), axis=1, count=count, bitorder="little")
        return torch.from_numpy(bits).to(kind)
    group, span = 8 // math.gcd(width, 8), width // math.gcd(width, 8)
    groups = -(-count // group)
    wide = pad(data, (0, groups * span - data.shape[1])).view(rows, groups, span).to(kind)
    out = torch.zeros(rows, groups, group, dtype=kind)
    for i in range(group):
        first = i * width
        for byte in range(first // 8, (first + width - 1) // 8 + 1):
            shift = 8 * byte - first
            part = wide[..., byte] << shift if shift >= 0 else wide[..., byte] >> -shift
            out[..., i] |= part
    return (out & ((1 << width) - 1)).view(rows, groups * group)[:, :count]


_TRITS = torch.tensor([1, 3, 9, 27, 81], dtype=torch.uint8)
_DIGITS = (torch.arange(243)[:, None] // _TRITS.to(torch.int64)) % 3


def pack_trits(values: Tensor) -> Tensor:
    """Digits 0, 1, 2, [M, n] -> uint8 [M, ceil(n / 5)]: five to a byte, in base 3."""
    rows, count = values.shape
    groups = -(-count // 5)
    digits = pad(values.to(torch.uint8), (0, groups * 5 - count)).view(rows, groups, 5)
    return (digits * _TRITS).sum(2, dtype=torch.uint8)


def unpack_trits(data: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Inverse of :func:`pack_trits`: digits [M, count] int64, and bool [M]: all bytes below 243."""
    index = data.to(torch.int64)
    valid = (index < 243).all(1)
    return _DIGITS[index.clamp(max=242)].reshape(len(data), -1)[:, :count], valid


def floats(data: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes [M, b] read as numbers [M, b / itemsize]; without a copy where they are aligned."""
    size = dtype.itemsize
    if data.shape[1] == 0:
        return torch.empty(len(data), 0, dtype=dtype)
    aligned = data.stride(1) == 1 and data.stride(0) % size == 0 and data.storage_offset() % size == 0
    if not aligned:
        data = torch.empty(data.shape, dtype=torch.uint8).copy_(data)
    return data.view(dtype)


def spread(values: Tensor, spans: Sequence[slice]) -> Tensor:
    """One value per span, [M, S] -> one per coordinate, [M, L]."""
    if values.shape[1] == 1:
        return values
    return values.repeat_interleave(torch.tensor([s.stop - s.start for s in spans]), dim=1)


def byte_rows(frames: Frames) -> list[bytes]:
    """The M frames as byte strings. A length beyond the data is cut there, a negative one is 0."""
    width = frames.data.shape[1]
    data = np.ascontiguousarray(frames.data.numpy())
    sizes = frames.length.clamp(0, width).tolist()
    return [row[:size].tobytes() for row, size in zip(data, sizes, strict=True)]


def join(rows: Sequence[bytes]) -> Frames:
    """Byte strings as frames, padded with 0 to the longest."""
    length = torch.tensor([len(r) for r in rows], dtype=torch.int64)
    width = int(length.max()) if len(rows) else 0
    text = b"".join(row.ljust(width, b"\0") for row in rows)
    data = np.frombuffer(bytearray(text), np.uint8).reshape(len(rows), width)
    return Frames(torch.from_numpy(data), length)
