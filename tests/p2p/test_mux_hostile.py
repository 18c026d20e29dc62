"""A peer that breaks the rules of the streams, or keeps to them with bad intent."""

from __future__ import annotations

import asyncio
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transports import run

from shoal.runtimes.p2p.transport import mux, outbox
from shoal.runtimes.p2p.transport.base import Broken
from shoal.runtimes.p2p.transport.mux import STREAMS, MuxConnection
from shoal.runtimes.p2p.transport.outbox import (
    ABORT,
    CLOSE,
    DATA,
    FINISH,
    GRANT,
    HEAD,
    OUT_HARD,
    PING,
    PONG,
)
from shoal.runtimes.p2p.transport.pipe import MemoryPipe
from shoal.runtimes.p2p.transport.stream import WINDOW, MuxStream


class Hostile:
    """One end of a pipe without a connection on it: says what it likes to the other end's connection."""

    def __init__(self, limit: int = 1 << 18) -> None:
        self.pipe, far = MemoryPipe.pair(limit)
        self.victim = MuxConnection(far, "e" * 64, dialled=False, path="direct", remote="memory://e")

    async def say(self, kind: int, number: int, value: int, payload: bytes = b"") -> None:
        await self.pipe.write(memoryview(HEAD.pack(kind, number, value) + payload))

    async def data(self, number: int, payload: bytes) -> None:
        await self.say(DATA, number, len(payload), payload)

    async def settled(self) -> None:
        """Until the victim has taken everything in."""
        while self.pipe._out.parts and self.victim.alive:
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)

    async def close(self) -> None:
        self.pipe.close()
        await self.victim.close()


def test_data_after_an_abort_is_nobodys_fault() -> None:
    """What was on its way when this end gave the stream up is dropped, and only that much."""

    async def test() -> None:
        peer = Hostile()
        await peer.data(1, b"x" * 1000)
        (await peer.victim.accept()).abort()
        await peer.data(1, b"x" * (WINDOW - 1000))
        await peer.say(GRANT, 1, 5)
        await peer.say(FINISH, 1, 0)
        await peer.settled()
        assert peer.victim.alive
        await peer.data(1, b"x")
        await peer.settled()
        assert peer.victim.violation is not None
        await peer.close()

    run(test())


@pytest.mark.parametrize(
    "frames",
    [
        [(9, 0, 0)],
        [(255, 0xFFFFFFFF, 0xFFFFFFFF)],
        [(DATA, 1, 0)],
        [(DATA, 0, 1)],
        [(DATA, 2, 1)],
        [(DATA, 3, 1)],
        [(DATA, 1, WINDOW + 1)],
        [(DATA, 1, 0xFFFFFFFF)],
        [(FINISH, 3, 0)],
        [(FINISH, 1, 0), (FINISH, 1, 0)],
        [(FINISH, 1, 0), (DATA, 1, 1)],
        [(GRANT, 1, 1)],
        [(GRANT, 0, 1)],
        [(ABORT, 1, 0)],
        [(FINISH, 1, 0), (GRANT, 1, 0xFFFFFFFF)],
        [(FINISH, 1, 0)] + [(GRANT, 1, 1 << 30)] * 2,
        [(FINISH, k, 0) for k in range(1, 2 * STREAMS + 2, 2)],
        [(FINISH, 1, 0), (ABORT, 1, 0), (DATA, 1, 1)],
    ],
    ids=lambda frames: f"{len(frames)}-{frames[-1]}",
)
def test_a_broken_rule_ends_the_connection(frames: list[tuple[int, int, int]]) -> None:
    async def test() -> None:
        peer = Hostile()
        for frame in frames[:-1]:
            await peer.say(*frame)
        await peer.settled()
        assert peer.victim.alive
        await peer.say(*frames[-1])
        await peer.settled()
        assert not peer.victim.alive and peer.victim.violation
        with pytest.raises(Broken):
            await peer.victim.accept()
        await peer.close()

    run(test())


