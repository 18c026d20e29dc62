"""Who is there, as each peer knows it, and who is drawn from it: without asking anybody.

Source: de Vos, Dhasade, Kermarrec, Lavoie, Pouwelse, "MoDeST: bridging the gap between federated and
decentralized learning with decentralized sampling" (arXiv 2302.13837), sections on sampling and views.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from shoal.core import Draws

__all__ = ["HashSampler", "PopulationView", "first_of"]

_NEVER = -1


@dataclass(frozen=True)
class PopulationView:
    """What each of P peers knows of all n: a state-based CRDT, merged by maxima.

    Args:
        last: int64 [P, n], the last round in which a peer is known to have been active; -1: none.
        counter: int64 [P, n], a peer's latest membership event, which it numbers itself: odd numbers
            are joins, even ones leaves, 0 is a peer that was never seen.
    """

    last: Tensor
    counter: Tensor

    @staticmethod
    def start(rows: int, members: Tensor) -> PopulationView:
        """The list of first members (bool [n]) that every peer is given, joined and active in round 0."""
        counter = members.to(torch.int64).expand(rows, -1).clone()
        return PopulationView(torch.where(counter > 0, 0, _NEVER), counter)

    @property
    def joined(self) -> Tensor:
        """Bool [P, n]."""
        return self.counter % 2 == 1

    def merge(self, other: PopulationView) -> PopulationView:
        """What both know together: commutative, associative, idempotent."""
        return PopulationView(
            torch.maximum(self.last, other.last), torch.maximum(self.counter, other.counter)
        )

    def active(self, who: Tensor, round: int) -> PopulationView:
        """With the peers ``who`` (bool [P, n]) known to be active in ``round``."""
        return replace(self, last=torch.where(who, self.last.clamp(min=round), self.last))

    def join(self, who: Tensor, round: int) -> PopulationView:
        """The next join of ``who`` (bool [P, n]): also of peers that never left, which so say that
        they are still there."""
        after = self.counter + 1 + self.counter % 2
        return replace(self.active(who, round), counter=torch.where(who, after, self.counter))

    def leave(self, who: Tensor) -> PopulationView:
        """``who`` (bool [P, n]) leave; who is not in stays out."""
        return replace(self, counter=torch.where(who & self.joined, self.counter + 1, self.counter))

    def capped(self, peer: int, round: int) -> PopulationView:
        """With ``peer`` last active in ``round`` at most."""
        last = self.last.clone()
        last[:, peer] = last[:, peer].clamp(max=round)
        return replace(self, last=last)

    def candidates(self, silence: int, own: Tensor) -> Tensor:
        """Bool [P, n]: who joined and was active less than ``silence`` rounds before the latest round
        that the peer has heard of.

        Args:
            own: bool [P, n], each peer itself: what it says of itself is no news of the others' round.
        """
        return self.joined & (self.last > self.latest(own)[:, None] - silence)

    def latest(self, own: Tensor) -> Tensor:
        """The latest round in which the peer has heard of another (``own``: itself): int64 [P]."""
        return self.last.masked_fill(own, _NEVER).max(1).values

    # -- as messages -----------------------------------------------------------------------------------

    def message(self, row: int) -> bytes:
        """One peer's view: 8 bytes for each of the n peers."""
        return torch.stack([self.last[row], self.counter[row]]).numpy().astype("<i4").tobytes()

    @staticmethod
    def read(message: object, n: int, round: int) -> PopulationView | None:
        """The view [1, n] that a stranger sent; None where that is no view of ``n`` peers.

        Args:
            round: the latest round that can be: nobody was active later.
        """
        if not isinstance(message, bytes) or len(message) != 8 * n:
            return None
        last, counter = torch.from_numpy(np.frombuffer(message, dtype="<i4").astype(np.int64).reshape(2, n))
        if int(last.min()) < _NEVER or int(last.max()) > round or int(counter.min()) < 0:
            return None
        return PopulationView(last[None], counter[None])

    def absorb(self, rows: list[int], told: list[PopulationView]) -> PopulationView:
        """``rows[m]``'s view merged with the view ``told[m]`` [1, n], for all m."""
        if not rows:
            return self
        index = torch.tensor(rows)[:, None].expand(-1, self.last.shape[1])
        return PopulationView(
            self.last.scatter_reduce(0, index, torch.cat([v.last for v in told]), "amax"),
            self.counter.scatter_reduce(0, index, torch.cat([v.counter for v in told]), "amax"),
        )


@dataclass(frozen=True)
class HashSampler:
    """The order in which round k draws: all peers by hash(id, k).

    The hash is Philox, keyed by the run's seed: public, uniform, and the same for everybody.

    Args:
        seed: of the run.
        n: number of peers.
    """

    seed: int
    n: int

    def order(self, round: int) -> Tensor:
        """Peers, first to last: int64 [n]."""
        words = Draws(self.seed, "shared/hash-order", torch.arange(self.n), round).words(1)[:, 0]
        return words.argsort(stable=True)

    def sample(self, round: int, able: Tensor, size: int) -> Tensor:
        """The first ``size`` of those ``able`` (bool [P, n]) in the round's order: bool [P, n]."""
        return first_of(able, self.order(round), size)


def first_of(able: Tensor, order: Tensor, size: int | Tensor) -> Tensor:
    """The first ``size`` of each row of ``able`` in ``order`` ([n] or [P, n]): both bool [P, n]."""
    order = order.expand(len(able), -1)
    ranked = able.gather(1, order)
    return torch.zeros_like(able).scatter(1, order, ranked & (ranked.cumsum(1) <= size))
