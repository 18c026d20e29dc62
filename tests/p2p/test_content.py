"""Content by hash: names, stores, and fetching from several holders of whom some lie or stall."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core import BadInput
from shoal.runtimes.p2p.identity import Identity
from shoal.runtimes.p2p.node import Node
from shoal.runtimes.p2p.store.content import (
    BLOCK,
    Cid,
    DiskStore,
    Manifest,
    MemoryStore,
    Store,
    StoreFull,
    add,
    read,
)
from shoal.runtimes.p2p.store.dht import Dht
from shoal.runtimes.p2p.store.routing import Contact
from shoal.runtimes.p2p.store.swap import BLOCKS, Swap, Unavailable
from shoal.runtimes.p2p.transport.base import Stream
from shoal.runtimes.p2p.transport.memory import Hub, Memory


def who(i: int) -> Identity:
    return Identity((i + 1).to_bytes(32, "big"))


DATA = random.Random(0).randbytes(9 * BLOCK + 1000)


def test_names_are_multiformats() -> None:
    # The CIDv1 (raw, sha2-256, base 32) of the empty content, as every IPFS tool writes it.
    empty = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
    store = MemoryStore()
    assert str(add(store, b"")) == empty and Cid.parse(empty).fits(b"")
    cid = add(store, DATA)
    body = str(cid)[1:].upper()
    raw = base64.b32decode(body + "=" * (-len(body) % 8))
    assert raw == b"\x01\x81\x04\x12\x20" + cid.digest and cid.manifest
    assert Cid.parse(str(cid)) == cid


@pytest.mark.parametrize("bad", ["", "b", "bafk", "zQmX", "b" + "a" * 58, "x" * 10_000, "b!", "ü"])
def test_what_is_no_name(bad: str) -> None:
    with pytest.raises(BadInput, match="cid"):
        Cid.parse(bad)


def test_other_spellings_of_a_name_are_refused() -> None:
    text = str(Cid(bytes(32)))
    for bad in (text.upper(), text + "=", text[:-1] + "b", " " + text):
        with pytest.raises(BadInput):
            Cid.parse(bad)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(DATA) * 8 - 1))
def test_a_flipped_bit_fails_its_name(bit: int) -> None:
    at, block = divmod(bit // 8, BLOCK)[0], bytearray(DATA)
    piece = bytes(block[at * BLOCK : (at + 1) * BLOCK])
    cid = Cid(hashlib.sha256(piece).digest())
    assert cid.fits(piece)
    flipped = bytearray(piece)
    flipped[bit // 8 - at * BLOCK] ^= 1 << bit % 8
    assert not cid.fits(bytes(flipped))


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 7])
@pytest.mark.parametrize("disk", [False, True])
def test_what_is_added_is_read(size: int, disk: bool, tmp_path: Path) -> None:
    store: Store = DiskStore(tmp_path) if disk else MemoryStore()
    cid = add(store, DATA[:size])
    assert read(store, cid) == DATA[:size]
    assert cid.manifest == (size > BLOCK)
    assert read(store, Cid(bytes(32))) is None


def test_manifests_that_do_not_add_up_are_refused() -> None:
    for size, count in (
        (BLOCK, 2),
        (2 * BLOCK + 1, 2),
        (3 * BLOCK, 2),
        (BLOCK + 1, 1),
        (2**70, 2),
        (-1, 2),
    ):
        with pytest.raises((BadInput, OverflowError)):
            Manifest.parse(msgspec.msgpack.encode([size, [bytes(32)] * count]))
    for block in (b"", b"\xc1", msgspec.msgpack.encode([2 * BLOCK, [bytes(31)] * 2])):
        with pytest.raises(BadInput, match="manifest"):
            Manifest.parse(block)


def test_a_block_over_the_limit_is_refused() -> None:
    with pytest.raises(BadInput, match="block"):
        MemoryStore().put(bytes(BLOCK + 1))
    with pytest.raises(BadInput, match="cap"):
        MemoryStore(BLOCK - 1)


@pytest.mark.parametrize("disk", [False, True])
def test_a_store_keeps_to_its_cap(disk: bool, tmp_path: Path) -> None:
    store: Store = DiskStore(tmp_path, 3 * BLOCK) if disk else MemoryStore(3 * BLOCK)
    blocks = [bytes([i]) * BLOCK for i in range(5)]
    first, second, third = (store.put(b) for b in blocks[:3])
    store.get(first)
    store.pin(second)
    fourth = store.put(blocks[3])  # the least recently used that is not pinned gives way: the third
    assert third not in store and first in store and store.bytes == 3 * BLOCK
    store.pin(first, fourth)
    with pytest.raises(StoreFull):
        store.put(blocks[4])
    store.unpin(first)
    store.put(blocks[4])
    assert first not in store and len(store) == 3
    with pytest.raises(StoreFull):
        add(store, DATA)


def test_a_disk_survives_crashes_and_damage(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    cid = add(store, DATA)
    (tmp_path / "ab").mkdir(exist_ok=True)
    (tmp_path / "ab" / "torn.part").write_bytes(b"half")
    back = DiskStore(tmp_path)
    assert read(back, cid) == DATA and back.bytes == store.bytes
    assert not (tmp_path / "ab" / "torn.part").exists()
    digest = hashlib.sha256(DATA[:BLOCK]).digest()
    (tmp_path / digest[:1].hex() / digest.hex()).write_bytes(bytes(BLOCK))
    assert back.get(digest) is None and digest not in back and read(back, cid) is None


class Peers:
    """A fetcher (peer 0) and holders, connected over memory."""

    def __init__(self) -> None:
        self.hub = Hub()
        self.nodes: list[Node] = []
        self.swaps: list[Swap] = []

    async def add(self, store: Store | None = None, dht: bool = False) -> Swap:
        identity = who(len(self.nodes))
        node = Node(identity, [await Memory.listen(identity, self.hub)])
        await node.start()
        for other in self.nodes:
            node.learn(other.id, other.addresses())
            other.learn(node.id, node.addresses())
        table = Dht(node, identity) if dht else None
        if table is not None and self.nodes:
            await table.join(Contact(self.nodes[0].id, tuple(self.nodes[0].addresses())))
        self.nodes.append(node)
        kept = MemoryStore() if store is None else store  # an empty store is false
        self.swaps.append(Swap(node, kept, dht=table, draw=random.Random(len(self.nodes))))
        return self.swaps[-1]


@asynccontextmanager
async def peers(n: int, holding: bytes = b"", dht: bool = False) -> AsyncIterator[tuple[Peers, Cid]]:
    made = Peers()
    cid = add(MemoryStore(), holding)
    try:
        for i in range(n):
            swap = await made.add(dht=dht)
            if i:
                add(swap.store, holding)
        yield made, cid
    finally:
        for node, swap in zip(made.nodes, made.swaps, strict=True):
            if swap.dht is not None:
                await swap.dht.close()
            await node.stop()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(bounded())


class Liar(MemoryStore):
    """Gives blocks with one bit flipped, of the right length."""

    def __init__(self, also_manifest: bool = False) -> None:
        super().__init__()
        self.also_manifest, self.lied = also_manifest, 0

    def get(self, digest: bytes) -> bytes | None:
        block = super().get(digest)
        if block is None or (len(block) < BLOCK and not self.also_manifest):
            return block
        self.lied += 1
        return bytes([block[0] ^ 1]) + block[1:]


@pytest.mark.parametrize("size", [10, BLOCK, BLOCK + 1, len(DATA)])
def test_fetch(size: int) -> None:
    async def test() -> None:
        async with peers(4, DATA[:size]) as (those, cid):
            holders = [node.id for node in those.nodes[1:]]
            told = await those.swaps[0].fetch(cid, holders)
            assert read(those.swaps[0].store, cid) == DATA[:size]
            assert told.duplicates == told.wrong == 0 and not told.dropped
            assert told.useful == those.swaps[0].store.bytes == told.givers.total()
            if size == len(DATA):
                assert len(told.givers) == 3, "three at a time"
            again = await those.swaps[0].fetch(cid, holders)
            assert again.useful == 0, "what is held is not asked for"

    run(test)


@pytest.mark.parametrize("also_manifest", [False, True])
def test_a_liar_is_refused_dropped_and_does_no_harm(also_manifest: bool) -> None:
    async def test() -> None:
        async with peers(4, DATA) as (those, cid):
            liar, id_ = Liar(also_manifest), those.nodes[1].id
            those.swaps[1].store = liar
            add(liar, DATA)
            told = await those.swaps[0].fetch(cid, [node.id for node in those.nodes[1:]])
            assert read(those.swaps[0].store, cid) == DATA
            assert told.duplicates <= 0.05 * told.useful
            if liar.lied:
                assert told.dropped == those.swaps[0].distrusted == {id_}
                assert those.nodes[0].refusals[id_, "wrong block"] == 1
                assert (told.wrong <= BLOCK and id_ not in told.givers) or told.givers[id_] < BLOCK
                other = add(MemoryStore(), DATA + b"x")
                add(liar, DATA + b"x")
                with pytest.raises(Unavailable):  # it is not asked again
                    await those.swaps[0].fetch(other, [id_])

    run(test)


def test_only_liars_means_unavailable() -> None:
    async def test() -> None:
        async with peers(3, DATA) as (those, cid):
            for swap in those.swaps[1:]:
                swap.store = Liar()
                add(swap.store, DATA)
            with pytest.raises(Unavailable):
                await those.swaps[0].fetch(cid, [node.id for node in those.nodes[1:]])
            assert len(those.swaps[0].distrusted) == 2
            with pytest.raises(Unavailable):
                await those.swaps[0].fetch(Cid(bytes(32)), [node.id for node in those.nodes[1:]])

    run(test)


def test_a_holder_that_goes_is_replaced_from_the_reserve() -> None:
    async def test() -> None:
        async with peers(5, DATA) as (those, cid):

            async def one_then_gone(peer: str, stream: Stream) -> None:
                digest = await stream.read_exactly(32)
                block = those.swaps[1].store.get(digest)
                assert block is not None
                await stream.write(len(block).to_bytes(4, "big") + block[:100])
                stream.abort()

            those.nodes[1]._streams[BLOCKS] = one_then_gone
            those.nodes[2]._streams[BLOCKS] = one_then_gone
            told = await those.swaps[0].fetch(cid, [node.id for node in those.nodes[1:]])
            assert read(those.swaps[0].store, cid) == DATA and not told.dropped
            assert set(told.givers) <= {those.nodes[3].id, those.nodes[4].id}

    run(test)


def test_a_holder_that_stalls_does_not_hold_up_the_rest() -> None:
    async def test() -> None:
        async with peers(3, DATA) as (those, cid):
            wait = asyncio.Event()
            given = those.nodes[1]._streams[BLOCKS]

            async def stall(peer: str, stream: Stream) -> None:
                await wait.wait()
                await given(peer, stream)  # type: ignore[arg-type]

            those.nodes[1]._streams[BLOCKS] = stall
            store = those.swaps[0].store
            manifest = those.swaps[2].store.get(cid.digest)
            assert manifest is not None
            store.put(manifest)
            told = await those.swaps[0].fetch(cid, [node.id for node in those.nodes[1:]])
            wait.set()
            assert read(store, cid) == DATA
            assert set(told.givers) == {those.nodes[2].id} and not told.dropped

    run(test)


def test_holders_with_different_parts() -> None:
    async def test() -> None:
        async with peers(3, DATA) as (those, cid):
            blocks = Manifest.parse(those.swaps[1].store.get(cid.digest) or b"").blocks
            for at, digest in enumerate(blocks):
                those.swaps[1 + at % 2].store.drop(digest)
            told = await those.swaps[0].fetch(cid, [node.id for node in those.nodes[1:]])
            assert read(those.swaps[0].store, cid) == DATA and told.duplicates == 0
            other = await those.add()
            those.swaps[2].store.drop(blocks[1])
            those.swaps[2].store.drop(blocks[0])
            with pytest.raises(Unavailable, match="blocks are nowhere"):
                await other.fetch(cid, [those.nodes[1].id, those.nodes[2].id])

    run(test)


def test_no_room_is_said_and_nobody_is_blamed() -> None:
    async def test() -> None:
        async with peers(2, DATA) as (those, cid):
            small = await those.add(MemoryStore(4 * BLOCK))
            with pytest.raises(StoreFull):
                await small.fetch(cid, [those.nodes[1].id])
            assert not small.node.refusals and not small.distrusted

    run(test)


def test_holders_are_found_in_the_table() -> None:
    async def test() -> None:
        async with peers(5, DATA, dht=True) as (those, cid):
            for swap in those.swaps[1:4]:
                assert swap.dht is not None
                await swap.dht.provide(cid.digest)
            told = await those.swaps[0].fetch(cid)
            assert read(those.swaps[0].store, cid) == DATA
            assert set(told.givers) <= {node.id for node in those.nodes[1:4]}

    run(test)


def test_a_draw_gives_new_holders_a_chance() -> None:
    async def test() -> None:
        async with peers(9, b"x") as (those, cid):
            third = set()
            for _ in range(30):
                order = await those.swaps[0]._who_has(cid.digest, [node.id for node in those.nodes[1:]])
                assert len(order) == 8
                third.add(order[2])
            assert len(third) >= 3

    run(test)
