"""What every transport must do, over each of them."""

from __future__ import annotations

import asyncio
import hashlib
import random
from typing import Any

import pytest
from transports import WAYS, Way, drain, pair, run, two

from shoal.runtimes.p2p.identity import Identity
from shoal.runtimes.p2p.transport.base import Broken, Connection, Unreachable


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    return WAYS[request.param]


async def echo(connection: Connection) -> None:
    """Answer every stream with what came."""

    async def answer(stream: Any) -> None:
        while part := await stream.read():
            await stream.write(part)
        await stream.finish()

    async with asyncio.TaskGroup() as group:
        while True:
            group.create_task(answer(await connection.accept()))


async def ask(connection: Connection, data: bytes) -> bytes:
    stream = await connection.open()

    async def say() -> None:
        await stream.write(data)
        await stream.finish()

    saying = asyncio.create_task(say())
    answer = await drain(stream)
    await saying
    return answer


def test_connect(way: Way) -> None:
    async def test() -> None:
        async with two(way) as (one, other):
            dialled = await one.dial(other.id, other.addresses())
            accepted = await other.accept()
            assert (dialled.peer, accepted.peer) == (other.id, one.id)
            assert (dialled.dialled, accepted.dialled) == (True, False)
            assert dialled.alive and accepted.alive
            assert dialled.path == accepted.path == "direct"
            assert dialled.remote == other.addresses()[0]
            assert accepted.remote.startswith(one.scheme + "://")
            for opener, taker in ((dialled, accepted), (accepted, dialled)):
                stream = await opener.open()
                await stream.write(b"ping")
                seen = await taker.accept()
                assert await seen.read_exactly(4) == b"ping"
                await seen.write(memoryview(b"pong"))
                assert await stream.read_exactly(4) == b"pong"

    run(test())


def test_wrong_key_and_nobody(way: Way) -> None:
    async def test() -> None:
        async with two(way) as (one, other):
            with pytest.raises(Unreachable):
                await one.dial(Identity.create().id, other.addresses())
            with pytest.raises(Unreachable):
                await one.dial(other.id, [])
            with pytest.raises(Unreachable):
                await one.dial(other.id, ["gopher://elsewhere:70", "nonsense", "tcp://[", "tcp://a:b"])
            with pytest.raises(Unreachable):
                async with asyncio.timeout(3):
                    await one.dial(other.id, [way.nowhere])
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await other.accept()
            dialled = await one.dial(other.id, [way.nowhere, *other.addresses()])
            assert dialled.peer == other.id

    run(test())


def test_many_streams(way: Way) -> None:
    async def test() -> None:
        async with pair(way) as (one, other):
            servers = [asyncio.create_task(echo(connection)) for connection in (one, other)]
            draw = random.Random(1)
            sizes = [draw.choice([1, 9, 1000, 70_000, 300_000]) for _ in range(300)]
            data = [draw.randbytes(size) for size in sizes]
            answers = await asyncio.gather(
                *(ask(one if k % 2 else other, part) for k, part in enumerate(data))
            )
            assert answers == data
            for server in servers:
                server.cancel()

    run(test())


def test_a_stalled_reader_holds_up_its_writer_alone(way: Way) -> None:
    async def test() -> None:
        async with pair(way) as (one, other):
            stream = await one.open()
            written = 0

            async def flood() -> None:
                nonlocal written
                while True:
                    await stream.write(bytes(10_000))
                    written += 10_000

            flooding = asyncio.create_task(flood())
            stalled = await other.accept()
            seen = -1
            while seen < written:
                seen = written
                await asyncio.sleep(0.05)
            assert 0 < written <= way.held
            server = asyncio.create_task(echo(other))
            assert await ask(one, b"x" * 100_000) == b"x" * 100_000
            assert written == seen
            assert await stalled.read_exactly(2 * way.held) == bytes(2 * way.held)
            assert written > seen
            flooding.cancel()
            server.cancel()

    run(test())


def test_half_close(way: Way) -> None:
    async def test() -> None:
        async with pair(way) as (one, other):
            stream = await one.open()
            await stream.write(b"question")
            await stream.finish()
            seen = await other.accept()
            assert await drain(seen) == b"question"
            assert await seen.read() == b""
            with pytest.raises(Broken):
                await seen.read_exactly(1)
            with pytest.raises(Broken):
                await stream.write(b"more")
            await seen.write(b"answer" * 5_000)
            await seen.finish()
            assert await drain(stream) == b"answer" * 5_000

    run(test())


