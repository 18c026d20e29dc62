"""Sort by label, cut, deal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Draws

from .base import Partition, partitions, shuffled

__all__ = ["LabelShards"]


@partitions.register("shards")
@dataclass(frozen=True)
class LabelShards(Partition):
    """The pathological split: rows sorted by target, cut into n x per_peer shards of equal size (to
    within one row), of which every peer gets ``per_peer`` at random. Regression sorts by value.

    Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data"
    (AISTATS 2017), section 3. Rows of equal target are in random order here.

    Args:
        per_peer: shards of each peer.
    """

    per_peer: Annotated[int, Meta(ge=1)] = 2

    def owner(self, y: Tensor, groups: Tensor | None, n: int, seed: int) -> Tensor:
        shards = n * self.per_peer
        if shards > len(y):
            raise BadInput(
                "partition.per_peer", self.per_peer, f"at most {len(y) // n}: {len(y)} rows, {n} peers"
            )
        order = torch.from_numpy(shuffled(y, seed, "partition/order"))
        shard = torch.arange(len(y)) * shards // len(y)
        draws = Draws(seed, "partition/shards", torch.zeros(1, dtype=torch.int64))
        holder = torch.empty(shards, dtype=torch.int64)
        holder[draws.permutation(shards)[0]] = torch.arange(shards) // self.per_peer
        owner = torch.empty(len(y), dtype=torch.int64)
        owner[order] = holder[shard]
        return owner
