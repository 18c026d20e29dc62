"""The receiving end of :mod:`.transfer`."""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import numpy as np

from shoal.core import BadInput

from .blob import NO_SECRET, PIECE, SECRET, SMALL, Answer, Claim, Offer, Tagger, Verdict, Whole
from .channel import Channel
from .frames import Refused
from .node import Node
from .transport.base import Broken, PeerId

__all__ = ["Receiver"]

KEYS = 1024  # finished keys remembered of a peer
PEERS = 4096  # peers of whom some are remembered
IDLE = 120.0  # seconds after which an unfinished blob that nobody sends on may be given up


class _Partial:
    """A blob on its way in."""

    def __init__(self, size: int, secret: bytes) -> None:
        self.size, self.offset = size, 0
        # Unlike a bytearray this is not filled with zeros: what is only announced takes no memory.
        self.view = np.empty(size, np.uint8).data
        self.seen = time.monotonic()
        self.channel: Channel | None = None
        self.left = asyncio.Event()  # the stream that filled it has gone
        self.tag = b""
        self.secret = secret
        self.tagger = Tagger(secret)

    def take(self, data: bytes) -> None:
        """The next bytes."""
        self.view[self.offset : self.offset + len(data)] = data
        self.offset += len(data)
        self.tagger.feed(data)


class _Known(NamedTuple):
    """What a finished blob is recognised by."""

    secret: bytes
    tag: bytes


