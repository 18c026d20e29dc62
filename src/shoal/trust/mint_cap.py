"""What bandwidth tokens are worth to one peer: no more than it trusts those who signed for them.

Two colluders can sign any number of half-blocks for bytes that never flowed. Here a peer i credits
what B has signed for at most by

    cap_i(B) = share * merit_i(B) * V_i,

with merit_i the MeritRank of i's walks from taker to giver over blocks that have both halves (sum 1),
and V_i the bytes that i itself has taken: nothing that others sign among themselves can raise it.
Walks are scored by hits, so that those who pass them to and fro gain nothing by it.

Source: the mint cap of system 112, by MeritRank (Nasrulin, Ishmaev, Pouwelse, BRAINS 2022).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import Draws, Part

from .meritrank import MeritRank
from .token_audit import Logs
from .walks import WalkGraph

__all__ = ["MintCap", "confirmed"]


def confirmed(logs: Logs, n: int) -> Tensor:
    """Bytes by [giver, taker] that both have signed for, float64 [n, n]: the smaller of the two sums."""
    sides = {side: torch.zeros(n, n, dtype=torch.float64) for side in ("give", "take")}
    for origin, entries in logs.items():
        for _, _, half in entries:
            if half.partner < n:
                pair = (origin, half.partner) if half.side == "give" else (half.partner, origin)
                sides[half.side][pair] += half.amount
    return torch.minimum(sides["give"], sides["take"])


def _rank(value: Any) -> MeritRank:
    return value if isinstance(value, MeritRank) else MeritRank(**value)


@dataclass(frozen=True)
class MintCap(Part):
    """The cap and its reputation.

    Args:
        share: of V_i that all partners together may vouch for.
        rank: whose walks make the merit.
    """

    share: Annotated[float, Meta(gt=0)] = 1.0
    rank: MeritRank = field(
        default=MeritRank(alpha=0.3, walks=400, score="hitting"), metadata={"registry": _rank}
    )

    def caps(self, given: Tensor, me: int, draws: Draws) -> Tensor:
        """cap_i of every partner: float64 [n]. ``draws`` has leading axis 1."""
        n = len(given)
        taker, giver = given.T.nonzero(as_tuple=True)
        graph = WalkGraph.of(n, taker, giver, given[giver, taker])
        merit = self.rank.rank(graph, torch.tensor([me]), draws)[0]
        merit[me] = 0.0
        return self.share * merit / merit.sum().clamp(min=1e-300) * given[:, me].sum()

    def worth(self, given: Tensor, me: int, draws: Draws) -> Tensor:
        """What everybody's tokens are worth to ``me``: bytes, float64 [n].

        Given less taken, partner by partner under that partner's cap; own dealings in full.
        """
        cap = self.caps(given, me, draws)
        cap[me] = torch.inf
        earned = torch.minimum(given, cap[None, :]).sum(1)
        spent = torch.minimum(given, cap[:, None]).sum(0)
        return earned - spent
