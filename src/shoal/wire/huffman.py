"""Canonical Huffman codes, and a packer that applies them to the bytes of frames.

Bit streams are arrays of 0 and 1, the first bit of a code its most significant one. A code is sent
as its lengths, four bits a symbol of the alphabet. Where only one symbol occurs it takes no bits.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from shoal.core import Frames, Packer, codecs

from .bits import byte_rows, join

__all__ = ["Huffman", "Truncated", "code_lengths", "decode", "encode", "read", "read_table", "size",
           "write", "write_table"]  # fmt: skip

_LIMIT = 15
_SKIP = 4


class Truncated(ValueError):
    """A bit stream that no encoder writes."""


def code_lengths(counts: np.ndarray) -> np.ndarray:
    """The length of each symbol's code (0: does not occur), at most 15: int64 [A].

    Source: Huffman (1952). Where a code would be longer, the counts are halved until it is not.
    """
    counts = np.asarray(counts, dtype=np.int64)
    used = counts.nonzero()[0].tolist()
    lengths = np.zeros(len(counts), np.int64)
    if len(used) == 1:
        lengths[used] = 1
    if len(used) < 2:
        return lengths
    # Leaves are 0..n-1, inner nodes follow in the order of their making; each learns its parent.
    heap = [(int(counts[symbol]), leaf) for leaf, symbol in enumerate(used)]
    heapq.heapify(heap)
    parent = [0] * (2 * len(used) - 1)
    for node in range(len(used), 2 * len(used) - 1):
        one, a = heapq.heappop(heap)
        two, b = heap[0]
        parent[a] = parent[b] = node
        heapq.heapreplace(heap, (one + two, node))
    depth = [0] * len(parent)
    for node in range(len(parent) - 2, -1, -1):
        depth[node] = depth[parent[node]] + 1
    if max(depth) > _LIMIT:
        return code_lengths((counts + 1) >> 1)
    lengths[used] = depth[: len(used)]
    return lengths


def size(counts: np.ndarray, lengths: np.ndarray) -> int:
    """Bits of the symbols' codes, without the table."""
    return int(counts @ lengths) if np.count_nonzero(lengths) > 1 else 0


