"""What a peer of a run offers, put on a node to be attacked: membership, exchange, blobs, stores.

Every stranger holds the other seat of a run of two, so that its parcels get as far as those of a peer of
the run do: through the desk and the parcel's form to the exchange's own checks. Everything else that is
said here is well formed and badly signed, so that even what is not mutated changes nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from shoal.core import Place, Tick, Work
from shoal.network.exchange import Exchange
from shoal.network.network import Network
from shoal.network.port import Buffer
from shoal.runtimes.p2p.blob import Claim, Offer, Whole
from shoal.runtimes.p2p.channel import LENGTH
from shoal.runtimes.p2p.desk import _KEY, Desk
from shoal.runtimes.p2p.frames import Type, encode, pack
from shoal.runtimes.p2p.gossip import Doubt, Gossip
from shoal.runtimes.p2p.identity import Identity
from shoal.runtimes.p2p.membership import Membership, Sync
from shoal.runtimes.p2p.node import Node
from shoal.runtimes.p2p.patience import Patience
from shoal.runtimes.p2p.probe import Ask, Ping
from shoal.runtimes.p2p.records import PeerRecord, SignedRecord
from shoal.runtimes.p2p.store.content import MemoryStore, add
from shoal.runtimes.p2p.store.crdt import Replica
from shoal.runtimes.p2p.store.delta import EMPTY, Cell, Delta, Signed
from shoal.runtimes.p2p.store.dht import Dht
from shoal.runtimes.p2p.store.entries import Entry, SignedEntry
from shoal.runtimes.p2p.store.swap import Swap
from shoal.runtimes.p2p.store.sync import AntiEntropy
from shoal.runtimes.p2p.witness import UNSIGNED

__all__ = ["Given", "LivePeer", "exchange", "live_peer", "parcel_of"]

RUN = "0123456789abcdef"
DIM = 40
CALLS = 64


class Given:
    """A port whose other blocks say what they are made to say.

    Attributes:
        parcels: what they say, by block.
        sent: what the block here said, by block.
        refusals: of what they said.
    """

    trusted = False

    def __init__(self, here: int = 0, blocks: int = 2) -> None:
        self.here = here
        self.sizes: Sequence[int] = [1] * blocks
        self.parcels: dict[int, Buffer] = {}
        self.sent: dict[int, bytes] = {}
        self.refusals: Counter[str] = Counter()

    def begin(self, tick: int) -> None:
        pass

    def swap(self, out: Any, want: Any) -> dict[int, Buffer]:
        self.sent = {block: b"".join(pieces) for block, pieces in out.items()}
        return {block: self.parcels[block] for block in want if block in self.parcels}

    def missed(self) -> list[int]:
        return []

    def refuse(self, block: int, why: str) -> None:
        self.refusals[why] += 1


def exchange(port: Given, network: Network) -> tuple[Exchange, Tick]:
    """The exchange of one peer behind ``port``, and the first tick."""
    n = len(port.sizes)
    work = Work(Place(n, torch.tensor([port.here]), 0))
    tick, _ = next(network.ticks(n, 0, 4, 0, None))
    return Exchange(network, work, torch.zeros(n, dtype=torch.bool), port), tick


def parcel_of(network: Network, here: int = 1, blocks: int = 2, dim: int = DIM) -> bytes:
    """What peer ``here`` says to peer 0 when it mixes in the first tick."""
    port = Given(here, blocks)
    net, tick = exchange(port, network)
    net.mix(torch.linspace(-1, 1, dim)[None], tick)
    return port.sent[0]


def live_peer(node: Node) -> tuple[list[bytes], Callable[[], Any]]:
    """Make of ``node`` a peer of a run.

    Returns:
        First bytes of streams to mutate, and what describes the peer's state.
    """
    peer = LivePeer(node)
    return peer.samples(), peer.describe


class LivePeer:
    """The services and what uses them.

    Attributes:
        parcels: how many came as far as the exchange.
        port: counts why it did not take them.
    """

    def __init__(self, node: Node) -> None:
        me = node.identity
        self.parcels, self.network, self.port = 0, Network(), Given()
        self.exchange, self.tick = exchange(self.port, self.network)
        self.model = torch.zeros(1, DIM)
        self.members = Membership(node, me, RUN)
        self.desk = Desk(
            node, bytes.fromhex(RUN), 0, 1 << 16, Patience(least_s=0.001, most_s=0.01),
            holder=lambda seat: None, seat=lambda peer: 0 if peer == me.id else 1, gone=lambda seat: False,
        )  # fmt: skip
        self.replica, self.dht, self.blocks = Replica(me, "state"), Dht(node, me), MemoryStore()
        self.digest = add(self.blocks, b"content" * 100).digest
        self.services = AntiEntropy(node, self.replica, neighbours=tuple), Swap(node, self.blocks)
        self.tasks = [asyncio.create_task(self.members.start()), asyncio.create_task(self._listen())]

    async def _listen(self) -> None:
        """What the run's thread does with parcels: mixes with each, and thinks nothing of it."""
        await self.desk.begin(0)
        while True:
            for key in [key for key, box in self.desk._box.items() if box]:
                got = await self.desk.swap(*key, {}, [1])
                if 1 in got:
                    self.parcels += 1
                    self.port.parcels = dict(got)
                    self.exchange.mix(self.model, self.tick)
            await asyncio.sleep(0.002)

    def describe(self) -> dict[str, Any]:
        """All that a stranger must not change."""
        for task in self.tasks:
            if task.done():
                task.result()
        return {
            "members": {p: m.record.sequence for p, m in self.members.members().items()},
            "model": self.model.tolist(),
            "tick": self.desk.tick,
            "state": self.replica.heads(),
            "forks": dict(self.replica.forks),
            "shelf": len(self.dht.shelf),
            "blocks": self.blocks.bytes,
        }

    # -- what a peer of the run would say --------------------------------------------------------------

    def samples(self) -> list[bytes]:
        """First bytes of streams that the services accept."""
        other = Identity.create()
        return [*self._swim(other), *self._parcels(), *self._stores(other)]

    def _swim(self, other: Identity) -> list[bytes]:
        said = encode(PeerRecord(other.id, RUN, 7, ("tcp://127.0.0.1:9",), "other", ("relay",)))
        record = SignedRecord(said, other.sign("fuzz", said))
        gossip = Gossip((record,) * 3, (Doubt(other.id, 3),))
        return [
            _call("swim/ping", Ping(record, gossip, bytes(16))),
            _call("swim/ask", Ask(other.id, bytes(16))),
            _call("swim/sync", Sync(record, {other.id: 7}, (record,) * 5)),
        ]

    def _parcels(self) -> list[bytes]:
        names = [_KEY.pack(bytes.fromhex(RUN), 0, call, 0, UNSIGNED) for call in range(CALLS + 1)]
        small = parcel_of(self.network)
        large = small * (1 + (1 << 15) // len(small))
        stream = pack(Type.STREAM, kind=b"run")
        whole = stream + _message(Offer(names[CALLS], len(large))) + large + _message(Claim(bytes(16)))
        return [*(_call("run/small", Whole(name, small)) for name in names[:CALLS]), whole]

    def _stores(self, other: Identity) -> list[bytes]:
        cells = (Cell("map", "key", b"value"), Cell("set", "one", b""))
        delta = encode(Delta("state", other.id, 0, 1, EMPTY, self.digest, cells))
        signed = Signed(delta, other.sign("fuzz", delta))
        entry = encode(Entry(self.digest, other.id, "", 1, 60, b"value"))
        return [
            _call("store/ask", ("state", {})),
            _call("store/push", ("state", (signed,))),
            _call("dht/find", (self.digest, True, ("tcp://127.0.0.1:9",))),
            _call("dht/store", SignedEntry(entry, other.sign("fuzz", entry))),
            _call("content/have", ((self.digest, bytes(32)),)),
            pack(Type.STREAM, kind=b"content/blocks") + self.digest + bytes(32),
        ]


def _message(body: Any) -> bytes:
    data = encode(body)
    return LENGTH.pack(len(data)) + data


def _call(kind: str, body: Any) -> bytes:
    return pack(Type.CALL, encode(body), kind=kind.encode(), time=200)