class Receiver:
    """Takes blobs in.

    Args:
        node: on which they arrive.
        accept: whether a blob (peer, key, size) is wanted.
        limit: bytes of one blob.
        done: is given each blob (peer, key, content) once, before its sender is told that it arrived;
            may raise :class:`~.frames.Refused`. If it raises anything else, the sender tries again.
        kind: names the service, where there are several.
        budget: bytes of unfinished blobs of one peer (default: two of the largest).
        equivocation: told of (peer, key) when other content is sent under a key that came before.
        tagged: without it no blob is tagged, which saves a third of the work: for content of which it
            does not matter that its sender could have put it together from several, since each key is
            listened to only once.
    """

    def __init__(
        self,
        node: Node,
        accept: Callable[[PeerId, bytes, int], bool],
        limit: int,
        done: Callable[[PeerId, bytes, memoryview], Awaitable[None]],
        *,
        kind: str = "blob",
        budget: int | None = None,
        equivocation: Callable[[PeerId, bytes], None] | None = None,
        tagged: bool = True,
    ) -> None:
        if limit < 1 or (budget is not None and budget < limit):
            raise BadInput("limit", limit, "at least 1 byte, and at most the budget")
        self._node, self._accept, self._limit, self._done = node, accept, limit, done
        self._budget = 2 * limit if budget is None else budget
        self._equivocation, self._tagged = equivocation, tagged
        self._partial: dict[tuple[PeerId, bytes], _Partial] = {}
        self._held: dict[PeerId, int] = {}
        self._delivering: set[tuple[PeerId, bytes]] = set()
        self._finished: OrderedDict[PeerId, OrderedDict[bytes, _Known]] = OrderedDict()
        node.serve(f"{kind}/small", Whole, self._on_whole, limit=SMALL + 256)
        node.serve_stream(kind, self._on_stream)

    def forget(self, peer: PeerId) -> None:
        """Give up what is unfinished of ``peer``, and what is remembered of it."""
        for owner, key in list(self._partial):
            if owner == peer:
                self._give_up(peer, key)
        self._finished.pop(peer, None)

    # -- small ----------------------------------------------------------------------------------------

    async def _on_whole(self, peer: PeerId, blob: Whole) -> Verdict:
        known = self._known(peer, blob.key)
        secret = known.secret if known else self._secret()
        tagger = Tagger(secret)
        tagger.feed(blob.data)
        tag = tagger.tag()
        if known is not None:
            return Verdict(self._compare(peer, blob.key, known, tag))
        if (peer, blob.key) in self._delivering:
            return Verdict(Answer.WAIT)
        if not self._wanted(peer, blob.key, len(blob.data)):
            return Verdict(Answer.NO)
        await self._deliver(peer, blob.key, memoryview(blob.data), _Known(secret, tag))
        return Verdict(Answer.DONE)

    # -- large ----------------------------------------------------------------------------------------

    async def _on_stream(self, peer: PeerId, channel: Channel) -> None:
        patience = self._node.limits.ceiling_s
        async with asyncio.timeout(patience):
            offer = await channel.receive(Offer, 256)
        known = self._known(peer, offer.key)
        if known is not None:
            await channel.send(Verdict(Answer.HAVE, secret=known.secret))
            async with asyncio.timeout(patience):
                claim = await channel.receive(Claim, 64)
            answer = self._compare(peer, offer.key, known, claim.tag)
        else:
            partial = await self._begin(peer, offer, channel)
            answer = (
                partial if isinstance(partial, Answer) else await self._receive(partial, offer.key, channel)
            )
        await channel.send(Verdict(answer))

    async def _begin(self, peer: PeerId, offer: Offer, channel: Channel) -> _Partial | Answer:
        """The blob to go on with, or what to say instead."""
        if not self._wanted(peer, offer.key, offer.size):
            return Answer.NO
        partial = self._partial.get((peer, offer.key))
        if partial is not None and partial.channel is not None:
            if partial.channel.link is channel.link:
                return Answer.WAIT  # another task of the sender is at it
            partial.channel.abort()  # of a connection that the sender has given up
            await partial.left.wait()
            partial = self._partial.get((peer, offer.key))
        if (peer, offer.key) in self._delivering or (partial is not None and partial.channel is not None):
            return Answer.WAIT
        if partial is not None and partial.size != offer.size:
            self._give_up(peer, offer.key)
            partial = None
        if partial is None:
            if not self._make_room(peer, offer.size):
                return Answer.WAIT
            partial = self._partial[peer, offer.key] = _Partial(offer.size, self._secret())
            self._held[peer] = self._held.get(peer, 0) + offer.size
        partial.channel = channel
        partial.left.clear()
        return partial

    async def _receive(self, partial: _Partial, key: bytes, channel: Channel) -> Answer:
        peer, patience = channel.peer, self._node.limits.ceiling_s
        loop = asyncio.get_running_loop()
        try:
            await channel.send(Verdict(Answer.GO, partial.offset, partial.secret))
            async with asyncio.timeout(patience) as limit:
                mark = partial.offset + PIECE
                while partial.offset < partial.size:
                    data = await channel.read(min(PIECE, partial.size - partial.offset))
                    if not data:
                        raise Broken("the sender stopped")
                    partial.take(data)
                    if partial.offset >= mark:
                        limit.reschedule(loop.time() + patience)
                        mark = partial.offset + PIECE
            async with asyncio.timeout(patience):
                claim = await channel.receive(Claim, 64)
            tag = partial.tag = partial.tag or partial.tagger.tag()
            if not hmac.compare_digest(tag, claim.tag):
                self._release(peer, key)
                return Answer.DAMAGED
            try:
                await self._deliver(peer, key, partial.view, _Known(partial.secret, tag))
            except Refused as error:
                self._node.refuse(peer, error.reason, error.weight)
                self._release(peer, key)
                return Answer.NO
            self._release(peer, key)
            return Answer.DONE
        finally:
            partial.channel, partial.seen = None, time.monotonic()
            partial.left.set()

    def _secret(self) -> bytes:
        return secrets.token_bytes(SECRET) if self._tagged else NO_SECRET

    # -- what is remembered ---------------------------------------------------------------------------

    def _wanted(self, peer: PeerId, key: bytes, size: int) -> bool:
        if size > self._limit:
            self._node.refuse(peer, "blob too large")
            return False
        if not self._accept(peer, key, size):
            self._node.refuse(peer, "blob not wanted", 0.1)
            return False
        return True

    async def _deliver(self, peer: PeerId, key: bytes, content: memoryview, known: _Known) -> None:
        self._delivering.add((peer, key))
        try:
            await self._done(peer, key, content)
        finally:
            self._delivering.discard((peer, key))
        finished = self._finished.setdefault(peer, OrderedDict())
        self._finished.move_to_end(peer)
        finished[key] = known
        if len(finished) > KEYS:
            finished.popitem(last=False)
        if len(self._finished) > PEERS:
            self._finished.popitem(last=False)

    def _known(self, peer: PeerId, key: bytes) -> _Known | None:
        finished = self._finished.get(peer)
        return finished.get(key) if finished else None

    def _compare(self, peer: PeerId, key: bytes, known: _Known, tag: bytes) -> Answer:
        if hmac.compare_digest(known.tag, tag):
            return Answer.HAVE
        self._node.refuse(peer, "equivocation")
        if self._equivocation is not None:
            self._equivocation(peer, key)
        return Answer.CONFLICT

    def _give_up(self, peer: PeerId, key: bytes) -> None:
        partial = self._partial[peer, key]
        if partial.channel is not None:
            partial.channel.abort()
        self._release(peer, key)

    def _release(self, peer: PeerId, key: bytes) -> None:
        partial = self._partial.pop((peer, key), None)  # forget() may have been there before
        if partial is not None:
            self._held[peer] = self._held.get(peer, 0) - partial.size
            if not self._held[peer]:
                del self._held[peer]  # where it was empty, another empty one may have been there

    def _make_room(self, peer: PeerId, size: int) -> bool:
        """Whether another ``size`` bytes of the peer may be begun: what nobody sends on gives way."""
        now = time.monotonic()
        idle = sorted((p.seen, whose) for whose, p in self._partial.items() if p.channel is None)
        spare = sum(self._partial[whose].size for _, whose in idle)
        for seen, (owner, key) in idle:
            # All together they may take what one peer may: who left in the middle is one of many.
            short = spare > self._budget or (
                owner == peer and self._held.get(peer, 0) + size > self._budget
            )
            if (short or now - seen > IDLE) and (owner, key) not in self._delivering:
                spare -= self._partial[owner, key].size
                self._give_up(owner, key)
        return self._held.get(peer, 0) + size <= self._budget
