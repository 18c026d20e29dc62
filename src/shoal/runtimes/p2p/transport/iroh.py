"""QUIC by iroh (iroh.computer, 1.x): streams over UDP that pass most NATs and survive a change of address.

The endpoint's key is the peer's own Ed25519 key, so the TLS 1.3 handshake itself proves both ids.
Nothing outside is asked for anything: no relay servers, no address lookup, no port mapping service;
addresses are passed in by whoever dials (an iroh dial tries all of them at once and keeps the first
that answers). A connection follows its peer to a new address and moves to a better path by itself.

Two facts about the binding shape this file. A call that is cancelled may already have taken its
result, so reads and accepts run in tasks of their own that outlive an impatient caller. And the
binding copies what is written one byte at a time in Python (iroh-ffi issue 229: 2 to 5 MB/s);
:mod:`.iroh_copy` replaces that loop.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from shoal.core import BadInput, need

from ..identity import Identity
from .base import Address, Broken, Connection, Path, PeerId, Stream, Transport, Unreachable
from .iroh_copy import copy_at_once

__all__ = ["Iroh", "IrohConnection", "IrohStream"]

SCHEME = "iroh://"
ALPN = b"shoal/1"
PIECE = 1 << 18  # bytes handed to the binding at a time
HANDSHAKES = 64  # of dialling strangers at a time; more are refused
DIAL = 6.0  # seconds of a dial that nobody answers (QUIC sends its first packet at 0, 1 and 3 s)
PATIENCE = 10.0  # seconds that a stranger's handshake may take
BACKLOG = 256  # connections that nobody has accepted yet
STREAMS = 128  # open at a time from each side of a connection

T = TypeVar("T")


class IrohStream(Stream):
    """One bidirectional QUIC stream."""

    def __init__(self, connection: IrohConnection, pair: Any) -> None:
        self._connection = connection
        self._out, self._in = pair.send(), pair.recv()
        self._reading: asyncio.Task[bytes] | None = None
        self._writing: asyncio.Task[None] | None = None
        self._rest = memoryview(b"")
        self._fault: str | None = None
        self._in_done = self._out_done = False
        connection.streams.add(self)

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        for at in range(0, len(view), PIECE):
            self._check()
            self._writing = self._connection.task(self._out.write_all(bytes(view[at : at + PIECE])))
            try:
                await asyncio.wait([self._writing])
            except asyncio.CancelledError:
                self.abort()  # nobody knows how much of the piece went out
                raise
            self._result(self._writing)
        self._check()

    async def read(self, most: int = 1 << 18) -> bytes:
        self._check()
        if not self._rest:
            if self._reading is None:
                self._reading = self._connection.task(self._in.read(min(max(most, 1), PIECE)))
            reading = self._reading
            await asyncio.wait([reading])
            part = self._result(reading)
            self._reading, self._in_done = None, not part
            self._settle()
            self._rest = memoryview(part)
        part, self._rest = bytes(self._rest[:most]), self._rest[most:]
        return part

    def _check(self) -> None:
        if self._fault:
            raise Broken(self._fault)

    def _result(self, task: asyncio.Task[T]) -> T:
        """What a finished call of the binding gave; only :meth:`abort` cancels one."""
        if task.cancelled():
            raise Broken(self._fault or "the connection was closed here")
        return task.result()

    async def finish(self) -> None:
        self._check()
        if not self._out_done:
            self._out_done = True
            await _broken(self._out.finish())
            self._settle()

    def abort(self) -> None:
        if self._fault is None:
            self._fault = "the stream was aborted here"
            self._rest = memoryview(b"")
            self._connection.streams.discard(self)
            for call in (self._reading, self._writing):
                if call is not None:
                    call.cancel()  # it holds the end of the stream that is to be given up
            self._connection.task(self._give_up())

    def _settle(self) -> None:
        if self._in_done and self._out_done:
            self._connection.streams.discard(self)

    async def _give_up(self) -> None:
        """A direction that is finished stays so: a reset would take back what is still on its way."""
        with suppress(Broken):  # the connection has gone, which ends the stream as well
            if not self._out_done:
                await _broken(self._out.reset(0))
            if not self._in_done:
                await _broken(self._in.stop(0))


class IrohConnection(Connection):
    """A QUIC connection; its TLS handshake has proved the peer's key.

    Args:
        raw: the binding's connection.
        dialled: whether this end dialled.
        path: how it came about.

    Attributes:
        streams: not over yet. The binding gives a stream up when it is no longer referred to; here it
            lasts until it is finished or aborted, as with every transport.
    """

    def __init__(self, raw: Any, *, dialled: bool, path: Path) -> None:
        self.peer = raw.remote_id().to_bytes().hex()
        self.dialled = dialled
        self._raw, self._path = raw, path
        self._remote = ""
        self.streams: set[IrohStream] = set()
        self._accepting: asyncio.Task[Any] | None = None
        self._turn = asyncio.Lock()  # of those who accept
        self._tasks: set[asyncio.Task[Any]] = set()
        raw.set_max_concurrent_uni_streams(0)
        raw.set_max_concurrent_bi_streams(STREAMS)

    async def open(self) -> Stream:
        return IrohStream(self, await _broken(self._raw.open_bi()))

    async def accept(self) -> Stream:
        async with self._turn:
            if self._accepting is None:
                self._accepting = self.task(self._raw.accept_bi())
            accepting = self._accepting
            await asyncio.wait([accepting])
            self._accepting = None
            return IrohStream(self, accepting.result())

    @property
    def path(self) -> Path:
        return self._path

    @path.setter
    def path(self, path: Path) -> None:
        self._path = path

    @property
    def remote(self) -> Address:
        """The far end of the path in use, which may change while the connection lives."""
        paths = self._raw.paths()
        chosen = [path for path in paths if path.is_selected] or paths
        if chosen:
            self._remote = SCHEME + chosen[0].remote_addr
        return self._remote

    @property
    def alive(self) -> bool:
        return self._raw.close_reason() is None

    async def close(self) -> None:
        if self.alive:
            self._raw.close(0, b"closed")
        await self.ended()
        self.streams.clear()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def ended(self) -> str:
        """Wait for the end of the connection; why it ended."""
        return _line(await self._raw.closed())

    def task(self, call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a call of the binding whatever becomes of its caller; ends with the connection."""
        task: asyncio.Task[T] = asyncio.ensure_future(_broken(call))
        self._tasks.add(task)
        task.add_done_callback(self._done)
        task.add_done_callback(lambda _: call.close())  # where it was cancelled before it began
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits for the task sees it; nobody has to


