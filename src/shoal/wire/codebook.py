"""Codebooks: each layer's entries as symbols of a few centroids (1-D k-means)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import Draws, Layout, Stage, codecs

from .bits import bit_width, floats, pack, packed_size, unpack
from .topk import spans

__all__ = ["Codebook", "cluster", "lloyd", "plus_plus"]

_ITERATIONS = 300


def plus_plus(values: Tensor, count: int, draws: Draws) -> Tensor:
    """k-means++ seeds (Arthur and Vassilvitskii 2007) among float64 values [M, n]: [M, count].

    Each next seed is a value, with a chance in proportion to its squared distance from the nearest
    seed; a value that is a seed already comes again only when no others are left.
    """
    u = draws.uniform(count)
    at = (u[:, :1] * values.shape[1]).to(torch.int64)
    seeds = [values.gather(1, at)]
    distance = (values - seeds[0]).square()
    for i in range(1, count):
        total = distance.cumsum(1)
        at = torch.searchsorted(total, u[:, i : i + 1] * total[:, -1:], right=True)
        seeds.append(values.gather(1, at.clamp(max=values.shape[1] - 1)))
        distance = torch.minimum(distance, (values - seeds[-1]).square())
    return torch.cat(seeds, 1)


def lloyd(values: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm in one dimension, to its fixed point.

    On sorted values a cluster is an interval, so one iteration is k look-ups in prefix sums. A cluster
    that falls empty keeps its centroid.

    Args:
        values: float64 [M, n], ascending in each row.
        seeds: float64 [M, k].

    Returns:
        (centroids [M, k] ascending, edges int64 [M, k + 1]: cluster j holds values edges[j] up to
        edges[j + 1]).
    """
    rows, n = values.shape
    centre = seeds.sort(1).values
    prefix = torch.cat([values.new_zeros(rows, 1), values.cumsum(1)], 1)
    ends = torch.zeros(rows, 1, dtype=torch.int64), torch.full((rows, 1), n)

    def divide(centre: Tensor) -> Tensor:
        middle = ((centre[:, 1:] + centre[:, :-1]) / 2).contiguous()
        return torch.cat([ends[0], torch.searchsorted(values, middle, right=True), ends[1]], 1)

    edges = divide(centre)
    for _ in range(_ITERATIONS):
        held = edges.diff(dim=1)
        sums = prefix.gather(1, edges).diff(dim=1)
        # The first value of a cluster of equal ones is its mean without any rounding.
        first = values.gather(1, edges[:, :-1].clamp(max=n - 1))
        last = values.gather(1, (edges[:, 1:] - 1).clamp(min=0))
        mean = torch.where(first == last, first, sums / held.clamp(min=1))
        centre = torch.where(held > 0, mean, centre)
        old, edges = edges, divide(centre)
        if torch.equal(old, edges):
            break
    return centre, edges


def cluster(values: Tensor, count: int, draws: Draws) -> tuple[Tensor, Tensor]:
    """Values [M, n] as symbols of ``count`` centroids: (float32 [M, count] ascending, int64 [M, n]).

    A row that is not finite gets centroids that are not numbers.
    """
    finite = torch.isfinite(values).all(1, keepdim=True)
    ordered, order = torch.where(finite, values, 0).to(torch.float64).sort(1)
    centre, edges = lloyd(ordered, plus_plus(ordered, count, draws))
    position = torch.arange(values.shape[1]).expand(len(values), -1).contiguous()
    ranked = torch.searchsorted(edges[:, 1:-1].contiguous(), position, right=True)
    symbols = torch.empty_like(ranked).scatter_(1, order, ranked)
    return centre.masked_fill(~finite, torch.nan).to(torch.float32), symbols


@codecs.register("codebook")
@dataclass(frozen=True)
class Codebook(Stage):
    """One codebook a layer: 4 k bytes of centroids (k at most the layer's size) and symbols of
    ceil(log2 k) bits. Lossless where a layer has at most k different values in float32.

    Source: Han, Mao, Dally, "Deep compression" (ICLR 2016).

    Args:
        clusters: k.
        per_layer: one codebook for each layer of the message, instead of one in all.
    """

    clusters: Annotated[int, Meta(ge=1, le=255)] = 3
    per_layer: bool = True
    final = True

    def encode(self, x: Tensor, draws: Draws, layout: Layout) -> tuple[Tensor, list[Tensor]]:
        side = []
        for i, span in enumerate(spans(x.shape[1], layout, self.per_layer)):
            count = min(self.clusters, span.stop - span.start)
            centre, symbols = cluster(x[:, span], count, draws.at(f"{i}"))
            side += [centre.view(torch.uint8), pack(symbols, bit_width(count))]
        return x[:, :0], side

    def decode(self, x: Tensor, side: list[Tensor], length: int, draws: Draws, layout: Layout) -> Tensor:
        out = x.new_empty(len(x), length)
        for i, span in enumerate(spans(length, layout, self.per_layer)):
            centre = floats(side[2 * i], torch.float32).to(x.dtype)
            size = span.stop - span.start
            count = centre.shape[1]
            symbols = unpack(side[2 * i + 1], size, bit_width(count)).to(torch.int64)
            wrong = (symbols >= count).any(1, keepdim=True)
            values = centre.gather(1, symbols.clamp(max=count - 1))
            out[:, span] = values.masked_fill(wrong, torch.nan)
        return out

    def sizes(self, length: int, itemsize: int, layout: Layout) -> tuple[int, list[int]]:
        widths = []
        for span in spans(length, layout, self.per_layer):
            size = span.stop - span.start
            count = min(self.clusters, size)
            widths += [4 * count, packed_size(size, bit_width(count))]
        return 0, widths
