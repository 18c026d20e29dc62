"""The hash table: buckets, lookups, records that nobody can forge, keep alive or overwrite."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest

from shoal.core import BadInput
from shoal.runtimes.p2p.identity import Identity
from shoal.runtimes.p2p.node import Node
from shoal.runtimes.p2p.store.dht import Dht
from shoal.runtimes.p2p.store.entries import (
    MOST_PER_KEY,
    Entry,
    Shelf,
    SignedEntry,
    key_of,
    open_entry,
    sign_entry,
)
from shoal.runtimes.p2p.store.routing import Contact, Table, place, prefix
from shoal.runtimes.p2p.transport.memory import Hub, Memory


def who(i: int) -> Identity:
    return Identity((i + 1).to_bytes(32, "big"))


class Clock:
    """Seconds that pass when the test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Swarm:
    """Peers with a table each, over memory."""

    def __init__(self, clock: Clock) -> None:
        self.hub, self.clock = Hub(), clock
        self.nodes: list[Node] = []
        self.tables: list[Dht] = []

    async def add(self, **how: int) -> Dht:
        identity = who(len(self.nodes))
        node = Node(identity, [await Memory.listen(identity, self.hub)])
        await node.start()
        table = Dht(node, identity, clock=self.clock, **how)  # type: ignore[arg-type]
        if self.tables:
            await table.join(Contact(self.nodes[0].id, tuple(self.nodes[0].addresses())))
        self.nodes.append(node)
        self.tables.append(table)
        return table

    async def kill(self, i: int) -> None:
        await self.tables[i].close()
        await self.nodes[i].stop()


@asynccontextmanager
async def swarm(n: int, **how: int) -> AsyncIterator[Swarm]:
    made = Swarm(Clock())
    try:
        for _ in range(n):
            await made.add(**how)
        yield made
    finally:
        for i in range(len(made.nodes)):
            await made.kill(i)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(bounded())


def test_place_is_the_hash_of_the_key() -> None:
    import hashlib

    peer = who(0).id
    assert place(peer) == int(hashlib.sha256(bytes.fromhex(peer)).hexdigest(), 16)


def test_nearest_equals_sorting_by_distance() -> None:
    draw = random.Random(0)
    own, others = who(0).id, [who(i).id for i in range(1, 60)]
    table = Table(own, k=60)
    for peer in others:
        table.seen(Contact(peer))
    assert len(table) == 59
    for _ in range(20):
        target = draw.getrandbits(256)
        expected = sorted(others, key=lambda peer: place(peer) ^ target)[:7]
        assert [c.peer for c in table.nearest(target, 7)] == expected


def test_full_bucket_keeps_the_old_while_it_lives() -> None:
    own = who(0).id
    far = [p for i in range(1, 400) if (place(p := who(i).id) ^ place(own)).bit_length() == 256]
    table = Table(own, k=20)
    for peer in far[:20]:
        assert table.seen(Contact(peer)) is None
    assert table.seen(Contact(far[20])) == Contact(far[0]), "the one heard of longest ago is to be probed"
    assert far[20] not in table
    table.seen(Contact(far[0]))  # it answered
    assert table.seen(Contact(far[21])) == Contact(far[1])
    table.gone(far[1])
    assert far[21] in table and far[1] not in table and len(table) == 20
    assert table.seen(Contact(own)) is None and own not in table


def test_one_network_does_not_fill_a_bucket() -> None:
    assert prefix("tcp://8.8.4.4:1") == "8.8.4.0/24" and prefix("tcp://127.0.0.1:1") == ""
    assert prefix("tcp://[2001:4860:4860::8888]:1") == "2001:4860:4860::/48" and prefix("memory://x") == ""
    own = who(0).id
    far = [p for i in range(1, 60) if (place(p := who(i).id) ^ place(own)).bit_length() == 256]
    table = Table(own, per_prefix=2)
    for at, peer in enumerate(far[:10]):
        table.seen(Contact(peer), f"tcp://8.8.4.{at}:1")
    assert len(table) == 2
    table.seen(Contact(far[10]), "tcp://9.9.9.9:1")
    assert len(table) == 3


