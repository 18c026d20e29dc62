"""Streams on one pipe: a model of bytes in flight, fairness, bounds, and a peer that breaks the rules."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transports import drain, run

from shoal.runtimes.p2p.transport import mux
from shoal.runtimes.p2p.transport.mux import STREAMS, MuxConnection
from shoal.runtimes.p2p.transport.outbox import (
    LARGE,
)
from shoal.runtimes.p2p.transport.pipe import MemoryPipe
from shoal.runtimes.p2p.transport.stream import WINDOW, MuxStream


@asynccontextmanager
async def ends(limit: int = 1 << 18) -> AsyncIterator[tuple[MuxConnection, MuxConnection]]:
    near, far = MemoryPipe.pair(limit)
    one = MuxConnection(near, "b" * 64, dialled=True, path="direct", remote="memory://b")
    other = MuxConnection(far, "a" * 64, dialled=False, path="direct", remote="memory://a")
    try:
        yield one, other
    finally:
        await one.close()
        await other.close()


@settings(deadline=None, max_examples=40)
@given(
    limit=st.sampled_from([7, 1000, 1 << 18]),
    plans=st.lists(
        st.tuples(st.booleans(), st.lists(st.sampled_from([0, 1, 8, 5000, LARGE, 90_000]), max_size=5)),
        min_size=1,
        max_size=6,
    ),
    most=st.integers(1, 100_000),
)
def test_every_stream_delivers_its_own_bytes(limit: int, plans: list[Any], most: int) -> None:
    """Streams from both sides, interleaved at will, over pipes that may hold almost nothing."""
    if limit == 7:
        plans = [(side, [size % 500 for size in sizes]) for side, sizes in plans]

    async def test() -> None:
        async with ends(limit) as both:
            got: dict[bytes, bytes] = {}
            sent: dict[bytes, bytes] = {}

            async def send(name: bytes, opener: MuxConnection, sizes: list[int]) -> None:
                stream = await opener.open()
                draw = random.Random(name)
                sent[name] = b"".join(parts := [name, *(draw.randbytes(size) for size in sizes)])
                for part in parts:
                    await stream.write(part)
                await stream.finish()
                assert await stream.read() == b""

            async def receive(taker: MuxConnection, count: int) -> None:
                async def one(stream: Any) -> None:
                    name = await stream.read_exactly(1)
                    data = bytearray(name)
                    while part := await stream.read(most):
                        assert len(part) <= most
                        data += part
                    got[name] = bytes(data)
                    await stream.finish()

                async with asyncio.TaskGroup() as group:
                    for _ in range(count):
                        group.create_task(one(await taker.accept()))

            async with asyncio.TaskGroup() as group:
                for index, (side, sizes) in enumerate(plans):
                    group.create_task(send(bytes([index]), both[side], sizes))
                for side in (False, True):
                    group.create_task(receive(both[not side], sum(s == side for s, _ in plans)))
            assert got == sent
            for end in both:
                assert not end._streams and end._own_open == end._peer_open == end._grown == 0

    run(test())


def test_writers_take_turns() -> None:
    async def test() -> None:
        async with ends(1 << 14) as (one, other):
            size, done = 3_000_000, [0, 0, 0]

            async def take(stream: Any) -> None:
                index = (await stream.read_exactly(1))[0]
                while part := await stream.read():
                    done[index] += len(part)
                    if done[index] == size:
                        assert min(done) > size / 2

            async def give(index: int) -> None:
                stream = await one.open()
                await stream.write(bytes([index]))
                await stream.write(bytes(size))
                await stream.finish()

            async with asyncio.TaskGroup() as group:
                for index in range(3):
                    group.create_task(give(index))
                for _ in range(3):
                    group.create_task(take(await other.accept()))
            assert done == [size] * 3

    run(test())


def test_a_cancelled_writer_holds_up_nobody() -> None:
    async def test() -> None:
        async with ends(1 << 12) as (one, other):
            writers = []
            for _ in range(6):
                stream = await one.open()
                writers.append(asyncio.create_task(stream.write(bytes(WINDOW))))
            await asyncio.sleep(0)
            for writer in writers[:5]:
                writer.cancel()
            reading: list[asyncio.Task[bytes]] = []

            async def rest() -> None:
                while True:
                    reading.append(asyncio.create_task(drain(await other.accept())))

            accepting = asyncio.create_task(rest())
            await writers[5]
            stream = await one.open()
            await stream.write(b"through")
            accepting.cancel()
            for task in reading:
                task.cancel()

    run(test())


def test_a_window_grows_for_a_reader_that_keeps_up() -> None:
    async def test() -> None:
        async with ends() as (one, other):
            stream = await one.open()
            writing = asyncio.create_task(stream.write(bytes(30_000_000)))
            seen = await other.accept()
            await seen.read_exactly(30_000_000)
            await writing
            assert isinstance(seen, MuxStream)
            assert seen.grown == mux.MAX_WINDOW - WINDOW == other._grown
            seen.abort()
            assert other._grown == 0

    run(test())


def test_more_streams_wait_their_turn() -> None:
    async def test() -> None:
        async with ends() as (one, other):
            streams = [await one.open() for _ in range(STREAMS)]
            for stream in streams:
                await stream.write(b"x")
            waiting = asyncio.create_task(one.open())
            await asyncio.sleep(0.01)
            assert not waiting.done()
            streams[3].abort()
            await (await waiting).write(b"y")
            taken = [await other.accept() for _ in range(STREAMS + 1)]
            assert await taken[-1].read() == b"y"
            assert other.alive and other.violation is None

    run(test())


def test_pings_measure_and_keep_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mux, "QUIET", 0.05)

    async def test() -> None:
        async with ends() as (one, other):
            trips = await asyncio.gather(*(one.ping() for _ in range(10)))
            assert 0 < trips[0] < 5 and len(set(trips)) == 1 and one.round_trip == trips[0]
            await asyncio.sleep(0.3)
            assert one.alive and other.alive

    run(test())
