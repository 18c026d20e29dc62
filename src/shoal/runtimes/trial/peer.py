"""One real peer of a trial: a process that shares a file with the others and keeps books about it.

It holds some chunks from the start, asks random others for those that it lacks, several at a time,
and settles each under the version that it runs. What gets no answer in time is said again. Faults are
its own doing: messages wait, and some answers come when nobody waits for them any more.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shoal.core import BadInput, Draws, ShoalError
from shoal.runtimes.p2p.frames import Refused
from shoal.runtimes.p2p.identity import Identity
from shoal.runtimes.p2p.node import Node
from shoal.runtimes.p2p.transport.tcp import Tcp
from shoal.tasks.sharing import chunk_bytes

from .books import Books
from .trial import Faults
from .words import PAGE, Answer, Ask, Chunk, Held, IdKeys, News, Order, Settle, Standing

__all__ = ["Orders", "TrialPeer", "run_peer"]

COPIES = 4
"""Each chunk is with one peer in so many from the start."""
_LATE = 1.5


@dataclass(frozen=True)
class Orders:
    """What a peer is started with: plain data.

    Args:
        folder: its own; the identity is in it.
        index: its number among ``ids``.
        operator: who may give orders.
        addresses: of the peers, as far as known; its own where it is to listen again.
    """

    folder: str
    index: int
    ids: list[str]
    operator: str
    addresses: dict[str, list[str]]
    seed: int
    start: int
    chunk: int
    chunks: int
    concurrency: int
    deadline_s: float
    delay_s: float
    loss: float


class TrialPeer:
    """Args: see :class:`Orders`; ``node`` is started, ``books`` are replayed."""

    def __init__(self, orders: Orders, node: Node, books: Books) -> None:
        self.orders, self.node, self.books = orders, node, books
        self.number = {peer: i for i, peer in enumerate(orders.ids)}
        self.working = asyncio.Event()
        self.lacking = [c for c in range(orders.chunks) if (c + orders.index) % COPIES]
        self.under_way: set[int] = set()
        self.sending: set[tuple[str, int, int]] = set()
        self.fetched = 0
        self.file = os.open(Path(orders.folder) / "file", os.O_RDWR | os.O_CREAT, 0o600)
        self._luck: dict[str, tuple[int, list[float]]] = {}
        faults = Faults(delay_s=orders.delay_s, loss=orders.loss, restart_s=0)
        self.faults = faults
        node.serve("trial/chunk", Ask, self._within(self.on_ask))
        node.serve("trial/settle", Settle, self._within(self.on_settle))
        node.serve("trial/records", Held, self.on_held)
        node.serve("trial/order", Order, self.on_order)

    # -- what others ask -----------------------------------------------------------------------------------

    async def on_ask(self, taker: int, ask: Ask) -> Chunk:
        """A chunk, under the version that both run."""
        version = self.books.version if ask.version == self.books.version else "off"
        index = ask.index % self.orders.chunks
        return Chunk(chunk_bytes(self.orders.seed, index, self.orders.chunk), version)

    async def on_settle(self, taker: int, told: Settle) -> Answer:
        """The other half. A proposal out of turn, or of a version that rests, gets none: that is no
        offence, as the taker may have been told to switch later than we were."""
        try:
            return Answer(self.books.answer(taker, told))
        except BadInput:
            return Answer(None)

    async def on_held(self, peer: str, held: Held) -> News:
        """Log entries beyond the asker's version vector; anyone may read them."""
        try:
            missing = self.books.log.missing(0, held.versions)
        except BadInput as error:
            raise Refused("no version vector of this trial") from error
        return News([(origin, first, records[:PAGE]) for origin, first, records in missing])

    async def on_order(self, peer: str, order: Order) -> Standing:
        if peer != self.orders.operator:
            raise Refused("only the operator gives orders")
        for other, addresses in order.addresses.items():
            if other != self.node.id:
                self.node.learn(other, addresses)
        self.books.flag(order.version)
        if order.work:
            self.working.set()
        else:
            self.working.clear()
        return Standing(self.books.version, self.fetched, self.orders.start, self.books.digests())

    def _within(
        self, handler: Callable[[int, Any], Awaitable[Any]]
    ) -> Callable[[str, Any], Awaitable[Any]]:
        """The handler for members of the trial, behind the faults of the network."""

        async def serve(peer: str, message: Any) -> Any:
            if peer not in self.number:
                raise Refused("not a member of the trial")
            await self._delay()
            reply = await handler(self.number[peer], message)
            late = self._draw("loss") < self.faults.loss
            await asyncio.sleep(_LATE * self.orders.deadline_s if late else 0.0)
            return reply

        return serve

    # -- what it does itself ---------------------------------------------------------------------------

    async def work(self) -> None:
        """Fetch and settle, ``concurrency`` at a time, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self.orders.concurrency):
                group.create_task(self._fetch_all())
            group.create_task(self._settle_all())

    async def _fetch_all(self) -> None:
        while True:
            await self.working.wait()
            wanted = [c for c in self.lacking if c not in self.under_way]
            if not wanted:
                if not self.under_way:  # all here: the next round of the same file
                    self.lacking = [
                        c for c in range(self.orders.chunks) if (c + self.orders.index) % COPIES
                    ]
                await asyncio.sleep(self.orders.deadline_s / 10)
                continue
            index = wanted[int(self._draw("chunk") * len(wanted))]
            holders = [
                i
                for i in range(len(self.orders.ids))
                if (index + i) % COPIES == 0 and i != self.orders.index
            ]
            if not holders:
                self.lacking.remove(index)
                continue
            self.under_way.add(index)
            try:
                await self._fetch(index, holders[int(self._draw("holder") * len(holders))])
            finally:
                self.under_way.discard(index)

    async def _fetch(self, index: int, giver: int) -> None:
        got = await self._call(giver, "trial/chunk", Ask(index, self.books.version), Chunk)
        if got is None or got.data != chunk_bytes(self.orders.seed, index, self.orders.chunk):
            return
        os.pwrite(self.file, got.data, index * self.orders.chunk)
        if index in self.lacking:
            self.lacking.remove(index)
        self.fetched += 1
        if got.version != "off" and got.version == self.books.version:
            self.books.owe(giver, len(got.data))
            await self._settle(giver)

    async def _settle_all(self) -> None:
        """Proposals that were given up on, or date from before a restart, are made again."""
        while True:
            await asyncio.sleep(self.orders.deadline_s / 2)
            await self.working.wait()
            await asyncio.gather(*(self._settle(giver) for giver in self.books.owing()))

    async def _settle(self, giver: int) -> None:
        for told in self.books.propose(giver):
            key = (told.half.version, giver, told.half.number)
            if key in self.sending:
                continue
            self.sending.add(key)
            try:
                answer = await self._call(giver, "trial/settle", told, Answer)
            finally:
                self.sending.discard(key)
            if answer is not None and answer.told is not None:
                try:
                    self.books.hear(giver, answer.told)
                except BadInput:
                    self.node.refuse(self.orders.ids[giver], "no half of a proposal of ours")

    async def _call(self, giver: int, kind: str, message: Any, reply: type[Any]) -> Any:
        """The reply, or None where none came in time or none was given."""
        await self._delay()
        try:
            return await self.node.call(
                self.orders.ids[giver], kind, message, reply, deadline=self.orders.deadline_s
            )
        except (ShoalError, TimeoutError):
            await asyncio.sleep(self.orders.deadline_s / 10)
            return None

    async def _delay(self) -> None:
        if self.faults.delay_s:
            await asyncio.sleep(self.faults.delay_s * self._draw("delay"))

    def _draw(self, purpose: str) -> float:
        """This peer's next number in [0, 1) for a purpose; each start has a stream of its own."""
        at, block = self._luck.get(purpose, (0, []))
        if not block:
            draws = Draws(
                self.orders.seed,
                f"trial/{purpose}/{self.orders.start}",
                torch.tensor([self.orders.index]),
                at,
            )
            block, at = draws.uniform(256)[0].tolist(), at + 1
        self._luck[purpose] = (at, block)
        return block.pop()


async def run_peer(orders: Orders) -> None:
    """Start, say where (``ready.json``), and go on until the process is ended."""
    folder = Path(orders.folder)
    identity = Identity.load(folder)
    keys = IdKeys(orders.ids, identity)
    port = next((int(a.rpartition(":")[2]) for a in orders.addresses.get(identity.id, [])), 0)
    try:
        transport = await Tcp.listen(identity, port=port)
    except BadInput:  # while we were away the old port went to someone else: the operator tells the others
        transport = await Tcp.listen(identity)
    node = Node(identity, [transport], allow={*orders.ids, orders.operator})
    books = Books(folder, orders.index, keys)
    peer = TrialPeer(orders, node, books)
    for other, addresses in orders.addresses.items():
        if other != identity.id:
            node.learn(other, addresses)
    await node.start()
    try:
        part = folder / "ready.json.part"
        part.write_text(json.dumps({"start": orders.start, "addresses": node.addresses()}))
        part.replace(folder / "ready.json")
        await peer.work()
    finally:
        await node.stop()
        books.close()
        os.close(peer.file)