def test_a_window_is_never_overrun() -> None:
    async def test() -> None:
        peer = Hostile()
        await peer.data(1, bytes(WINDOW - 1))
        stream = await peer.victim.accept()
        await peer.data(1, b"x")
        await peer.settled()
        assert peer.victim.alive
        await peer.say(DATA, 1, 1)
        await peer.settled()
        assert peer.victim.violation is not None
        assert await stream.read_exactly(WINDOW) == bytes(WINDOW - 1) + b"x"
        with pytest.raises(Broken):
            await stream.read()
        await peer.close()

    run(test())


def test_tiny_frames_cost_no_more_than_their_bytes() -> None:
    async def test() -> None:
        peer = Hostile()
        tiny = HEAD.pack(DATA, 1, 1) + b"x"
        for _ in range(16):
            await peer.pipe.write(memoryview(tiny * (WINDOW // 16)))
        stream = await peer.victim.accept()
        await peer.settled()
        assert isinstance(stream, MuxStream)
        held = sum(sys.getsizeof(part) for part in stream._parts)
        assert held < 1.5 * WINDOW
        assert await stream.read_exactly(WINDOW) == b"x" * WINDOW
        await peer.close()

    run(test())


def test_a_flood_of_pings_is_answered_in_bounded_space() -> None:
    async def test() -> None:
        peer = Hostile(1 << 12)
        for count in range(50_000):
            await peer.say(PING, 0, count)
        await peer.settled()
        assert peer.victim.alive
        assert peer.victim.outbox._size < 1 << 12
        await peer.close()

    run(test())


def test_a_peer_that_never_reads_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "OUT_HARD", 10_000)
    assert OUT_HARD > 10_000

    async def test() -> None:
        peer = Hostile(1 << 10)

        async def refuse() -> None:
            while True:
                (await peer.victim.accept()).abort()

        refusing = asyncio.create_task(refuse())
        with pytest.raises(Broken):
            for count in range(1, 20_000, 2):
                await peer.data(count, b"x")
        with pytest.raises(Broken, match="does not read"):
            await refusing
        assert not peer.victim.alive
        await peer.close()

    run(test())


frame = st.tuples(
    st.sampled_from([DATA, DATA, DATA, GRANT, FINISH, ABORT, PING, PONG, CLOSE, 7]),
    st.sampled_from([1, 1, 3, 5, 2, 0, 7, 0xFFFFFFFF]),
    st.sampled_from([1, 5, 100, 5000, 0, WINDOW, 0xFFFFFFFF]),
)


@settings(deadline=None, max_examples=150)
@given(frames=st.lists(frame, max_size=25), noise=st.binary(max_size=40), at=st.integers(0, 400))
def test_garbled_and_truncated_frames(frames: list[tuple[int, int, int]], noise: bytes, at: int) -> None:
    """Nothing a peer says raises anything but Broken, or makes the victim hold more than it granted."""

    async def test() -> None:
        peer = Hostile()
        said = bytearray()
        for kind, number, value in frames:
            said += HEAD.pack(kind, number, value)
            if kind == DATA:
                said += bytes(min(value, WINDOW))
        place = at % (len(said) + 1)
        said[place : place + len(noise)] = noise
        taken: list[MuxStream] = []

        async def use() -> None:
            while True:
                stream = await peer.victim.accept()
                assert isinstance(stream, MuxStream)
                taken.append(stream)
                if len(taken) % 2:
                    await stream.write(b"answer")
                    await stream.read()

        using = asyncio.create_task(use())
        try:
            await peer.pipe.write(memoryview(said))
        except Broken:
            assert not peer.victim.alive
        await peer.settled()
        assert all(sum(map(len, stream._parts)) <= WINDOW for stream in taken)
        peer.pipe.close()
        with pytest.raises(Broken):
            await using
        assert not peer.victim.alive
        await peer.close()

    run(test())


def test_a_peer_that_vanished_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mux, "QUIET", 0.05)

    async def test() -> None:
        peer = Hostile()
        with pytest.raises(Broken, match="no longer answers"):
            await peer.victim.accept()
        await peer.close()

    run(test())
