"""The handshake and the records, against honest ends, the reference package, and hostile bytes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from noise.connection import NoiseConnection
from transports import WAYS, drain, pair, run

from shoal.runtimes.p2p.identity import Identity
from shoal.runtimes.p2p.transport import secure, tcp
from shoal.runtimes.p2p.transport.base import Broken, TransportError, Unreachable
from shoal.runtimes.p2p.transport.pipe import MemoryPipe, Pipe, StreamPipe, read_exactly
from shoal.runtimes.p2p.transport.secure import CIPHERS, SecurePipe, handshake, secure_connection
from shoal.runtimes.p2p.transport.tcp import Tcp, TcpPipe

ONE, OTHER = Identity(b"1" * 32), Identity(b"2" * 32)
QUICK = settings(deadline=None, max_examples=60)
Pipes = Callable[[], AbstractAsyncContextManager[tuple[Pipe, Pipe]]]


@asynccontextmanager
async def buffers() -> AsyncIterator[tuple[Pipe, Pipe]]:
    one, other = MemoryPipe.pair()
    yield one, other
    one.close()


@asynccontextmanager
async def sockets() -> AsyncIterator[tuple[Pipe, Pipe]]:
    arrived: asyncio.Queue[TcpPipe] = asyncio.Queue()

    class Arrived(TcpPipe):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            arrived.put_nowait(self)

    loop = asyncio.get_running_loop()
    server = await loop.create_server(Arrived, "127.0.0.1", 0)
    _, one = await loop.create_connection(TcpPipe, *server.sockets[0].getsockname())
    other = await arrived.get()
    yield one, other
    one.close()
    other.close()
    server.close()
    await asyncio.sleep(0)


@asynccontextmanager
async def streams() -> AsyncIterator[tuple[Pipe, Pipe]]:
    async with pair(WAYS["memory"]) as (one, other):
        stream = await one.open()
        await stream.write(b"!")
        seen = await other.accept()
        await seen.read_exactly(1)
        yield StreamPipe(stream), StreamPipe(seen)


@pytest.fixture(params=[buffers, sockets, streams])
def pipes(request: pytest.FixtureRequest) -> Pipes:
    return request.param


@pytest.mark.parametrize("choice", CIPHERS)
def test_both_ends_learn_who_the_other_is(pipes: Pipes, choice: bytes) -> None:
    async def test() -> None:
        async with pipes() as (near, far):
            (peer, mine), (dialler, theirs) = await asyncio.gather(
                handshake(near, ONE, OTHER.id, initiator=True, choice=choice),
                handshake(far, OTHER, None, initiator=False),
            )
            assert (peer, dialler) == (OTHER.id, ONE.id)
            for sender, receiver in ((mine, theirs), (theirs, mine)):
                data = random.Random(0).randbytes(200_000)
                writing = asyncio.create_task(sender.write(memoryview(data[:5]), memoryview(data[5:])))
                assert await read_exactly(receiver, len(data)) == data
                await writing

    run(test())


def test_a_connection_through_another_connection(pipes: Pipes) -> None:
    async def test() -> None:
        async with pipes() as (near, far):
            one, other = await asyncio.gather(
                secure_connection(near, ONE, OTHER.id, True, path="relayed", remote="relay://x"),
                secure_connection(far, OTHER, ONE.id, False, path="relayed", remote="relay://x"),
            )
            assert (one.peer, one.path, one.remote) == (OTHER.id, "relayed", "relay://x")
            stream = await one.open()
            sending = asyncio.create_task(stream.write(bytes(3_000_000)))
            sending.add_done_callback(lambda _: asyncio.ensure_future(stream.finish()))
            assert await drain(await other.accept()) == bytes(3_000_000)
            await one.close()
            await other.close()

    run(test())


@pytest.mark.parametrize("wrong", ["dialler", "listener"])
def test_the_wrong_peer(pipes: Pipes, wrong: str) -> None:
    async def test() -> None:
        stranger = Identity(b"3" * 32).id
        async with pipes() as (near, far):
            dialling, listening = await asyncio.gather(
                secure_connection(near, ONE, stranger if wrong == "dialler" else None, True),
                secure_connection(far, OTHER, stranger if wrong == "listener" else None, False),
                return_exceptions=True,
            )
            assert isinstance(listening, Unreachable)
            if wrong == "dialler":
                assert isinstance(dialling, Unreachable)
            else:  # the dialler has said all it has to say before it can know
                assert not isinstance(dialling, BaseException)
                with pytest.raises(Broken):
                    await dialling.accept()

    run(test())


class Impostor:
    """Says that it is somebody else, and signs with its own key."""

    id = ONE.id
    sign = Identity(b"4" * 32).sign


class Reuser:
    """Signs without the other end's ephemeral key, as a proof kept from another handshake would be."""

    id = ONE.id

    def sign(self, purpose: str, message: bytes) -> bytes:
        return ONE.sign(purpose, message[:32] + bytes(32))


