"""039: every pair connects, directly where their NATs allow; stores converge; bad blocks do no harm."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import combinations
from typing import Any, ClassVar

import msgspec

from shoal.catalog.claims import Bound, Claim, Progress, claim
from shoal.core import ShoalError
from shoal.runtimes.p2p.identity import Identity
from shoal.runtimes.p2p.limits import Limits
from shoal.runtimes.p2p.node import Node
from shoal.runtimes.p2p.relay import Grants, Relay
from shoal.runtimes.p2p.store.content import BLOCK, MemoryStore, add, read
from shoal.runtimes.p2p.store.crdt import Replica, fingerprint
from shoal.runtimes.p2p.store.delta import Signed
from shoal.runtimes.p2p.store.swap import Swap
from shoal.runtimes.p2p.transport.base import Transport
from shoal.runtimes.p2p.transport.simulated import Internet, Kind, Simulated
from shoal.runtimes.p2p.transport.tcp import Tcp

PEERS = 40
MIX: tuple[Kind, ...] = ("full-cone", "address-cone", "port-cone", "symmetric")
REPLICAS, OPERATIONS = 8, 1000
CONTENT = 16 << 20
CALLS, AT_ONCE, PAYLOAD = 4000, 16, 128
HANG_S = 300


class Echo(msgspec.Struct, frozen=True):
    """A call that is answered with itself."""

    data: bytes


def identity(draw: random.Random) -> Identity:
    return Identity(draw.randbytes(32))


@asynccontextmanager
async def running(node: Node) -> AsyncIterator[Node]:
    await node.start()
    try:
        yield node
    finally:
        await node.stop()


async def answer(_: str, asked: Echo) -> Echo:
    return asked


# -- connectivity -------------------------------------------------------------------------------------


def compatible(a: Kind, b: Kind) -> bool:
    """Whether two translators can be passed without a relay: not where one picks a new port for every
    destination and the other lets in only the very port that it has sent to."""
    return "symmetric" not in (a, b) or not {a, b} <= {"symmetric", "port-cone"}


async def connectivity(seed: int) -> dict[str, float]:
    """All pairs of peers behind simulated translators, and one open peer that relays."""
    draw = random.Random(f"lattica/nat/{seed}")
    kinds = draw.choices(MIX, k=PEERS)
    internet, limits = Internet(), Limits(calls_burst=1e6, grace_s=0.1)
    pairs = list(combinations(range(PEERS), 2))

    async def peer(kind: Kind, grants: Grants | None = None) -> Node:
        who = identity(draw)
        relay = Relay(who, grants)
        transports: Sequence[Transport] = [await Simulated.listen(who, internet, kind), relay]
        node = Node(who, transports, limits=limits)
        relay.attach(node)
        node.serve("echo", Echo, answer)
        return node

    async with AsyncExitStack() as stack:
        helper = await stack.enter_async_context(
            running(await peer("open", Grants(circuits=len(pairs), circuits_each=PEERS)))
        )
        nodes = [await stack.enter_async_context(running(await peer(kind))) for kind in kinds]
        for node in nodes:
            node.learn(helper.id, helper.addresses())
            await node.call(helper.id, "echo", Echo(b""), Echo)
        found: dict[tuple[int, int], str] = {}
        for i, j in pairs:
            a, b = nodes[i], nodes[j]
            a.learn(b.id, [*b.addresses(), f"relay://{helper.id}"])
            try:
                told = await a.call(b.id, "echo", Echo(bytes([i, j])), Echo)
            except ShoalError:
                continue
            if told == Echo(bytes([i, j])):
                found[i, j] = a.connections()[b.id].path
    paths = Counter(found.values())
    expected = sum(compatible(kinds[i], kinds[j]) for i, j in pairs)
    wrong = sum((path != "relayed") != compatible(kinds[i], kinds[j]) for (i, j), path in found.items())
    return {
        "pairs connected": len(found) / len(pairs),
        "direct share - closed form": (len(found) - paths["relayed"] - expected) / len(pairs),
        "pairs whose path is not the closed form's": wrong,
        "direct share": (len(found) - paths["relayed"]) / len(pairs),
        "of these punched": paths["punched"] / len(pairs),
    }


# -- replicas -----------------------------------------------------------------------------------------


def operate(replica: Replica, draw: random.Random) -> int:
    """One operation of five kinds; what it counted."""
    name, n = f"{draw.randrange(4)}", draw.randrange(1, 10)
    match draw.randrange(5):
        case 0:
            replica.put(name, draw.randbytes(8))
        case 1:
            replica.drop(name)
        case 2:
            replica.add(name, f"e{n}")
        case 3:
            replica.remove(name, f"e{n}")
        case _:
            replica.count(name, n)
            return n
    return 0


def replicas(seed: int) -> dict[str, float]:
    """Operations on all replicas while the network falls apart into islands, and what is equal in the end.

    Every delta travels shuffled and twice; islands change every hundred operations.
    """
    draw = random.Random(f"lattica/crdt/{seed}")
    all_of = [Replica(identity(draw), "check") for _ in range(REPLICAS)]
    island, counted, apart = [0] * REPLICAS, 0, 0

    def deliver(source: Replica, target: Replica) -> None:
        deltas: list[Signed] = source.beyond(target.heads())[0] * 2
        draw.shuffle(deltas)
        for signed in deltas:
            target.hear(signed)

    for step in range(OPERATIONS):
        if step % 100 == 0:
            island = [draw.randrange(3) for _ in all_of]
        who = draw.randrange(REPLICAS)
        counted += operate(all_of[who], draw)
        other = draw.randrange(REPLICAS)
        if island[who] == island[other]:
            deliver(all_of[who], all_of[other])
        apart += len({fingerprint(r) for r in all_of}) > 1 if step % 50 == 49 else 0
    rounds = 0
    while len({fingerprint(r) for r in all_of}) > 1 and rounds < 64:
        rounds += 1
        for target in all_of:
            deliver(draw.choice(all_of), target)

    def seen(r: Replica) -> Any:
        names = [str(i) for i in range(4)]
        return [(r.get(n), r.members(n), r.total(n)) for n in names]

    return {
        "replicas equal to the first": sum(
            fingerprint(r) == fingerprint(all_of[0]) and seen(r) == seen(all_of[0]) for r in all_of
        ),
        "counted in all - done": sum(all_of[0].total(str(i)) for i in range(4)) - counted,
        "share of looks that found replicas apart": apart / (OPERATIONS // 50),
        "rounds of gossip to agree, after the last operation": rounds,
    }


# -- content ------------------------------------------------------------------------------------------


class Corrupting(MemoryStore):
    """Holds everything and gives every full block with one bit flipped."""

    def get(self, digest: bytes) -> bytes | None:
        block = super().get(digest)
        return block if block is None or len(block) < BLOCK else bytes([block[0] ^ 1]) + block[1:]


async def content(seed: int) -> dict[str, float]:
    """16 MiB over loopback sockets from three holders, one of which corrupts what it gives."""
    draw = random.Random(f"lattica/content/{seed}")
    data = draw.randbytes(CONTENT)
    stores = [MemoryStore(), Corrupting(), MemoryStore(), MemoryStore()]
    cid = add(stores[0], data)
    async with AsyncExitStack() as stack:
        nodes = []
        for _ in stores:
            who = identity(draw)
            nodes.append(await stack.enter_async_context(running(Node(who, [await Tcp.listen(who)]))))
        stores[0] = MemoryStore()
        swaps = [Swap(node, store, draw=draw) for node, store in zip(nodes, stores, strict=True)]
        for node, store in zip(nodes[1:], stores[1:], strict=True):
            add(store, data)
            nodes[0].learn(node.id, node.addresses())
        holders = [node.id for node in nodes[1:]]
        for holder in holders:  # connected before, as neighbours are
            await swaps[0]._who_has(cid.digest, [holder])
        began = time.perf_counter()
        told = await swaps[0].fetch(cid, holders)
        took = time.perf_counter() - began
        refused = nodes[0].refusals[holders[0], "wrong block"]
    return {
        "content is right": float(read(stores[0], cid) == data),
        "duplicates / content": told.duplicates / CONTENT,
        "corrupting holder refused": float(refused == 1 and told.dropped == {holders[0]}),
        "corrupted bytes received / content": told.wrong / CONTENT,
        "honest holders that gave": len(told.givers.keys() - {holders[0]}),
        "content MB/s": CONTENT / took / 1e6,
    }


# -- calls --------------------------------------------------------------------------------------------


async def calls(seed: int) -> dict[str, float]:
    """Calls of 128 bytes over a loopback socket, both ends in this process."""
    draw = random.Random(f"lattica/rpc/{seed}")
    async with AsyncExitStack() as stack:
        ends = []
        for _ in range(2):
            who = identity(draw)
            node = Node(who, [await Tcp.listen(who)], limits=Limits(calls_per_s=1e6, calls_burst=1e6))
            node.serve("echo", Echo, answer)
            ends.append(await stack.enter_async_context(running(node)))
        client, server = ends
        client.learn(server.id, server.addresses())
        asked = Echo(draw.randbytes(PAYLOAD))

        async def some(count: int) -> None:
            for _ in range(count):
                await client.call(server.id, "echo", asked, Echo)

        await some(200)
        began = time.perf_counter()
        await some(CALLS // 4)
        single = CALLS // 4 / (time.perf_counter() - began)
        began = time.perf_counter()
        await asyncio.gather(*(some(CALLS // AT_ONCE) for _ in range(AT_ONCE)))
        return {
            "calls of 128 B a second": CALLS / (time.perf_counter() - began),
            "one after the other": single,
        }


def finish(work: Callable[[int], Coroutine[Any, Any, dict[str, float]]], seed: int) -> dict[str, float]:
    async def bounded() -> dict[str, float]:
        async with asyncio.timeout(HANG_S):
            return await work(seed)

    return asyncio.run(bounded())


@claim("lattica")
class LatticaClaim(Claim):
    bounds = (
        Bound("pairs connected", "==", 1.0, "about 70 % direct, the rest relayed"),
        Bound("direct share - closed form", "==", 0.0),
        Bound("pairs whose path is not the closed form's", "==", 0.0),
        Bound("replicas equal to the first", "==", float(REPLICAS)),
        Bound("counted in all - done", "==", 0.0),
        Bound("content is right", "==", 1.0),
        Bound("duplicates / content", "<=", 0.05),
        Bound("corrupting holder refused", "==", 1.0),
        Bound("calls of 128 B a second", ">=", 1000.0, "10 k/s local, 1.2 k/s WAN"),
    )
    config: ClassVar[dict[str, Any]] = {
        "peers": PEERS, "translators": MIX, "replicas": REPLICAS, "operations": OPERATIONS,
        "content": CONTENT, "holders": 3, "calls": CALLS, "calls at once": AT_ONCE,
    }  # fmt: skip
    notes = (
        "SIMULATED translators (RFC 4787 tables) decide packet by packet which pairs meet; connections "
        "then run in memory, relayed ones through a real relay peer. Real translators in network "
        "namespaces: tests/p2p/test_nat.py.",
        "Content and calls: real loopback sockets with Noise, all ends in one process.",
    )

    def measure(self, seed: int, progress: Progress) -> dict[str, float]:
        found: dict[str, float] = {}
        progress("40 peers behind translators", 0.0)
        found |= finish(connectivity, seed)
        progress("8 replicas, 1,000 operations", 0.6)
        found |= replicas(seed)
        progress("16 MB from 3 holders", 0.8)
        found |= finish(content, seed)
        progress("calls", 0.9)
        return found | finish(calls, seed)
