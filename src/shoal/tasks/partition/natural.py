"""One user of the data, one peer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from shoal.core import BadInput

from .base import Partition, partitions

__all__ = ["Natural"]


@partitions.register("natural")
@dataclass(frozen=True)
class Natural(Partition):
    """The data's own users, in the order of their numbers.

    Args:
        rest: what happens to users beyond the number of peers: ``"merge"``, user g goes to peer g mod n;
            ``"drop"``, they are left out.
    """

    rest: Literal["merge", "drop"] = "merge"

    def owner(self, y: Tensor, groups: Tensor | None, n: int, seed: int) -> Tensor:
        if groups is None:
            raise BadInput("partition", self.slug, "data with users (a table's group column)")
        users, user = torch.unique(groups, return_inverse=True)
        if n > len(users):
            raise BadInput("peers", n, f"at most {len(users)}, the number of users in the data")
        return user % n if self.rest == "merge" else torch.where(user < n, user, -1)
