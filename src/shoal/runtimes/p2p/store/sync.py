"""Replicas brought together: pairs compare how far they know each author, and send what the other lacks.

Anti-entropy (Demers et al., PODC 1987), push and pull in one exchange, with neighbours drawn at random. A
message carries at most ``MOST`` bytes of deltas, a snapshot apart; what does not fit follows at once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from shoal.core import ShoalError

from ..transport.base import PeerId
from .crdt import FORKED, Replica
from .delta import Refused, Signed, Unwanted
from .journal import Fork

if TYPE_CHECKING:
    from ..node import Node

__all__ = ["AntiEntropy"]

MOST = 1 << 19
LIMIT = 1 << 21
ROUNDS = 64

_Author = Annotated[str, Meta(min_length=64, max_length=64)]
_Head = tuple[Annotated[int, Meta(ge=0, le=FORKED)], Annotated[bytes, Meta(max_length=8)]]
_Heads = Annotated[dict[_Author, _Head], Meta(max_length=4096)]
_Deltas = Annotated[tuple[Signed, ...], Meta(max_length=4096)]
_Forks = Annotated[tuple[Fork, ...], Meta(max_length=64)]


class _Ask(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the caller knows."""

    store: Annotated[str, Meta(max_length=64)]
    heads: _Heads


class _Tell(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the caller lacks, and what the answerer knows."""

    heads: _Heads
    deltas: _Deltas = ()
    forks: _Forks = ()


class _Push(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the answerer lacks."""

    store: Annotated[str, Meta(max_length=64)]
    deltas: _Deltas = ()
    forks: _Forks = ()


class _Taken(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    news: Annotated[int, Meta(ge=0)]


class AntiEntropy:
    """Keeps replicas of one peer in step with those of others.

    Args:
        node: through which everything is said.
        replicas: of different stores.
        neighbours: who may be asked, now.
        draw: chooses among them.
    """

    def __init__(
        self,
        node: Node,
        *replicas: Replica,
        neighbours: Callable[[], Sequence[PeerId]] | None = None,
        draw: random.Random | None = None,
    ) -> None:
        self.node = node
        self.replicas = {replica.store: replica for replica in replicas}
        self._neighbours = neighbours or (lambda: sorted(node.connections()))
        self._draw = draw or random.Random(0)
        node.serve("store/ask", _Ask, self._on_ask, limit=LIMIT)
        node.serve("store/push", _Push, self._on_push, limit=LIMIT)

    async def sync(self, peer: PeerId) -> int:
        """Bring every store and ``peer``'s to the join of both; how many deltas were news, to either.

        Raises:
            ShoalError: the peer did not answer.
        """
        return sum([await self._pair(peer, replica) for replica in self.replicas.values()])

    async def once(self) -> int:
        """:meth:`sync` with a neighbour drawn at random; 0 where there is none, or it does not answer."""
        near = self._neighbours()
        if not near:
            return 0
        try:
            return await self.sync(self._draw.choice(near))
        except ShoalError:
            return 0

    async def run(self, every_s: float = 1.0) -> None:
        """For as long as it runs: often while there is news, up to 8 times less so while there is none."""
        wait = every_s
        while True:
            wait = every_s if await self.once() else min(2 * wait, 8 * every_s)
            await asyncio.sleep(self._draw.uniform(0.5, 1.0) * wait)

    async def _pair(self, peer: PeerId, replica: Replica) -> int:
        news = 0
        for _ in range(ROUNDS):
            ask = _Ask(replica.store, replica.heads())
            told = await self.node.call(peer, "store/ask", ask, _Tell, limit=LIMIT, idempotent=True)
            got = self._take(peer, replica, told.deltas, told.forks)
            deltas, forks = _fit(*replica.beyond(told.heads))
            given = 0
            if deltas or forks:
                push = _Push(replica.store, deltas, forks)
                given = (await self.node.call(peer, "store/push", push, _Taken, idempotent=True)).news
            news += got + given
            if not got and not given:
                break
        return news

    async def _on_ask(self, peer: PeerId, asked: _Ask) -> _Tell:
        replica = self._replica(peer, asked.store)
        if replica is None:
            return _Tell({})
        deltas, forks = _fit(*replica.beyond(asked.heads))
        return _Tell(replica.heads(), deltas, forks)

    async def _on_push(self, peer: PeerId, push: _Push) -> _Taken:
        replica = self._replica(peer, push.store)
        return _Taken(0 if replica is None else self._take(peer, replica, push.deltas, push.forks))

    def _replica(self, peer: PeerId, store: str) -> Replica | None:
        if store not in self.replicas:
            self.node.refuse(peer, "unknown store")
        return self.replicas.get(store)

    def _take(self, peer: PeerId, replica: Replica, deltas: Sequence[Signed], forks: Sequence[Fork]) -> int:
        news = 0
        try:
            for fork in forks:
                news += replica.hear_fork(fork)
            for signed in deltas:
                news += replica.hear(signed)
        except Unwanted:
            pass  # this replica's own bounds: no fault of whoever passes it on
        except Refused as why:
            # An honest peer passes on only what it has checked itself.
            self.node.refuse(peer, str(why))
        return news


def _fit(deltas: list[Signed], forks: list[Fork]) -> tuple[tuple[Signed, ...], tuple[Fork, ...]]:
    """As many as a message carries, at least one."""
    size = 0
    kept: list[Signed] = []
    proofs: list[Fork] = []
    for fork in forks[:64]:
        size += fork.one.size + fork.other.size
        if proofs and size > MOST:
            break
        proofs.append(fork)
    for signed in deltas[:4096]:
        size += signed.size
        if (kept or proofs) and size > MOST:
            break
        kept.append(signed)
    return tuple(kept), tuple(proofs)
