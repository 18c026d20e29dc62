"""A fixed number of classes per peer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Draws

from .base import Partition, deal, labels_of, partitions

__all__ = ["Classes"]


@partitions.register("classes")
@dataclass(frozen=True)
class Classes(Partition):
    """Every peer holds ``k`` classes; every class is held, by numbers of peers that differ by one at most.

    Peers choose one after the other among the classes that have been chosen least, at random where these
    are equal. A class's rows are shared evenly by its holders. Source: the "#C = k" setting of Li, Diao,
    Chen & He (ICDE 2022), with the numbers of holders balanced.

    Args:
        k: classes of each peer.
        size: rows of each peer, evenly from its classes; None: all rows are dealt out.
    """

    k: Annotated[int, Meta(ge=1)] = 2
    size: Annotated[int, Meta(ge=1)] | None = None

    def owner(self, y: Tensor, groups: Tensor | None, n: int, seed: int) -> Tensor:
        label, classes = labels_of(y, self.slug)
        if self.k > classes:
            raise BadInput("partition.k", self.k, f"at most {classes}, the number of classes")
        if n * self.k < classes:
            raise BadInput(
                "partition.k", self.k, f"at least {-(-classes // n)}: {n} peers must hold {classes} classes"
            )
        holds = self._holds(n, classes, seed)
        stock = np.bincount(label, minlength=classes)
        place = np.cumsum(holds, 0) - holds  # how many lower peers hold the class too
        if self.size is None:
            holders = holds.sum(0)
            counts = holds * (stock // holders + (place < stock % holders))
        else:
            rank = np.cumsum(holds, 1) - holds
            counts = holds * (self.size // self.k + (rank < self.size % self.k))
            short = np.flatnonzero(counts.sum(0) > stock)
            if len(short):
                c = int(short[0])
                raise BadInput(
                    "partition.size",
                    self.size,
                    f"less: class {c} has {stock[c]} rows, its {holds[:, c].sum()} holders want "
                    f"{counts[:, c].sum()}",
                )
        return deal(y, counts, seed, "partition/order")

    def _holds(self, n: int, classes: int, seed: int) -> np.ndarray:
        """Who holds which class: int64 0/1 [n, C]."""
        tie = Draws(seed, "partition/classes", torch.arange(n)).uniform(classes).numpy()
        chosen = np.zeros(classes, np.int64)
        holds = np.zeros((n, classes), np.int64)
        for i in range(n):
            least = np.argsort(chosen + tie[i])[: self.k]
            holds[i, least] = 1
            chosen[least] += 1
        return holds
