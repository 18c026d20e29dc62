"""Is that member there? Asked directly, then through others, by deadlines that are learned.

The failure detector of SWIM (Das, Gupta, Motivala, DSN 2002, section 3). Deviations: a member that was
reached through a helper signs the asker's nonce, so that a helper cannot keep the dead alive; a direct
answer counts even after its deadline, as long as the probe lasts; a probe during which this process
itself stood still says nothing.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from shoal.core import ShoalError

from .gossip import Doubt, Gossip
from .identity import Identity, verify
from .pace import Pace
from .records import Key, SignedRecord
from .roster import Roster, State
from .transport.base import PeerId

if TYPE_CHECKING:
    from .node import Node

__all__ = ["Prober"]

HELPERS = 3
AT_ONCE = 32
LIMIT = 1 << 16
ANSWER = "swim/answer"

Nonce = Annotated[bytes, Meta(min_length=16, max_length=16)]


class Ping(msgspec.Struct, forbid_unknown_fields=True):
    """Are you there? On behalf of ``origin`` where that is not empty."""

    record: SignedRecord
    gossip: Gossip
    nonce: Nonce
    origin: Annotated[str, Meta(max_length=64)] = ""


class Ack(msgspec.Struct, forbid_unknown_fields=True):
    """I am. ``proof`` signs the nonce for the origin."""

    record: SignedRecord
    gossip: Gossip
    proof: Annotated[bytes, Meta(max_length=64)] = b""


class Ask(msgspec.Struct, forbid_unknown_fields=True):
    """Try to reach ``target`` for me."""

    target: Key
    nonce: Nonce


class Answer(msgspec.Struct, forbid_unknown_fields=True):
    """What the target signed; empty where it could not be reached."""

    proof: Annotated[bytes, Meta(max_length=64)]


class Prober:
    """Probes members, and answers probes.

    Args:
        node: through which everything is said.
        identity: of this peer.
        roster: what is believed; probes change it.
        pace: learned times.
        draw: chooses helpers.
        spawn: runs work in the background while the membership runs, else does nothing.
        revived: called with a member that was dead and spoke.
    """

    def __init__(
        self,
        node: Node,
        identity: Identity,
        roster: Roster,
        pace: Pace,
        draw: random.Random,
        *,
        spawn: Callable[..., None],
        revived: Callable[[PeerId], None],
    ) -> None:
        self._node, self._identity, self._roster = node, identity, roster
        self._pace, self._draw, self._spawn, self._revived = pace, draw, spawn, revived
        self._probing: set[PeerId] = set()
        self._probed: set[PeerId] = set()
        node.serve("swim/ping", Ping, self._on_ping, limit=LIMIT)
        node.serve("swim/ask", Ask, self._on_ask, limit=LIMIT)
        node.on_connection(self._on_connection)

    # -- probing --------------------------------------------------------------------------------------

    def new_period(self) -> None:
        """Members may be probed again."""
        self._probed.clear()

    def check(self, peer: PeerId, *, doubted: bool = False) -> None:
        """Probe a member in the background, at most once a period."""
        if peer in self._probed or peer in self._probing or len(self._probing) >= AT_ONCE:
            return
        self._probed.add(peer)
        self._spawn(self._probe, peer, doubted)

    async def _probe(self, peer: PeerId, doubted: bool) -> None:
        member = self._roster.get(peer)
        if member is None:
            return
        self._probing.add(peer)
        try:
            if await self._reach(peer, doubted) is False:
                self._pace.missed(peer)
                self._roster.fail(peer, member.incarnation)
        finally:
            self._probing.discard(peer)

    async def _reach(self, peer: PeerId, doubted: bool) -> bool | None:
        """Whether the member answers, to us or to a helper; None where this process itself stood still."""
        loop = asyncio.get_running_loop()
        deadline, patience = self._pace.deadline(peer), self._pace.patience(peer)
        until = loop.time() + patience
        tasks = {asyncio.create_task(self.ping(peer, doubted=doubted))}
        try:
            done, waiting = await asyncio.wait(tasks, timeout=deadline)
            if any(task.result() for task in done):
                return True
            helpers = [helper for helper in self._roster.those(State.ALIVE) if helper != peer]
            for helper in self._draw.sample(helpers, min(HELPERS, len(helpers))):
                waiting.add(asyncio.create_task(self._ask(helper, peer)))
            tasks |= waiting
            while waiting and (left := until - loop.time()) > 0:
                done, waiting = await asyncio.wait(
                    waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED
                )
                if any(task.result() for task in done):
                    return True
            return None if loop.time() > until + deadline else False
        finally:
            for task in tasks:
                task.cancel()

    async def ping(self, peer: PeerId, *, doubted: bool = False) -> bool:
        """Whether the peer answers, within its patience: late answers still count, and are learned from."""
        clock = asyncio.get_running_loop().time
        began = clock()
        nonce, gossip = secrets.token_bytes(16), self._roster.gossip(peer, doubted=doubted)
        ack = await self.call(peer, "swim/ping", Ping(self._roster.own.signed, gossip, nonce), Ack)
        if ack is None:
            return False
        self._pace.saw(peer, clock() - began)
        self.meet(peer, ack.record)
        self._take(peer, ack.gossip)
        return True

    async def _ask(self, helper: PeerId, target: PeerId) -> bool:
        """Probe through a helper, who cannot answer in the target's place."""
        nonce = secrets.token_bytes(16)
        answer = await self.call(helper, "swim/ask", Ask(target, nonce), Answer)
        if answer is None or not answer.proof:
            return False
        if not verify(target, ANSWER, self._challenge(self._roster.own.peer, nonce), answer.proof):
            self._node.refuse(helper, "forged answer")
            return False
        self._roster.contact(target)
        return True

    async def call(self, peer: PeerId, kind: str, message: msgspec.Struct, reply: type[Any]) -> Any:
        """The reply, or None where none comes in time."""
        try:
            return await self._node.call(peer, kind, message, reply, deadline=self._pace.patience(peer))
        except (ShoalError, TimeoutError):
            return None

    # -- answering ------------------------------------------------------------------------------------

    async def _on_ping(self, sender: PeerId, ping: Ping) -> Ack:
        before, number = self.meet(sender, ping.record)
        if self._roster.get(sender) is None:
            return Ack(self._roster.own.signed, Gossip())  # not of this run: it learns nothing
        self._take(sender, ping.gossip)
        doubted = before in {State.SUSPECT, State.DEAD}
        gossip = self._roster.gossip(sender, number, doubted=doubted)
        proof = (
            self._identity.sign(ANSWER, self._challenge(ping.origin, ping.nonce)) if ping.origin else b""
        )
        return Ack(self._roster.own.signed, gossip, proof)

    async def _on_ask(self, sender: PeerId, ask: Ask) -> Answer:
        if self._roster.get(sender) is None or self._roster.get(ask.target) is None:
            return Answer(b"")
        gossip = self._roster.gossip(ask.target)
        ping = Ping(self._roster.own.signed, gossip, ask.nonce, sender)
        ack = await self.call(ask.target, "swim/ping", ping, Ack)
        if ack is None:
            return Answer(b"")
        self.meet(ask.target, ack.record)
        return Answer(ack.proof)

    def meet(self, peer: PeerId, signed: SignedRecord) -> tuple[State | None, int]:
        """The peer itself spoke and showed its record: see :meth:`.roster.Roster.meet`."""
        before, number = self._roster.meet(peer, signed)
        if before is State.DEAD:
            self._revived(peer)
        return before, number

    def heed(self, sender: PeerId, doubts: Iterable[Doubt]) -> None:
        """Probe whom the sender doubts, so far as it may doubt."""
        for doubt in doubts:
            if self._roster.heed(doubt, sender):
                self.check(doubt.peer, doubted=True)

    def _take(self, sender: PeerId, gossip: Gossip) -> None:
        for record in gossip.records:
            self._roster.hear(record, sender)
        self.heed(sender, gossip.doubts)

    def _on_connection(self, peer: PeerId, up: bool) -> None:
        if not up:
            self._pace.forget(peer)  # the next answer needs a new connection first
            if self._roster.get(peer) is not None:
                self._probed.discard(peer)
                self.check(peer)

    def _challenge(self, origin: str, nonce: bytes) -> bytes:
        return f"{self._roster.own.said.run}\0{origin}\0".encode() + nonce