class Iroh(Transport):
    """An iroh endpoint; made by :meth:`listen`.

    Attributes:
        refused: strangers turned away because too many were shaking hands already.
        punching: peers that this end and the peer dial at the same time, through both NATs;
            connections with them are reported as ``"punched"``.
        external: addresses at which others see this end, published before its own.
    """

    scheme = "iroh"

    def __init__(self, endpoint: Any) -> None:
        self.id = endpoint.id().to_bytes().hex()
        self.refused = 0
        self.punching: set[PeerId] = set()
        self.external: list[Address] = []
        self._endpoint = endpoint
        self._arrived: asyncio.Queue[IrohConnection | None] = asyncio.Queue(BACKLOG + 1)
        self._handshakes: set[asyncio.Task[None]] = set()
        self._connections: set[IrohConnection] = set()
        self._watches: set[asyncio.Task[None]] = set()
        self._listening = asyncio.create_task(self._listen())
        self._closed = False

    @classmethod
    async def listen(cls, identity: Identity, host: str = "127.0.0.1", port: int = 0) -> Iroh:
        """Bind ``host`` (an IPv4 address, ``0.0.0.0`` for all) and UDP ``port`` (0: any free one).

        Raises:
            BadInput: the address is not one, or cannot be bound.
        """
        iroh = need("iroh", "p2p")
        copy_at_once(iroh.iroh_ffi)
        try:
            any_host = ipaddress.IPv4Address(host).is_unspecified
        except ValueError:
            raise BadInput("peer.host", host, "an IPv4 address of this machine, or 0.0.0.0") from None
        sockets = [f"{host}:{port}"]
        if _ipv6():
            sockets.append("[::]:0" if any_host else "[::1]:0")

        class Sockets(iroh.Preset):  # type: ignore[misc,name-defined]
            def apply(self, builder: Any) -> None:
                builder.apply_minimal()
                for address in sockets:
                    builder.bind_addr(address)

        options = iroh.EndpointOptions(
            preset=Sockets(),
            alpns=[ALPN],
            relay_mode=iroh.RelayMode.disabled(),
            secret_key=identity.secret,
        )
        try:
            return cls(await iroh.Endpoint.bind(options))
        except iroh.IrohError as error:
            allowed = (
                f"an address of this machine and a free UDP port ({_line(error.message(), last=True)})"
            )
            raise BadInput("peer.listen", f"{host}:{port}", allowed) from None

    def addresses(self) -> list[Address]:
        return list(dict.fromkeys([*self.external, *self.bound()]))

    def bound(self) -> list[Address]:
        """This machine's own addresses at which the sockets listen, as they are now."""
        return [SCHEME + address for address in self._endpoint.addr().direct_addresses()]

    def plain(self, peer: PeerId) -> None:
        """What was expected to be ``"punched"`` is not: one end is in the open."""
        self.punching.discard(peer)
        for connection in self._connections:
            if connection.peer == peer:
                connection.path = "direct"

    async def dial(self, peer: PeerId, addresses: Sequence[Address]) -> Connection:
        iroh = need("iroh", "p2p")
        places = [a.removeprefix(SCHEME) for a in addresses if a.startswith(SCHEME)]
        if self._closed or not places:
            raise Unreachable(
                "this transport has been closed" if self._closed else f"{peer[:8]}: no address"
            )
        try:
            where = iroh.EndpointAddr(iroh.EndpointId.from_bytes(bytes.fromhex(peer)), None, places)
            async with asyncio.timeout(DIAL):
                raw = await self._endpoint.connect(where, ALPN)
        except TimeoutError:
            raise Unreachable(f"{peer[:8]} at none of {places[:4]}: no answer in {DIAL:g} s") from None
        except (iroh.IrohError, ValueError) as error:
            text = error.message() if isinstance(error, iroh.IrohError) else str(error)
            raise Unreachable(f"{peer[:8]} at none of {places[:4]}: {_line(text, last=True)}") from None
        return self._keep(raw, dialled=True)

    async def accept(self) -> Connection:
        connection = None if self._closed else await self._arrived.get()
        if connection is None:
            with suppress(asyncio.QueueFull):
                self._arrived.put_nowait(None)  # for the next one who asks
            raise Broken("the transport was closed")
        return connection

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for task in self._handshakes:
            task.cancel()
        await asyncio.gather(*(connection.close() for connection in list(self._connections)))
        await self._endpoint.close()
        await asyncio.gather(self._listening, *self._handshakes, *self._watches, return_exceptions=True)
        while not self._arrived.empty():
            self._arrived.get_nowait()
        self._arrived.put_nowait(None)

    async def _listen(self) -> None:
        while (incoming := await self._endpoint.accept_next()) is not None:
            if len(self._handshakes) >= HANDSHAKES or self._arrived.qsize() >= BACKLOG:
                self.refused += 1
                with suppress(Broken):
                    await _broken(incoming.refuse())
                continue
            task = asyncio.create_task(self._greet(incoming))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def _greet(self, incoming: Any) -> None:
        with suppress(Broken, TimeoutError):
            async with asyncio.timeout(PATIENCE):
                raw = await _broken((await _broken(incoming.accept())).connect())
            connection = self._keep(raw, dialled=False)
            if self._arrived.qsize() < BACKLOG:
                self._arrived.put_nowait(connection)
            else:
                await connection.close()

    def _keep(self, raw: Any, *, dialled: bool) -> IrohConnection:
        punched = raw.remote_id().to_bytes().hex() in self.punching
        connection = IrohConnection(raw, dialled=dialled, path="punched" if punched else "direct")
        self._connections.add(connection)
        task = asyncio.create_task(self._watch(connection))
        self._watches.add(task)
        task.add_done_callback(self._watches.discard)
        return connection

    async def _watch(self, connection: IrohConnection) -> None:
        await connection.ended()
        connection.streams.clear()
        self._connections.discard(connection)


async def _broken(call: Awaitable[T]) -> T:
    """What the binding's call gives; its errors as :class:`Broken`."""
    try:
        return await call
    except need("iroh", "p2p").IrohError as error:
        raise Broken(_line(error.message())) from None


def _line(text: str, *, last: bool = False) -> str:
    """One line of an error that has many."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no reason given"]
    return lines[-1 if last else 0][:200]


def _ipv6() -> bool:
    """Whether this machine has an IPv6 loopback to bind."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
