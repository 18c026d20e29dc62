"""Which rows of the shared data each peer's next batch holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.core import Draws

__all__ = ["Shards"]


@dataclass(frozen=True)
class Shards:
    """Row numbers of P peers, end to end.

    Args:
        rows: int64 [N], all peers' row numbers.
        start: int64 [P], where each peer's begin.
        size: int64 [P], how many each holds.
    """

    rows: Tensor
    start: Tensor
    size: Tensor

    @staticmethod
    def of(lists: list[Tensor]) -> Shards:
        """From one list of row numbers per peer."""
        size = torch.tensor([len(v) for v in lists])
        return Shards(torch.cat(lists), torch.cumsum(size, 0) - size, size)

    def sample(self, local: Tensor) -> Tensor:
        """Row numbers of the positions ``local`` [P, ...] in each peer's own list (empty list: 0)."""
        at = self.start.reshape(-1, *[1] * (local.ndim - 1)) + local
        return self.rows[at.clamp(max=len(self.rows) - 1)]

    def everything(self) -> tuple[Tensor, Tensor]:
        """All rows of each peer, padded: (rows [P, most], weights [P, most] that sum to 1; NaN where
        a peer holds nothing)."""
        width = int(self.size.max())
        column = torch.arange(width).expand(len(self.size), -1)
        inside = column < self.size[:, None]
        weight = torch.where(inside, 1.0 / self.size[:, None].to(torch.float64), 0.0)
        weight = torch.where(self.size[:, None] == 0, torch.nan, weight)
        return self.sample(torch.where(inside, column, 0)), weight

    def passes(self, draws: list[Draws], batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Whole passes without replacement, one per entry of ``draws``.

        Returns:
            (rows [P, S, B], weights [P, S, B] that sum to 1 over each batch, steps int64 [P]), where
            S is the number of steps of the peer with most data.
        """
        peers, width = len(self.size), int(self.size.max())
        each = (self.size + batch - 1) // batch
        steps = each * len(draws)
        total = int(steps.max())
        position = torch.zeros(peers, total * batch, dtype=torch.int64)
        filled = torch.zeros(peers, total * batch, dtype=torch.bool)
        outside = torch.arange(width) >= self.size[:, None]
        peer = torch.arange(peers)[:, None].expand(-1, width)
        for number, draw in enumerate(draws):
            order = draw.words(width).masked_fill(outside, 1 << 33).argsort(dim=1, stable=True)
            column = number * each[:, None] * batch + torch.arange(width)
            keep = ~outside
            position[peer[keep], column[keep]] = order[keep]
            filled[peer[keep], column[keep]] = True
        rows = self.sample(position).reshape(peers, total, batch)
        weight = filled.reshape(peers, total, batch).to(torch.float64)
        return rows, weight / weight.sum(2, keepdim=True).clamp(min=1), steps
