"""Every peer draws from the same distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Draws

from .base import Partition, apportion, partitions

__all__ = ["Iid", "lognormal"]


def lognormal(n: int, sigma: float, seed: int) -> np.ndarray:
    """Relative sizes exp(sigma z) of n peers: float64 [n]."""
    return np.exp(sigma * Draws(seed, "partition/size", torch.arange(n)).normal(1)[:, 0].numpy())


@partitions.register("iid")
@dataclass(frozen=True)
class Iid(Partition):
    """Rows shuffled and dealt out.

    Args:
        size: rows of each peer; None: all rows are dealt, sizes differ by one at most.
        skew_size: sigma of lognormal sizes instead (their sum, and with ``size`` their mean, stay).
    """

    size: Annotated[int, Meta(ge=1)] | None = None
    skew_size: Annotated[float, Meta(ge=0)] = 0.0

    def owner(self, y: Tensor, groups: Tensor | None, n: int, seed: int) -> Tensor:
        total = len(y) if self.size is None else n * self.size
        if total > len(y):
            raise BadInput("partition.size", self.size, f"at most {len(y) // n}: {len(y)} rows, {n} peers")
        counts = apportion(lognormal(n, self.skew_size, seed), total)
        return dealt(counts, len(y), seed)


def dealt(counts: np.ndarray, rows: int, seed: int) -> Tensor:
    """Owners, int64 [rows], of random rows: ``counts[i]`` for peer i; -1 for the rest."""
    order = Draws(seed, "partition/order", torch.zeros(1, dtype=torch.int64)).permutation(rows)[0]
    owner = torch.full((rows,), -1)
    peers = torch.repeat_interleave(torch.arange(len(counts)), torch.from_numpy(counts))
    owner[order[: len(peers)]] = peers
    return owner