class Reflector:
    """Passes the listener's kind of proof off as the dialler's."""

    id = ONE.id

    def sign(self, purpose: str, message: bytes) -> bytes:
        return ONE.sign({"noise/dial": "noise/listen"}.get(purpose, "noise/dial"), message)


@pytest.mark.parametrize("liar", [Impostor, Reuser, Reflector])
@pytest.mark.parametrize("initiator", [True, False])
def test_an_identity_that_is_not_proved(liar: Any, initiator: bool) -> None:
    async def test() -> None:
        async with buffers() as (near, far):
            _, honest = await asyncio.gather(
                secure_connection(near, liar(), None, initiator),
                secure_connection(far, OTHER, None, not initiator),
                return_exceptions=True,
            )
            assert isinstance(honest, Unreachable) and "identity" in str(honest)

    run(test())


@QUICK
@given(data=st.binary(max_size=500), begin=st.sampled_from([b"", b"A\0\x20", b"C\0\x20", b"\0\xc0"]))
@pytest.mark.parametrize("initiator", [True, False])
def test_hostile_bytes_instead_of_a_handshake(initiator: bool, begin: bytes, data: bytes) -> None:
    async def test() -> None:
        async with buffers() as (near, far):
            await near.write(memoryview(begin + data))
            victim = asyncio.create_task(secure_connection(far, OTHER, None, initiator))
            for _ in range(5):
                await asyncio.sleep(0)
            near.close()
            with pytest.raises(Unreachable):
                await victim

    run(test())


async def altered(source: Pipe, target: Pipe, at: int, flip: int) -> None:
    """Pass bytes on, the one at ``at`` changed."""
    view, passed = memoryview(bytearray(4096)), 0
    try:
        while count := await source.readinto(view):
            if passed <= at < passed + count:
                view[at - passed] ^= flip
            passed += count
            await target.write(view[:count])
    except Broken:
        pass
    target.close()


@QUICK
@given(toward=st.booleans(), at=st.integers(0, 360), flip=st.integers(1, 255))
def test_a_changed_byte_ends_the_handshake(toward: bool, at: int, flip: int) -> None:
    """The dialler says 1 + 34 + 162 bytes, the listener 194; nothing that was touched is believed."""
    at %= 197 if toward else 194

    async def test() -> None:
        async with buffers() as (near, left), buffers() as (right, far):
            middle = [
                asyncio.create_task(altered(left, right, at if toward else -1, flip)),
                asyncio.create_task(altered(right, left, -1 if toward else at, flip)),
            ]
            dialling = asyncio.create_task(secure_connection(near, ONE, OTHER.id, True))
            listening = asyncio.create_task(secure_connection(far, OTHER, ONE.id, False))
            await asyncio.wait([dialling, listening], timeout=0.3, return_when="FIRST_EXCEPTION")
            near.close()
            far.close()
            dialled, listened = await asyncio.gather(dialling, listening, return_exceptions=True)
            assert isinstance(listened, Unreachable)
            if toward and at >= 35:  # the last message: the dialler is through, and is left alone
                assert not isinstance(dialled, BaseException)
                with pytest.raises(Broken):
                    await dialled.accept()
            else:
                assert isinstance(dialled, Unreachable)
            await asyncio.gather(*middle)

    run(test())


def test_a_handshake_cannot_be_replayed() -> None:
    async def test() -> None:
        said: list[bytes] = []

        class Recorder(MemoryPipe):
            async def write(self, *views: memoryview) -> None:
                said.extend(bytes(view) for view in views)
                await super().write(*views)

        near, far = MemoryPipe.pair()
        near = Recorder(near._in, near._out)
        await asyncio.gather(
            handshake(near, ONE, None, initiator=True), handshake(far, OTHER, None, initiator=False)
        )
        async with buffers() as (again, victim):
            for part in said:
                await again.write(memoryview(part))
            with pytest.raises(Unreachable):
                await secure_connection(victim, OTHER, None, False)

    run(test())


@pytest.mark.parametrize("initiator", [True, False])
def test_a_silent_peer_costs_a_bounded_time(monkeypatch: pytest.MonkeyPatch, initiator: bool) -> None:
    monkeypatch.setattr(secure, "HANDSHAKE", 0.05)

    async def test() -> None:
        async with buffers() as (near, far):
            with pytest.raises(Unreachable, match="within"):
                await secure_connection(far, OTHER, None, initiator)
            with pytest.raises(Broken):
                await near.write(memoryview(b"too late"))

    run(test())


