"""Classes of exponentially falling size, evenly among the peers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from .base import Partition, labels_of, partitions, shuffled

__all__ = ["LongTail"]


@partitions.register("long-tail")
@dataclass(frozen=True)
class LongTail(Partition):
    """Class c keeps a share ratio^(-c / (C - 1)) of its rows; what is kept is dealt out at random.

    Source: the long-tailed split of Karimireddy, He & Jaggi (ICML 2021), on which rules that favour the
    middle lose the rare classes without any attacker.

    Args:
        ratio: size of the most frequent class over that of the rarest.
    """

    ratio: Annotated[float, Meta(ge=1)] = 50.0

    def owner(self, y: Tensor, groups: Tensor | None, n: int, seed: int) -> Tensor:
        label, classes = labels_of(y, self.slug)
        stock = np.bincount(label, minlength=classes)
        keep = np.ceil(stock * self.ratio ** (-np.arange(classes) / max(classes - 1, 1))).astype(np.int64)
        order = shuffled(y, seed, "partition/order")
        rank = np.empty(len(y), np.int64)  # of a row within its class, at random
        rank[order] = np.arange(len(y)) - np.repeat(np.cumsum(stock) - stock, stock)
        kept = np.flatnonzero(rank < keep[label])
        mixed = kept[shuffled(torch.zeros(len(kept)), seed, "partition/deal")]
        owner = torch.full((len(y),), -1)
        owner[torch.from_numpy(mixed)] = torch.arange(len(kept)) * n // len(kept)
        return owner