def _canonical(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(symbols in the order of their codes, each one's code left-aligned in 15 bits)."""
    order = np.lexsort((np.arange(len(lengths)), lengths))
    order = order[lengths[order] > 0]
    steps = 1 << (_LIMIT - lengths[order])
    return order, np.cumsum(steps) - steps


def write(values: np.ndarray, widths: np.ndarray | int) -> np.ndarray:
    """Bits of integers, each in its own width: uint8 [sum of widths]."""
    if isinstance(widths, int):
        shift = np.arange(widths - 1, -1, -1)
        return ((values[:, None] >> shift) & 1).astype(np.uint8).reshape(-1)
    ends = np.cumsum(widths)
    total = int(ends[-1]) if len(ends) else 0
    shift = np.repeat(ends, widths) - 1 - np.arange(total)
    return ((np.repeat(values, widths) >> shift) & 1).astype(np.uint8)


def read(bits: np.ndarray, start: int, count: int, widths: np.ndarray | int) -> tuple[np.ndarray, int]:
    """Inverse of :func:`write`: (int64 [count], the bit after the last)."""
    if isinstance(widths, int):
        stop = start + count * widths
        if stop > len(bits):
            raise Truncated("stream ends early")
        weights = 1 << np.arange(widths - 1, -1, -1)
        return bits[start:stop].reshape(count, widths) @ weights, stop
    ends = start + np.cumsum(widths)
    stop = int(ends[-1]) if count else start
    if stop > len(bits):
        raise Truncated("stream ends early")
    values = np.zeros(count, np.int64)
    for back in range(int(widths.max()) if count else 0):
        some = widths > back
        values[some] |= bits[ends[some] - 1 - back].astype(np.int64) << back
    return values, stop


def write_table(lengths: np.ndarray) -> np.ndarray:
    """Bits of a code: four for each symbol of the alphabet."""
    return write(lengths, 4)


def read_table(bits: np.ndarray, start: int, alphabet: int) -> tuple[np.ndarray, int]:
    """Inverse of :func:`write_table`. The code must be complete, or a single symbol of length 1.

    Raises:
        Truncated: it is not.
    """
    lengths, stop = read(bits, start, alphabet, 4)
    used = lengths[lengths > 0]
    complete = int((1 << (_LIMIT - used)).sum()) == 1 << _LIMIT
    if not complete and not (len(used) == 1 and used[0] == 1):
        raise Truncated("not a complete code")
    return lengths, stop


def encode(symbols: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Bits of the symbols' codes."""
    if np.count_nonzero(lengths) < 2:
        return np.zeros(0, np.uint8)
    order, aligned = _canonical(lengths)
    code = np.zeros(len(lengths), np.int64)
    code[order] = aligned >> (_LIMIT - lengths[order])
    return write(code[symbols], lengths[symbols])


def decode(bits: np.ndarray, start: int, count: int, lengths: np.ndarray) -> tuple[np.ndarray, int]:
    """Inverse of :func:`encode`, for a table that passed :func:`read_table`.

    Where the code at *every* bit would end is one table look-up; composing that map four times jumps
    16 codes at once. Only those long jumps are walked one by one, the codes between are filled in.

    Returns:
        (symbols int64 [count], the bit after the last).

    Raises:
        Truncated: the stream ends early.
    """
    order, _ = _canonical(lengths)
    if len(order) < 2 or count == 0:
        if count and not len(order):
            raise Truncated("symbols without a code")
        return np.full(count, order[0] if len(order) else 0, np.int64), start
    longest = int(lengths.max())
    here = bits[start : start + count * longest]
    total = len(here)
    window = np.zeros(total + _LIMIT + 1, np.int64)
    window[:total] = here
    filled = 1
    while filled < longest:  # the next `filled` bits at each place, doubled
        window[:-filled] = (window[:-filled] << filled) | window[filled:]
        filled *= 2
    window = window[:total] >> (filled - longest)
    table = np.repeat(order, 1 << (longest - lengths[order]))
    symbol = table[window]
    step = np.arange(total + 1)
    step[:-1] += lengths[symbol]
    np.minimum(step, total + 1, out=step)
    step = np.append(step, total + 1)  # total: ended exactly; total + 1: ended within a code
    step[total] = total + 1
    jumps = [step]
    for _ in range(_SKIP):
        jumps.append(jumps[-1][jumps[-1]])
    far, at, anchors = jumps.pop(), 0, []
    for _ in range(-(-count >> _SKIP)):
        anchors.append(at)
        at = int(far[at])
    place = np.array(anchors)
    for jump in reversed(jumps):
        place = np.stack([place, jump[place]], 1).reshape(-1)
    place = place[:count]
    end = int(step[place[-1]])
    if place[-1] >= total or end > total:
        raise Truncated("stream ends early")
    return symbol[place], start + end


@codecs.register("huffman")
@dataclass(frozen=True)
class Huffman(Packer):
    """Each frame's bytes in a Huffman code of their own: a byte 1, the length in 4 bytes, the table in
    128, the codes. A frame that this would not shorten follows a byte 0 as it is.
    """

    def pack(self, frames: Frames) -> Frames:
        return join([self._pack(row) for row in byte_rows(frames)])

    def _pack(self, row: bytes) -> bytes:
        text = np.frombuffer(row, np.uint8)
        counts = np.bincount(text, minlength=256)
        lengths = code_lengths(counts)
        if 133 + (size(counts, lengths) + 7) // 8 >= 1 + len(row):
            return b"\0" + row
        bits = np.concatenate([write_table(lengths), encode(text, lengths)])
        return b"\1" + len(row).to_bytes(4, "little") + np.packbits(bits).tobytes()

    def unpack(self, frames: Frames, width: int) -> tuple[Frames, Tensor]:
        rows, ok = [], frames.length <= frames.data.shape[1]
        for i, row in enumerate(byte_rows(frames)):
            try:
                rows.append(self._unpack(row, width))
            except Truncated:
                rows.append(b"")
                ok[i] = False
        return join(rows), ok

    def _unpack(self, row: bytes, width: int) -> bytes:
        if row[:1] == b"\0" and len(row) <= width + 1:
            return row[1:]
        count = int.from_bytes(row[1:5], "little")
        if row[:1] != b"\1" or count > width:
            raise Truncated("no such form, or too long")
        bits = np.unpackbits(np.frombuffer(row[5:], np.uint8))
        lengths, start = read_table(bits, 0, 256)
        symbols, stop = decode(bits, start, count, lengths)
        if len(bits) - stop >= 8 or bits[stop:].any():
            raise Truncated("bytes left over")
        return symbols.astype(np.uint8).tobytes()

    def bound(self, width: int) -> int:
        return width + 1
