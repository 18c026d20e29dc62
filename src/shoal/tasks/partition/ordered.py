"""Classes that follow the peers' numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput

from .base import Partition, deal, labels_of, partitions

__all__ = ["Ordered"]


@partitions.register("ordered")
@dataclass(frozen=True)
class Ordered(Partition):
    """Peer i holds the ``k`` classes from floor(i C / n) on (modulo C), each shared evenly by its holders.

    Peers of near numbers hold the same classes, so that whatever depends on a peer's number, such as how
    often it takes part, is correlated with its data.

    Args:
        k: classes of each peer.
    """

    k: Annotated[int, Meta(ge=1)] = 2

    def owner(self, y: Tensor, groups: Tensor | None, n: int, seed: int) -> Tensor:
        label, classes = labels_of(y, self.slug)
        if self.k > classes:
            raise BadInput("partition.k", self.k, f"at most {classes}, the number of classes")
        first = np.arange(n) * classes // n
        holds = np.zeros((n, classes), np.int64)
        for j in range(self.k):
            holds[np.arange(n), (first + j) % classes] = 1
        stock, holders = np.bincount(label, minlength=classes), holds.sum(0).clip(1)
        place = np.cumsum(holds, 0) - holds  # how many lower peers hold the class too
        return deal(y, holds * (stock // holders + (place < stock % holders)), seed, "partition/order")