def test_abort(way: Way) -> None:
    async def test() -> None:
        async with pair(way) as (one, other):
            stream = await one.open()
            await stream.write(b"a")
            seen = await other.accept()
            assert await seen.read() == b"a"
            reading = asyncio.create_task(seen.read())
            await asyncio.sleep(0)
            stream.abort()
            with pytest.raises(Broken):
                await reading
            with pytest.raises(Broken):
                while True:
                    await seen.write(bytes(1 << 16))
            with pytest.raises(Broken):
                await stream.read()
            with pytest.raises(Broken):
                await stream.write(b"b")
            server = asyncio.create_task(echo(other))
            assert one.alive and await ask(one, b"still here") == b"still here"
            server.cancel()

    run(test())


@pytest.mark.parametrize("end", [0, 1])
def test_a_cut_breaks_every_wait(way: Way, end: int) -> None:
    async def test() -> None:
        async with pair(way) as ends:
            waits: list[asyncio.Task[Any]] = []
            for one, other in (ends, ends[::-1]):
                stream = await one.open()
                await stream.write(b"x")
                seen = await other.accept()
                await seen.read()
                waits.append(asyncio.create_task(stream.read()))
                waits.append(asyncio.create_task(stream.write(bytes(50 * way.held))))
                waits.append(asyncio.create_task(one.accept()))
            await asyncio.sleep(0.1)
            assert not any(wait.done() for wait in waits)
            way.cut(ends[end])
            for result in await asyncio.gather(*waits, return_exceptions=True):
                assert isinstance(result, Broken)
            for connection in ends:
                assert not connection.alive
                with pytest.raises(Broken):
                    await (await connection.open()).write(b"y")
                with pytest.raises(Broken):
                    await connection.accept()

    run(test())


def test_a_cut_in_the_middle_of_a_transfer(way: Way) -> None:
    async def test() -> None:
        async with pair(way) as (one, other):
            stream = await one.open()
            writing = asyncio.create_task(stream.write(bytes(20_000_000)))
            seen = await other.accept()
            await seen.read_exactly(1_000_000)
            way.cut(one)
            with pytest.raises(Broken):
                await drain(seen)
            with pytest.raises(Broken):
                await writing

    run(test())


def test_twenty_megabytes_arrive_intact(way: Way) -> None:
    async def test() -> None:
        data = random.Random(2).randbytes(20_000_000)
        async with pair(way) as (one, other):
            stream = await one.open()

            async def send() -> None:
                at, draw = 0, random.Random(3)
                while at < len(data):
                    size = draw.choice([1, 100, 5_000, 16_384, 65_519, 300_000, 2_000_000])
                    await stream.write(memoryview(data)[at : at + size])
                    at += size
                await stream.finish()

            sending = asyncio.create_task(send())
            digest = hashlib.sha256()
            seen = await other.accept()
            while part := await seen.read(123_457):
                assert len(part) <= 123_457
                digest.update(part)
            await sending
            assert digest.digest() == hashlib.sha256(data).digest()

    run(test())


def test_simultaneous_dials_give_two_connections(way: Way) -> None:
    async def test() -> None:
        async with two(way) as (one, other):
            ends = await asyncio.gather(
                one.dial(other.id, other.addresses()),
                other.dial(one.id, one.addresses()),
                one.accept(),
                other.accept(),
            )
            assert [end.peer for end in ends] == [other.id, one.id, other.id, one.id]
            for opener, taker in ((ends[0], ends[3]), (ends[1], ends[2])):
                server = asyncio.create_task(echo(taker))
                assert await ask(opener, b"hello") == b"hello"
                server.cancel()

    run(test())


def test_closing_a_connection_delivers_what_was_finished(way: Way) -> None:
    async def test() -> None:
        async with pair(way) as (one, other):
            stream = await one.open()
            await stream.write(b"last words")
            await stream.finish()
            seen = await other.accept()
            assert await drain(seen) == b"last words"
            await seen.finish()
            waiting = asyncio.create_task(other.accept())
            await one.close()
            await one.close()
            with pytest.raises(Broken):
                await waiting
            assert not one.alive and not other.alive

    run(test())


def test_a_closed_transport(way: Way) -> None:
    async def test() -> None:
        async with two(way) as (one, other):
            dialled = await one.dial(other.id, other.addresses())
            accepting = asyncio.create_task(other.accept())
            assert (await accepting).peer == one.id
            accepting = asyncio.create_task(other.accept())
            addresses = other.addresses()
            await asyncio.sleep(0)
            await other.close()
            with pytest.raises(Broken):
                await accepting
            with pytest.raises(Broken):
                await dialled.accept()
            with pytest.raises(Unreachable):
                await other.dial(one.id, one.addresses())
            with pytest.raises(Unreachable):
                async with asyncio.timeout(5):
                    await one.dial(other.id, addresses)
        assert len(asyncio.all_tasks()) == 1

    run(test())