def entry(i: int = 0, key: bytes = bytes(32), subkey: str = "", sequence: int = 0, **how: object) -> Entry:
    return Entry(key, who(i).id, subkey, sequence, how.get("life", 60.0), how.get("value", b"v"))  # type: ignore[arg-type]


def test_expired_records_vanish_on_the_holders_clock() -> None:
    clock = Clock()
    shelf = Shelf(clock)
    said = entry(life=60.0)
    signed = sign_entry(who(0), said)
    assert shelf.put(said, signed) == (True, 0)
    clock.now = 59.9
    assert shelf.get(said.key) == [signed]
    shelf.put(said, signed)  # republished
    clock.now = 119.8
    assert shelf.get(said.key) == [signed]
    clock.now = 119.91
    assert shelf.get(said.key) == [] and len(shelf) == 0


def test_newer_replaces_older_and_others_stay() -> None:
    shelf = Shelf(Clock())

    def put(said: Entry, i: int = 0) -> tuple[bool, int]:
        return shelf.put(said, sign_entry(who(i), said))

    assert put(entry(sequence=3)) == (True, 3)
    assert put(entry(sequence=2)) == (False, 3)
    assert put(entry(sequence=3, value=b"other")) == (False, 3)
    assert put(entry(sequence=4)) == (True, 4)
    assert put(entry(1, sequence=0), 1) == (True, 0)
    assert put(entry(subkey="b")) == (True, 0)
    found = {(e.publisher, e.subkey, e.sequence) for s in shelf.get(bytes(32)) if (e := open_entry(s))}
    assert found == {(who(0).id, "", 4), (who(1).id, "", 0), (who(0).id, "b", 0)}


def test_a_shelf_is_bounded_by_key() -> None:
    shelf = Shelf(Clock())
    for i in range(MOST_PER_KEY + 5):
        said = entry(subkey=str(i))
        assert shelf.put(said, SignedEntry(b"", bytes(64)))[0] == (i < MOST_PER_KEY)
    assert len(shelf) == MOST_PER_KEY


def test_forged_and_malformed_entries_are_not_opened() -> None:
    signed = sign_entry(who(0), entry())
    assert open_entry(signed) == entry()
    flipped = bytes([*signed.payload[:-1], signed.payload[-1] ^ 1])
    for bad in (
        SignedEntry(flipped, signed.signature),
        SignedEntry(signed.payload, bytes(64)),
        sign_entry(who(1), entry()),
        SignedEntry(b"\xc1", bytes(64)),
        SignedEntry(b"\x96\xa2\x00\x80", bytes(64)),
    ):
        assert open_entry(bad) is None
    for value in (
        entry(life=0.0),
        entry(life=math.inf),
        entry(value=bytes(1025)),
        entry(sequence=-1),
        entry(key=b"short"),
    ):
        with pytest.raises(BadInput, match="entry"):
            sign_entry(who(0), value)


def test_keys_of_different_parts_differ() -> None:
    assert key_of("ab", "c") != key_of("a", "bc") and key_of("a", b"b") == key_of(b"a", "b")
    assert len(key_of("x")) == 32


def test_lookup_finds_the_true_nearest_with_few_questions() -> None:
    async def test() -> None:
        async with swarm(32, k=6) as peers:
            draw = random.Random(1)
            for _ in range(8):
                key = draw.randbytes(32)
                target = int.from_bytes(key, "big")
                asker = peers.tables[draw.randrange(32)]
                before = asker.asked
                found = [c.peer for c in await asker.nearest(key)]
                every = [n.id for n in peers.nodes if n is not asker.node]
                assert found == sorted(every, key=lambda peer: place(peer) ^ target)[:6]
                assert asker.asked - before < 31, "not everybody is asked"

    run(test)


