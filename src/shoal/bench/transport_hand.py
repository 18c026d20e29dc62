"""One process of the transport benchmark: it sends and stores what it is told, and says when it did.

Orders come as lines of JSON on standard input, answers go to standard output; the first line of output
says who and where this process is. Times are of the system's monotonic clock, which all processes of a
machine share.
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from shoal.core import Place, Work
from shoal.network.exchange import Exchange
from shoal.network.network import Network
from shoal.runtimes.p2p.desk import Desk, Patience
from shoal.runtimes.p2p.heap import keep_heap
from shoal.runtimes.p2p.identity import Identity
from shoal.runtimes.p2p.limits import Limits
from shoal.runtimes.p2p.port import Loop, PeerPort
from shoal.runtimes.p2p.station import TransportName, listening, start_node
from shoal.runtimes.p2p.transfer import Receiver, send_blob
from shoal.runtimes.p2p.transport.base import Broken, Connection, PeerId, Stream

__all__ = ["ARMS"]

ARMS = ("raw", "discarded", "blob", "ring of raw streams", "ring")
HEAD = struct.Struct("<BQ")
PIECE = 1 << 18
RUN = b"transpor"


class Raw:
    """Nothing but the transport: streams of known length, stored as they come, answered by one byte."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.kept: dict[PeerId, bytearray] = {}
        self.ways: dict[PeerId, Connection] = {}

    async def start(self, name: TransportName) -> list[str]:
        self.transport = await listening(self.identity, name, "127.0.0.1")
        self.tasks = {asyncio.create_task(self._connections())}
        return self.transport.addresses()

    async def _connections(self) -> None:
        while True:
            self._also(self._streams(await self.transport.accept()))

    async def _streams(self, connection: Connection) -> None:
        try:
            while True:
                self._also(self._store(connection.peer, await connection.accept()))
        except Broken:
            return

    def _also(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _store(self, peer: PeerId, stream: Stream) -> None:
        keep, size = HEAD.unpack(await stream.read_exactly(HEAD.size))
        if len(self.kept.get(peer, b"")) < size:
            self.kept[peer] = bytearray(size)
        view, at = memoryview(self.kept[peer]), 0
        while at < size:
            data = await stream.read(PIECE)
            if not data:
                raise Broken("too few bytes")
            if keep:
                view[at : at + len(data)] = data
            at += len(data)
        await stream.write(b"k")
        await stream.finish()

    async def meet(self, peer: PeerId, addresses: list[str]) -> None:
        self.ways[peer] = await self.transport.dial(peer, addresses)

    async def send(self, peer: PeerId, data: memoryview, keep: bool = True) -> None:
        stream = await self.ways[peer].open()
        await stream.write(HEAD.pack(keep, len(data)))
        for at in range(0, len(data), PIECE):
            await stream.write(data[at : at + PIECE])
        await stream.finish()
        await stream.read_exactly(1)


class Hand:
    """What one process can do; one method for each order."""

    def __init__(self, transport: TransportName) -> None:
        torch.set_num_threads(1)
        keep_heap()
        self.transport, self.loop = transport, Loop()
        self.count = 0

    def start(self) -> dict[str, Any]:
        identity = Identity.create()
        self.raw = Raw(Identity.create())
        addresses = self.loop.run(self.raw.start(self.transport))
        # On one machine nobody is late: what is measured is throughput.
        limits = Limits(first_s=60.0, floor_s=60.0)
        self.node = self.loop.run(start_node(identity, self.transport, limits=limits))

        async def done(peer: PeerId, key: bytes, content: memoryview) -> None:
            pass

        self.loop.call(lambda: Receiver(self.node, lambda *_: True, 1 << 28, done))
        return {
            "raw": [self.raw.identity.id, addresses],
            "node": [identity.id, self.node.addresses()],
        }

    def meet(self, here: int, table: list[dict[str, Any]], others: list[int], numbers: int) -> bool:
        """Know everybody, connect to ``others``, and hold a vector of so many float32."""
        self.here, self.others = here, others
        self.names = [entry["raw"][0] for entry in table]
        self.peers = [entry["node"][0] for entry in table]
        for entry in table:
            self.loop.call(self.node.learn, *entry["node"])
        for other in others:
            self.loop.run(self.raw.meet(*table[other]["raw"]))
        self.vector = torch.rand(1, numbers, generator=torch.Generator().manual_seed(here))
        array: Any = self.vector.numpy()
        self.data = memoryview(array).cast("B")
        if len(table) > 2:
            self._sit(len(table))
        return True

    def _sit(self, n: int) -> None:
        """A place in the exchange of a run on a ring."""
        port = PeerPort(self.loop, self.here, n)
        work = Work(Place(n, torch.tensor([self.here]), 0))
        network = Network()
        self.net = Exchange(network, work, torch.zeros(n, dtype=torch.bool), port)
        self.ticks = network.ticks(n, 0, 1 << 30, 0, None)
        port.desk = self.loop.call(
            lambda: Desk(
                self.node, RUN, self.here, 4 * len(self.data) + (1 << 20),
                Patience(strict=True, most_s=60.0),
                holder=lambda seat: self.peers[seat], seat=self.peers.index, gone=lambda seat: False,
            )
        )  # fmt: skip
        self.port = port

    # -- the arms ------------------------------------------------------------------------------------------

    def go(self, arm: str) -> list[float]:
        """Do it once: when it began and ended, and the processor seconds that it took."""
        self.count += 1
        began, used = time.monotonic(), time.process_time()
        if arm == "ring":
            self._mix()
        else:
            self.loop.run(self._sent(arm))
        return [began, time.monotonic(), time.process_time() - used]

    async def _sent(self, arm: str) -> None:
        first = self.others[0]
        if arm == "blob":
            await send_blob(self.node, self.peers[first], self.count.to_bytes(8, "little"), [self.data])
        elif arm == "ring of raw streams":
            await asyncio.gather(*(self.raw.send(self.names[other], self.data) for other in self.others))
        else:
            await self.raw.send(self.names[first], self.data, keep=arm == "raw")

    def _mix(self) -> None:
        tick, _ = next(self.ticks)
        self.port.begin(tick.index)
        self.net.meter.start_tick()
        self.vector = self.net.mix(self.vector, tick)
        self.net.settle(tick)


def main(transport: TransportName) -> None:
    """Obey until standard input ends."""
    hand = Hand(transport)
    orders: dict[str, Callable[..., Any]] = {"meet": hand.meet, "go": hand.go}
    _say(hand.start())
    for line in sys.stdin:
        order, *given = json.loads(line)
        _say(orders[order](*given))


def _say(told: Any) -> None:
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])  # type: ignore[arg-type]
