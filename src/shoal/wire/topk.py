"""Top-k: the entries of largest magnitude, and where they stand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import Draws, Layout, Stage, codecs

from .bits import bit_width, pack, packed_size, unpack

__all__ = ["TopK", "kept", "largest", "spans"]


def spans(length: int, layout: Layout, per_layer: bool = True) -> list[slice]:
    """The columns of each layer; one span of all columns where the layout does not tile them."""
    columns = [columns for _, columns, _ in layout]
    starts = [0, *(c.stop for c in columns)]
    tiles = (
        columns
        and starts[-1] == length
        and all(c.start == s for c, s in zip(columns, starts, strict=False))
    )
    return columns if per_layer and tiles else [slice(0, length)]


def kept(fraction: float, length: int) -> int:
    """How many of ``length`` entries are kept: the fraction, rounded up, at least one."""
    return min(length, max(1, math.ceil(fraction * length - 1e-9)))


def _candidates(size: np.ndarray, count: int) -> np.ndarray:
    """Places in the flattened [M, L] that hold the ``count`` largest of each row and few more: those
    not below a threshold taken from a sample of the row, or all where too few are not.
    """
    rows, length = size.shape
    if length < 4096:
        return np.arange(rows * length)
    sample = size[:, ::31]
    share = count / 31
    rank = sample.shape[1] - 1 - int(share + 4 * share**0.5 + 4)
    if rank < 0:
        return np.arange(rows * length)
    threshold = np.partition(sample, rank, axis=1)[:, rank]
    place = np.flatnonzero(size >= threshold[:, None])
    few = np.bincount(place // length, minlength=rows) < count
    if few.any():
        place = np.flatnonzero(size >= np.where(few, 0, threshold)[:, None])
    return place


def largest(x: Tensor, count: int) -> Tensor:
    """Where the ``count`` entries of largest magnitude of each row are: int64 [M, count], ascending.

    Among equals the first are taken; what is not a number counts as largest of all.
    """
    rows, length = x.shape
    if count == length:
        return torch.arange(count).expand(rows, count)
    # Without the sign, the bits of floats are integers in the order of the magnitudes.
    kind = torch.int32 if x.element_size() == 4 else torch.int64
    size = (x.contiguous().view(kind) & torch.iinfo(kind).max).numpy()
    place = _candidates(size, count)
    row, value = place // length, size.reshape(-1)[place]
    held = np.bincount(row, minlength=rows)
    start = np.cumsum(held) - held
    table = np.full((rows, held.max(initial=count)), -1, size.dtype)
    table[row, np.arange(len(place)) - start[row]] = value
    least = np.partition(table, -count, axis=1)[:, -count]
    keep = value >= least[row]
    if np.count_nonzero(keep) > rows * count:
        equal = value == least[row]
        above = np.bincount(row[keep & ~equal], minlength=rows)
        seen = np.cumsum(equal)
        rank = seen - np.concatenate([[0], seen])[start][row]
        keep &= ~equal | (rank <= (count - above)[row])
    return torch.from_numpy(place[keep] - row[keep] * length).view(rows, count)


@codecs.register("topk")
@dataclass(frozen=True)
class TopK(Stage):
    """Keeps the largest entries: bytes = ceil(k ceil(log2 L) / 8) of addresses (none at k = L), and
    k floats passed on.

    Source: Stich, Cordonnier, Jaggi, "Sparsified SGD with memory" (NeurIPS 2018).

    Args:
        fraction: share of the entries that is kept (rounded up, at least one).
        k: how many are kept instead; a shorter message keeps all.
        per_layer: choose within each layer of the message.
    """

    fraction: Annotated[float, Meta(gt=0, le=1)] = 0.01
    k: Annotated[int, Meta(ge=1)] | None = None
    per_layer: bool = False
    incremental = True

    def _plan(self, length: int, layout: Layout) -> list[tuple[slice, int, int]]:
        """(columns, how many are kept, bits of an address) of each layer."""
        plan = []
        for span in spans(length, layout, self.per_layer):
            size = span.stop - span.start
            count = min(self.k, size) if self.k is not None else kept(self.fraction, size)
            plan.append((span, count, 0 if count == size else bit_width(size)))
        return plan

    def encode(self, x: Tensor, draws: Draws, layout: Layout) -> tuple[Tensor, list[Tensor]]:
        values, side = [], []
        for span, count, width in self._plan(x.shape[1], layout):
            index = largest(x[:, span], count)
            values.append(x[:, span].gather(1, index))
            side.append(pack(index, width))
        return values[0] if len(values) == 1 else torch.cat(values, 1), side

    def decode(self, x: Tensor, side: list[Tensor], length: int, draws: Draws, layout: Layout) -> Tensor:
        out = x.new_zeros(len(x), length)
        start = 0
        for (span, count, width), part in zip(self._plan(length, layout), side, strict=True):
            size, values = span.stop - span.start, x[:, start : start + count]
            start += count
            if count == size:
                out[:, span] = values
                continue
            index = unpack(part, count, width).to(torch.int64)
            wrong = (index[:, -1] >= size) | (index[:, 1:] <= index[:, :-1]).any(1)
            if bool(wrong.any()):
                values = values.masked_fill(wrong[:, None], torch.nan)
                index = index.clamp(max=size - 1)
            out[:, span].scatter_(1, index, values)
        return out

    def sizes(self, length: int, itemsize: int, layout: Layout) -> tuple[int, list[int]]:
        plan = self._plan(length, layout)
        return sum(n for _, n, _ in plan), [packed_size(n, width) for _, n, width in plan]

    def after(self, length: int, layout: Layout) -> Layout:
        plan = self._plan(length, layout)
        if not self.per_layer or len(plan) != len(layout):
            return []
        result: Layout = []
        start = 0
        for (name, _, _), (_, count, _) in zip(layout, plan, strict=True):
            result.append((name, slice(start, start + count), (count,)))
            start += count
        return result