def test_records_are_found_from_anywhere_and_outlive_their_holders() -> None:
    async def test() -> None:
        async with swarm(20, k=5) as peers:
            key = key_of("name")
            assert await peers.tables[3].publish(key, b"from 3") == 5
            assert await peers.tables[4].publish(key, b"from 4") >= 5
            for reader in (0, 9, 19):
                assert [e.value for e in await peers.tables[reader].find(key)] == sorted(
                    [b"from 3", b"from 4"], key=lambda v: peers.nodes[int(v[-1:])].id
                )
            await peers.tables[3].publish(key, b"newer")
            assert b"newer" in [e.value for e in await peers.tables[9].find(key)]
            target = int.from_bytes(key, "big")
            near = sorted(range(20), key=lambda i: place(peers.nodes[i].id) ^ target)
            for i in [i for i in near if i not in (3, 4, 9)][:3]:
                await peers.kill(i)
            assert len(await peers.tables[9].find(key)) == 2
            peers.clock.now += 3600.1
            assert await peers.tables[9].find(key) == []

    run(test)


def test_providers_and_their_addresses() -> None:
    async def test() -> None:
        async with swarm(8) as peers:
            digest = bytes(range(32))
            await peers.tables[1].provide(digest)
            await peers.tables[2].provide(digest)
            late = await peers.add()
            assert set(await late.providers(digest)) == {peers.nodes[1].id, peers.nodes[2].id}
            assert late.node.known(peers.nodes[1].id)[0] == peers.nodes[1].addresses()[0]
            assert peers.nodes[1].id not in await peers.tables[1].providers(digest)

    run(test)


def test_a_peer_that_lost_its_state_goes_on_from_its_last_number() -> None:
    async def test() -> None:
        async with swarm(4) as peers:
            key = key_of("x")
            await peers.tables[1].publish(key, b"old", sequence=41)
            peers.tables[1]._published.clear()
            await peers.tables[1].publish(key, b"new")
            (found,) = await peers.tables[2].find(key)
            assert (found.value, found.sequence) == (b"new", 42)

    run(test)


def test_only_its_publisher_may_store_a_record() -> None:
    async def test() -> None:
        async with swarm(3) as peers:
            said = entry(1)
            signed = sign_entry(who(1), said)
            kept = await peers.tables[2]._store(peers.nodes[0].id, signed)  # a replay by somebody else
            assert not kept.kept and await peers.tables[0].find(said.key) == []
            reason = "table entry not signed by who stores it"
            assert peers.nodes[0].refusals[peers.nodes[2].id, reason] == 1
            kept = await peers.tables[1]._store(peers.nodes[0].id, signed)
            assert kept.kept and [e.publisher for e in await peers.tables[2].find(said.key)] == [who(1).id]

    run(test)


def test_a_holder_that_lies_is_counted_and_not_believed() -> None:
    async def test() -> None:
        async with swarm(3) as peers:
            liar, key = peers.tables[1], key_of("y")
            forged = msgspec.structs.replace(sign_entry(who(2), entry(2, key)), signature=bytes(64))
            liar.shelf.get = lambda _: [forged]  # type: ignore[method-assign]
            assert await peers.tables[0].find(key) == []
            assert peers.nodes[0].refusals[peers.nodes[1].id, "forged table entry"] == 1

    run(test)


def test_hearsay_does_not_replace_where_a_peer_is() -> None:
    async def test() -> None:
        async with swarm(3) as peers:
            asker, real = peers.tables[2], peers.nodes[1]
            asker._learn(Contact(real.id, ("memory://nowhere",)))
            assert real.addresses()[0] in asker.node.known(real.id)
            assert asker.node.known(real.id)[-1] == "memory://nowhere"

    run(test)


def test_upkeep_republishes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with swarm(3) as peers:
            key = key_of("z")
            await peers.tables[1].publish(key, b"v", lifetime_s=0.2)
            peers.clock.now += 0.3
            assert await peers.tables[2].find(key) == []
            task = asyncio.create_task(peers.tables[1].upkeep())
            while not await peers.tables[2].find(key):
                await asyncio.sleep(0.05)
            peers.tables[1].withdraw(key)
            task.cancel()
            peers.clock.now += 0.3
            assert await peers.tables[2].find(key) == []

    run(test)


def test_bad_settings() -> None:
    for how in ({"k": 21}, {"k": 0}, {"alpha": 0}):
        with pytest.raises(BadInput, match="k = "):
            Dht(Node(who(0), []), who(0), **how)  # type: ignore[arg-type]
