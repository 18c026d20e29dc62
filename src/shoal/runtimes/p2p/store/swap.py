"""Content fetched from several holders at once, each block checked, each asked of one holder only.

After Bitswap (IPFS) as Lattica (arXiv 2510.00183) uses it. A session asks the known holders *whether* they
have the content, waits 100 ms for their answers, and takes the quickest three, one of them drawn among the
others so that new holders get a chance; the rest are its reserve. Each then works off one common queue over
a stream, ``PIPELINE`` blocks ahead, so a quick holder gives more. A block that is not what its name says
ends its sender: refused at the node, never asked again, its blocks back in the queue, a holder from the
reserve in its place. Only when the queue is empty, and a block is far later than is usual here, is it
asked of a second holder; what arrives twice is counted.

On the stream: 32 bytes of a hash ask for a block; the answer is its length (u32, big-endian; 2^32 - 1: not
here) and its bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import struct
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from shoal.core import BadInput, ShoalError

from ..transport.base import PeerId, Stream
from .content import BLOCK, Cid, Digest, Manifest, Store, StoreFull, read

if TYPE_CHECKING:
    from ..node import Node
    from .dht import Dht

__all__ = ["Fetched", "Swap", "Unavailable"]

HAVE, BLOCKS = "content/have", "content/blocks"
PIPELINE = 4
ASKED = 16
_LENGTH = struct.Struct(">I")
_ABSENT = 0xFFFFFFFF


class Unavailable(ShoalError):
    """Nobody who can be reached has all of a content."""


class _Want(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    digests: Annotated[tuple[Digest, ...], Meta(min_length=1, max_length=64)]


class _Have(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    have: Annotated[tuple[bool, ...], Meta(max_length=64)]


@dataclass
class Fetched:
    """How a fetch went. Bytes.

    Args:
        useful: that were missing and are now held.
        duplicates: of right blocks that were already held when they came.
        wrong: of blocks that were not what they were asked for.
        givers: useful bytes by holder.
        dropped: holders that sent something wrong.
    """

    useful: int = 0
    duplicates: int = 0
    wrong: int = 0
    givers: Counter[PeerId] = field(default_factory=Counter)
    dropped: set[PeerId] = field(default_factory=set)


class Swap:
    """Gives and fetches blocks.

    Args:
        node: through which everything is said.
        store: what is given, and where what is fetched is kept.
        dht: where holders are looked up, and fetched content is announced.
        draw: chooses among holders.
        partners: holders that a session works with at a time.
        window_s: how long answers to "who has it" are collected.
        patience_s: the longest that a block may take before its holder is given up; less once it is known
            how long blocks take.
    """

    def __init__(
        self,
        node: Node,
        store: Store,
        *,
        dht: Dht | None = None,
        draw: random.Random | None = None,
        partners: int = 3,
        window_s: float = 0.1,
        patience_s: float = 10.0,
    ) -> None:
        if partners < 1:
            raise BadInput("partners", partners, "a whole number from 1 up")
        self.node, self.store, self.dht, self.partners = node, store, dht, partners
        self.window_s, self.patience_s = window_s, patience_s
        self.distrusted: set[PeerId] = set()
        self._draw = draw or random.Random(0)
        node.serve(HAVE, _Want, self._on_have, limit=4096)
        node.serve_stream(BLOCKS, self._on_blocks)

    async def fetch(self, cid: Cid, holders: Iterable[PeerId] = ()) -> Fetched:
        """Get a content into the store, checked.

        Args:
            holders: who may have it, besides those that the hash table names; without either, the
                peers that are connected.

        Raises:
            Unavailable: not all of it can be had.
            StoreFull: there is no room for it.
            BadInput: whoever made the name made no proper manifest.
        """
        told = Fetched()
        candidates = [*dict.fromkeys(holders)]
        if self.dht is not None and len(candidates) < self.partners:
            candidates += await self.dht.providers(cid.digest, ASKED)
        if not candidates:
            candidates = [*self.node.connections()]
        queue = await self._who_has(cid.digest, candidates)
        blocks = {cid.digest: BLOCK}
        await _Session(self, cid, blocks, queue, told, exact=False).run()
        if not cid.manifest:
            return told
        block = self.store.get(cid.digest)
        if block is None:
            raise Unavailable(f"{cid}: the store lost its manifest")
        manifest = Manifest.parse(block)
        blocks = {d: manifest.length(at) for at, d in enumerate(manifest.blocks)}
        pinned = [cid.digest, *blocks]
        self.store.pin(*pinned)
        try:
            await _Session(self, cid, blocks, queue, told, exact=True).run()
        finally:
            self.store.unpin(*pinned)
        return told

    async def get(self, cid: Cid, holders: Iterable[PeerId] = ()) -> bytes:
        """A content's bytes, from the store or from others. Raises as :meth:`fetch`."""
        data = read(self.store, cid)
        if data is None:
            await self.fetch(cid, holders)
            data = read(self.store, cid)
        if data is None:
            raise Unavailable(f"{cid}: the store lost a part of it")
        return data

    async def _who_has(self, digest: bytes, candidates: Sequence[PeerId]) -> deque[PeerId]:
        """Those who say that they have it, the best first, one place of the first few drawn by lot."""
        known = [p for p in dict.fromkeys(candidates) if p not in self.distrusted and p != self.node.id]
        asked = known if len(known) <= ASKED else self._draw.sample(known, ASKED)
        answers: list[PeerId] = []

        async def ask(peer: PeerId) -> None:
            with suppress(ShoalError):
                if (await self.node.call(peer, HAVE, _Want((digest,)), _Have, idempotent=True)).have == (
                    True,
                ):
                    answers.append(peer)

        tasks = [asyncio.create_task(ask(peer)) for peer in asked]
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=self.window_s)
            while not answers and not all(task.done() for task in tasks):
                await asyncio.wait([t for t in tasks if not t.done()], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        if len(answers) > self.partners > 1:
            lucky = self._draw.randrange(self.partners - 1, len(answers))
            answers.insert(self.partners - 1, answers.pop(lucky))
        return deque(answers)

    async def _on_have(self, peer: PeerId, want: _Want) -> _Have:
        return _Have(tuple(digest in self.store for digest in want.digests))

    async def _on_blocks(self, peer: PeerId, stream: Stream) -> None:
        while True:  # until the other end has finished, which ends the read
            block = self.store.get(await stream.read_exactly(32))
            if block is None:
                await stream.write(_LENGTH.pack(_ABSENT))
            else:
                await stream.write(_LENGTH.pack(len(block)))
                await stream.write(block)


class _Session:
    """The blocks of one fetch, and who is working on which.

    Args:
        blocks: digest -> length.
        reserve: holders that are not yet at work; used up from the front.
        exact: whether the lengths are known, or only bounds.
    """

    def __init__(
        self,
        swap: Swap,
        cid: Cid,
        blocks: dict[bytes, int],
        reserve: deque[PeerId],
        told: Fetched,
        exact: bool,
    ) -> None:
        self.swap, self.cid, self.blocks, self.told, self.exact = swap, cid, blocks, told, exact
        self.reserve = reserve
        self.missing = {digest for digest in blocks if digest not in swap.store}
        self.queue = deque(digest for digest in blocks if digest in self.missing)
        self.doing: dict[bytes, dict[PeerId, float]] = {}
        self.lacks: dict[PeerId, set[bytes]] = {}
        self.usual_s = 0.0
        self.loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Until nothing is missing.

        Raises:
            Unavailable: nobody is left to ask.
        """
        partners = self.swap.partners if self.exact else 1
        working: dict[asyncio.Task[None], PeerId] = {}
        good: list[PeerId] = []
        try:
            while self.missing:
                while self.reserve and len(working) < partners:
                    peer = self.reserve.popleft()
                    working[asyncio.create_task(self._work(peer))] = peer
                if not working:
                    raise Unavailable(
                        f"{self.cid}: {len(self.missing)} of {len(self.blocks)} blocks are nowhere"
                    )
                done, _ = await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    peer = working.pop(task)
                    task.result()
                    if peer not in self.swap.distrusted and not self.missing:
                        good.append(peer)
        finally:
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)
        # Those who served the manifest serve its blocks, before the others.
        self.reserve.extendleft(reversed([*good, *working.values()]))

    async def _work(self, peer: PeerId) -> None:
        """One holder at work, until there is nothing more for it, or it fails."""
        pending: deque[bytes] = deque()
        try:
            stream = await self.swap.node.open(peer, BLOCKS)
            try:
                while self.missing:
                    while len(pending) < PIPELINE and (digest := self._take(peer)) is not None:
                        pending.append(digest)
                        await stream.write(digest)
                    if not pending:
                        if self.lacks.get(peer, set()) >= self.missing:
                            return
                        await asyncio.sleep(max(0.01, self.usual_s))
                        continue
                    async with asyncio.timeout(self._patience()):
                        right = await self._receive(stream, peer, pending[0])
                    self.doing.get(pending.popleft(), {}).pop(peer, None)
                    if not right:
                        self.swap.distrusted.add(peer)
                        self.told.dropped.add(peer)
                        self.swap.node.refuse(peer, "wrong block")
                        return
            finally:
                stream.abort()
        except StoreFull:
            raise
        except (ShoalError, TimeoutError):
            return
        finally:
            for digest in pending:
                others = self.doing.get(digest, {})
                others.pop(peer, None)
                if digest in self.missing and not others:
                    self.queue.append(digest)

    async def _receive(self, stream: Stream, peer: PeerId, digest: bytes) -> bool:
        """The answer to one request; False where it is a lie."""
        began = self.doing[digest][peer]
        (length,) = _LENGTH.unpack(await stream.read_exactly(4))
        if length == _ABSENT:
            self.lacks.setdefault(peer, set()).add(digest)
            if digest in self.missing and len(self.doing[digest]) == 1:
                self.queue.append(digest)
            return True
        if length > BLOCK or (self.exact and length != self.blocks[digest]):
            return False
        block = await stream.read_exactly(length)
        if hashlib.sha256(block).digest() != digest:
            self.told.wrong += length
            if digest in self.missing and len(self.doing[digest]) == 1:
                self.queue.append(digest)
            return False
        if digest not in self.missing:
            self.told.duplicates += length
            return True
        self.swap.store.put(block)
        self.missing.discard(digest)
        self.told.useful += length
        self.told.givers[peer] += length
        took = self.loop.time() - began
        self.usual_s = took if not self.usual_s else 0.9 * self.usual_s + 0.1 * took
        return True

    def _take(self, peer: PeerId) -> bytes | None:
        """What this holder is to be asked next, or None."""
        lacks = self.lacks.get(peer, set())
        now = self.loop.time()
        for _ in range(len(self.queue)):
            digest = self.queue.popleft()
            if digest not in self.missing:
                continue
            if digest not in lacks:
                self.doing.setdefault(digest, {})[peer] = now
                return digest
            self.queue.append(digest)
        late = max(self.swap.window_s, 4 * self.usual_s)
        for digest in self.missing - lacks:
            others = self.doing.get(digest, {})
            if len(others) == 1 and peer not in others and now - min(others.values()) > late:
                others[peer] = now
                return digest
        return None

    def _patience(self) -> float:
        longest = self.swap.patience_s
        return longest if not self.usual_s else min(longest, max(1.0, 16 * self.usual_s))
