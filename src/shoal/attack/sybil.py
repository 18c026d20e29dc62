"""Sybils: identities that one adversary makes up, as graphs of feedback and as logs of clicks.

Sources: the regions of Nasrulin et al., "MeritRank" (arXiv 2207.09950), section on Sybil attacks; the
click inflation of Gold, Pouwelse, "G-Rank" (arXiv 2301.12530).

These act through what the adversary's peers say about each other or do alone (their data), so a task
composes them; nothing on the wire is changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import Draws, Part

__all__ = ["ClickInflation", "Region"]


@dataclass(frozen=True)
class Region(Part):
    """Sybils that an attacker, a real member, vouches for.

    Args:
        shape: ``path`` a -> 1 -> 2 -> ... -> k; ``cycle``: the same and back to a; ``parallel``
            a -> i for every i; ``ring``: a -> 1 and a ring 1 -> 2 -> ... -> k -> 1 that nothing
            leaves (of one Sybil: a -> 1 alone; nobody vouches for himself).
        size: k, the number of Sybils.
        weight: of every edge.
    """

    shape: Literal["path", "cycle", "parallel", "ring"] = "path"
    size: Annotated[int, Meta(ge=1)] = 10
    weight: Annotated[float, Meta(gt=0)] = 1e4

    def edges(self, attacker: int, first: int) -> tuple[Tensor, Tensor, Tensor]:
        """The edges that the attack adds, the Sybils being nodes ``first`` to ``first + size - 1``.

        Returns:
            (source int64 [E], target int64 [E], weight float64 [E]).
        """
        sybil = torch.arange(first, first + self.size)
        root = torch.tensor([attacker])
        if self.shape == "parallel":
            source, target = root.expand(self.size), sybil
        else:
            source, target = torch.cat([root, sybil[:-1]]), sybil
            end = {"path": None, "cycle": root, "ring": sybil[:1] if self.size > 1 else None}[self.shape]
            if end is not None:
                source, target = torch.cat([source, sybil[-1:]]), torch.cat([target, end])
        return source, target, torch.full((len(source),), self.weight, dtype=torch.float64)


@dataclass(frozen=True)
class ClickInflation(Part):
    """The last ``sybils`` peers of a run click one item on one term, many times, and never search.

    Args:
        sybils: how many of the peers.
        clicks: of each.
        at: when, as a share of the run.
    """

    sybils: Annotated[int, Meta(ge=1)] = 10
    clicks: Annotated[int, Meta(ge=1)] = 300
    at: Annotated[float, Meta(ge=0, le=1)] = 0.5

    def target(self, tags: Tensor, seed: int) -> tuple[int, int]:
        """(item, term): a drawn item and one of its own terms, so that the lie is plausible.

        Args:
            tags: bool [M, T], which terms describe which item.
        """
        draws = Draws(seed, "shared/inflated", torch.zeros(1, dtype=torch.int64))
        pairs = tags.nonzero()
        item, term = pairs[int(draws.integers(len(pairs), 1)[0, 0])].tolist()
        return item, term