async def rest(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


def test_strangers_on_a_tcp_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "HANDSHAKES_HOST", 3)

    async def test() -> None:
        listener, dialler = await Tcp.listen(ONE), await Tcp.listen(OTHER)
        silent = [await asyncio.open_connection("127.0.0.1", listener.port) for _ in range(3)]
        late, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        assert await rest(late) == b""
        writer.close()
        assert listener.refused == {"too many handshakes": 1}
        with pytest.raises(Unreachable):
            await dialler.dial(ONE.id, listener.addresses())
        for count, (reader, writer) in enumerate(silent):
            writer.write(b"GET / HTTP/1.1\r\n\r\n" * (count + 1))
            assert await rest(reader) == b""
            writer.close()
        assert listener.refused["handshake"] == 3
        connection = await dialler.dial(ONE.id, listener.addresses())
        assert ((await listener.accept()).peer, connection.peer) == (OTHER.id, ONE.id)
        await listener.close()
        await dialler.close()

    run(test())


def secure_pair(limit: int = 1 << 18) -> tuple[SecurePipe, SecurePipe, MemoryPipe, MemoryPipe]:
    near, far = MemoryPipe.pair(limit)
    there, back = bytes(range(32)), bytes(range(32, 64))
    return SecurePipe(near, b"C", there, back), SecurePipe(far, b"C", back, there), near, far


@QUICK
@given(
    sizes=st.lists(st.sampled_from([1, 16, 4095, 65_518, 65_519, 65_520, 300_000]), max_size=6),
    views=st.lists(st.sampled_from([1, 1000, 65_518, 65_519, 200_000]), min_size=1, max_size=4),
)
def test_records_of_any_size_into_views_of_any_size(sizes: list[int], views: list[int]) -> None:
    async def test() -> None:
        writer, reader, _, _ = secure_pair(100_000)
        data = random.Random(len(sizes)).randbytes(sum(sizes))

        async def write() -> None:
            at = 0
            for size in sizes:
                await writer.write(memoryview(data)[at : at + size])
                at += size
            writer.close()

        writing = asyncio.create_task(write())
        got, turn = bytearray(), 0
        while True:
            view = memoryview(bytearray(max(views[turn % len(views)], 1 if turn < 2000 else 65_519)))
            count = await reader.readinto(view)
            if not count:
                break
            got += view[:count]
            turn += 1
        assert got == data
        await writing

    run(test())


@pytest.mark.parametrize("choice", CIPHERS)
def test_records_and_rekeying_are_noise(monkeypatch: pytest.MonkeyPatch, choice: bytes) -> None:
    """The reference package opens what the pipe seals, across changes of the key."""
    monkeypatch.setattr(secure, "REKEY", 3)

    async def test() -> None:
        near, far = MemoryPipe.pair()
        reference = NoiseConnection.from_name(f"Noise_XX_25519_{CIPHERS[choice][0]}_SHA256".encode())
        cipher = reference.noise_protocol.cipher_class()
        key = bytes(range(32))
        cipher.initialize(key)
        pipe = SecurePipe(near, choice, key, key)
        for count in range(10):
            await pipe.write(memoryview(b"record %d" % count))
            sealed = await read_exactly(far, int.from_bytes(await read_exactly(far, 2), "big"))
            if count and count % 3 == 0:
                key = cipher.encrypt(key, 2**64 - 1, b"", bytes(32))[:32]
                cipher.initialize(key)
            assert cipher.decrypt(key, count, b"", sealed) == b"record %d" % count

    run(test())


@QUICK
@given(at=st.integers(0, 10**6), flip=st.integers(0, 255), cut=st.booleans())
def test_a_changed_or_lost_byte_is_never_delivered(at: int, flip: int, cut: bool) -> None:
    async def test() -> None:
        writer, _, _, tap = secure_pair()
        data = b"".join(bytes([k]) * 1000 for k in range(10))
        for k in range(10):
            await writer.write(memoryview(data)[1000 * k : 1000 * (k + 1)])
        view = memoryview(bytearray(20_000))
        wire = bytearray(view[: await tap.readinto(view)])
        place = at % len(wire)
        wire[place] ^= flip
        if cut:
            del wire[place:]
        again, victim = MemoryPipe.pair()
        await again.write(memoryview(wire))
        again.close()
        reader = SecurePipe(victim, b"C", bytes(range(32, 64)), bytes(range(32)))
        got = b""
        try:
            while count := await reader.readinto(view):
                got += bytes(view[:count])
        except TransportError:
            assert flip and not cut
        if flip or cut:
            assert data.startswith(got) and len(got) <= 1000 * (place // 1018)
        else:
            assert got == data

    run(test())
