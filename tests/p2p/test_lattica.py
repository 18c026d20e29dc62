"""System 039 as a whole: who can meet, models by version, and the refusals that its entry lists."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import product

import msgspec
import pytest
import torch
from safetensors.torch import save

from shoal.catalog.checks.lattica import LatticaClaim, compatible, replicas
from shoal.core import BadInput, ShoalError
from shoal.runtimes.p2p.identity import Identity
from shoal.runtimes.p2p.node import Node
from shoal.runtimes.p2p.store.content import DiskStore, MemoryStore, Store, add
from shoal.runtimes.p2p.store.dht import Dht
from shoal.runtimes.p2p.store.entries import key_of
from shoal.runtimes.p2p.store.models import Models, layout_of, unpack
from shoal.runtimes.p2p.store.routing import Contact
from shoal.runtimes.p2p.store.swap import Swap
from shoal.runtimes.p2p.transport.base import Unreachable
from shoal.runtimes.p2p.transport.memory import Hub, Memory
from shoal.runtimes.p2p.transport.simulated import KINDS, Internet, Kind, Simulated, Translator
from shoal.runtimes.p2p.transport.tcp import Tcp


def who(i: int) -> Identity:
    return Identity((i + 1).to_bytes(32, "big"))


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(bounded())


# -- translators ------------------------------------------------------------------------------------------


def test_translators_by_their_tables() -> None:
    server, other, same_host = ("1.1.1.1", 1), ("2.2.2.2", 2), ("1.1.1.1", 9)
    for kind, expected in {
        "full-cone": (True, True, True),
        "address-cone": (True, True, False),
        "port-cone": (True, False, False),
        "symmetric": (True, False, False),
    }.items():
        box = Translator("9.9.9.9", *KINDS[kind])  # type: ignore[index]
        assert not box.enters(40_000, server), "nothing has been sent out"
        _, port = box.leaves(server)
        assert (box.enters(port, server), box.enters(port, same_host), box.enters(port, other)) == expected
        assert (box.leaves(other)[1] == port) == (kind != "symmetric")
        assert box.leaves(server)[1] == port


@pytest.mark.parametrize(("a", "b"), list(product(KINDS, KINDS)))
def test_dials_succeed_where_translators_are_compatible(a: Kind, b: Kind) -> None:
    async def test() -> None:
        net = Internet()
        one, two = await Simulated.listen(who(0), net, a), await Simulated.listen(who(1), net, b)
        try:
            connection = await one.dial(two.id, two.addresses())
            assert compatible(a, b)
            assert (connection.path == "direct") == (b in {"open", "full-cone"})
            other = await two.accept()
            stream = await connection.open()
            await stream.write(b"hello")
            assert await (await other.accept()).read_exactly(5) == b"hello"
        except Unreachable:
            assert not compatible(a, b)
        finally:
            await one.close()
            await two.close()

    run(test)


def test_the_closed_form_of_compatible_pairs() -> None:
    # Symmetric with symmetric or port-restricted: 3 of the 16 ordered pairs of the four kinds of NAT.
    kinds = [kind for kind in KINDS if kind != "open"]
    assert sum(not compatible(a, b) for a, b in product(kinds, kinds)) == 3


def test_replicas_agree_and_the_bounds_are_the_entrys() -> None:
    found = replicas(99)
    assert found["replicas equal to the first"] == 8 and found["counted in all - done"] == 0
    assert found["share of looks that found replicas apart"] > 0.5
    bounds = {(b.name, b.relation, b.threshold) for b in LatticaClaim.bounds}
    assert ("duplicates / content", "<=", 0.05) in bounds
    assert ("calls of 128 B a second", ">=", 1000.0) in bounds


# -- models -----------------------------------------------------------------------------------------------


def model(fill: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((300, 300), fill), "b": torch.arange(3, dtype=torch.float64)}


@asynccontextmanager
async def peers(n: int, stores: dict[int, Store] | None = None) -> AsyncIterator[list[Models]]:
    hub, made, nodes = Hub(), [], []
    try:
        for i in range(n):
            node = Node(who(i), [await Memory.listen(who(i), hub)])
            await node.start()
            nodes.append(node)
            dht = Dht(node, who(i))
            if i:
                await dht.join(Contact(nodes[0].id, tuple(nodes[0].addresses())))
            store = (stores or {}).get(i, MemoryStore())
            made.append(Models("run", layout_of(model(0.0)), dht, Swap(node, store, dht=dht)))
        yield made
    finally:
        for each in made:
            await each.dht.close()
        for node in nodes:
            await node.stop()


def test_the_newest_model_is_fetched_and_equal() -> None:
    async def test() -> None:
        async with peers(4) as those:
            assert await those[0].newest() is None
            await those[1].publish(3, model(3.0))
            await those[2].publish(7, model(7.0))
            version, got = await those[3].newest() or pytest.fail("none")
            assert (version.tick, version.publisher) == (7, those[2].dht.identity.id)
            assert all(torch.equal(got[k], v) for k, v in model(7.0).items())
            assert await those[3].newest(after=7) is None
            version, got = await those[3].newest(most=6) or pytest.fail("none")
            assert version.tick == 3 and got["w"][0, 0] == 3
            await those[2].publish(9, model(9.0))
            assert [v.tick for v in await those[0].versions()] == [9, 3]
            with pytest.raises(BadInput, match="model"):
                await those[1].publish(4, {"w": torch.zeros(1)})

    run(test)


def test_unsound_models_are_passed_over_and_counted() -> None:
    async def test() -> None:
        async with peers(4) as those:
            await those[1].publish(1, model(1.0))
            bad = those[2]
            for tick, data in enumerate(
                [b"noise", save({"w": torch.zeros(2)}), save(model(float("nan")))], start=10
            ):
                cid = add(bad.swap.store, data)
                said = msgspec.msgpack.encode([str(cid), bad._digest])
                await bad.dht.publish(key_of("model", "run"), said, sequence=tick)
                version, _ = await those[3].newest() or pytest.fail("none")
                assert version.tick == 1
            assert those[3].dht.node.refusals[bad.dht.identity.id, "unsound model"] == 3
            await bad.dht.publish(key_of("model", "run"), b"\xc1", sequence=20)
            assert [v.tick for v in await those[3].versions()] == [1]
            assert those[3].dht.node.refusals[bad.dht.identity.id, "malformed model version"] == 1
            those[3].trusted = {bad.dht.identity.id}
            assert await those[3].newest() is None

    run(test)


def test_a_version_that_nobody_has_gives_way_to_the_next() -> None:
    async def test() -> None:
        async with peers(3) as those:
            await those[0].publish(1, model(1.0))
            version = await those[1].publish(2, model(2.0))
            those[1].swap.store.drop(version.cid.digest)
            found, _ = await those[2].newest() or pytest.fail("none")
            assert found.tick == 1

    run(test)


@pytest.mark.parametrize("seed", range(5))
def test_mutated_models_never_crash(seed: int) -> None:
    draw, good = random.Random(seed), save({"w": torch.ones(4, 4), "b": torch.zeros(2)})
    layout = layout_of({"w": torch.ones(4, 4), "b": torch.zeros(2)})
    assert unpack(good, layout)["w"].sum() == 16
    refused = 0
    for _ in range(400):
        data = bytearray(good)
        for _ in range(draw.randrange(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        try:
            got = unpack(bytes(data[: draw.choice([len(data), draw.randrange(len(data))])]), layout)
            assert layout_of(got) == layout
        except BadInput:
            refused += 1
    assert refused > 100


# -- bad input --------------------------------------------------------------------------------------------


def test_addresses_that_are_none_and_ports_in_use() -> None:
    async def test() -> None:
        one = await Tcp.listen(who(0))
        try:
            port = int(one.addresses()[0].rpartition(":")[2])
            with pytest.raises(ShoalError):
                await Tcp.listen(who(1), port=port)
            for bad in ("tcp://", "tcp://127.0.0.1:x", "/ip4/127.0.0.1/tcp/1", "simulated://1:2", ""):
                with pytest.raises(ShoalError):
                    await one.dial(who(1).id, [bad])
        finally:
            await one.close()
        net = Internet()
        two = await Simulated.listen(who(0), net, "open")
        for bad in ("simulated://", "simulated://10.0.0.9:1", "simulated://10.0.0.1:x", "x"):
            with pytest.raises(Unreachable):
                await two.dial(who(1).id, [bad])
        with pytest.raises(BadInput, match="kind"):
            await Simulated.listen(who(2), net, "conical")  # type: ignore[arg-type]
        await two.close()

    run(test)


def test_a_disk_store_serves_models_after_a_restart(tmp_path: object) -> None:
    async def test() -> None:
        store = DiskStore(str(tmp_path))
        async with peers(2, {0: store}) as those:
            version = await those[0].publish(5, model(5.0))
            those[0].swap.store = DiskStore(str(tmp_path))
            found, _ = await those[1].newest() or pytest.fail("none")
            assert found == version

    run(test)
