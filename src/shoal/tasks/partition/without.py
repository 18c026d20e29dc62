"""Some peers hold nothing: they only pass models on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.core import BadInput

from .base import Partition, partitions

__all__ = ["Without"]


@partitions.register("without")
@dataclass(frozen=True)
class Without(Partition):
    """Another partition among all but the named peers, who hold no rows.

    The task must accept such peers (``relays``).

    Args:
        peers: numbers of the peers without data.
        inner: how the others hold the rows.
    """

    peers: tuple[int, ...] = ()
    inner: Partition = partitions.field("iid")

    def owner(self, y: Tensor, groups: Tensor | None, n: int, seed: int) -> Tensor:
        keep = torch.tensor([i for i in range(n) if i not in set(self.peers)])
        if not len(keep) or any(not 0 <= i < n for i in self.peers):
            raise BadInput("partition.peers", self.peers, f"some, not all, of the peers 0 to {n - 1}")
        owner = self.inner.owner(y, groups, len(keep), seed)
        return torch.where(owner >= 0, keep[owner.clamp(min=0)], owner)

    def assign(self, y: Tensor, groups: Tensor | None, n: int, seed: int) -> list[Tensor]:
        owner = self.owner(y, groups, n, seed)
        size = torch.bincount(owner + 1, minlength=n + 1)
        return list(torch.split(torch.argsort(owner, stable=True), size.tolist()))[1:]
