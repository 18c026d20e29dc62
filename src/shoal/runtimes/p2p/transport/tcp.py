"""TCP with Noise and many streams: the plain transport for LANs, servers and tests.

A dial goes through the peer's addresses, one after the other but not waiting long for a silent one
(the staggered race of RFC 8305); the first that proves to be the peer wins. Strangers are bounded:
so many handshakes at a time, from one host and together, and so many connections unaccepted.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from shoal.core import BadInput

from ..identity import Identity
from .base import Address, Broken, PeerId, Unreachable
from .endpoint import BACKLOG, Endpoint
from .mux import MuxConnection
from .pipe import Pipe, Signal
from .secure import secure_connection

__all__ = ["Tcp", "TcpPipe"]

SCHEME = "tcp://"
STAGGER = 0.25  # seconds before the next address is tried beside a silent one
TRIED = 16  # addresses of one peer at most
HANDSHAKES, HANDSHAKES_HOST = 256, 64  # strangers at a time: together, and from one host
SPARE = 1 << 14  # bytes that a socket may bring while nobody reads it


class TcpPipe(asyncio.BufferedProtocol, Pipe):
    """A socket as a pipe. The kernel writes into the reader's own buffer.

    What comes while nobody reads goes to a small buffer, once; then the socket is left alone until
    somebody does. (Turning reading off and on around each read costs more than the read.)
    """

    def __init__(self) -> None:
        self._transport: Any = None
        self._target: memoryview | None = None
        self._read: asyncio.Future[int] | None = None
        self._early = memoryview(b"")  # came while nobody read
        self._full = self._gone = self._paused = False
        self._fault: str | None = None
        self._room = Signal()

    async def readinto(self, view: memoryview) -> int:
        if self._early:
            count = min(len(self._early), len(view))
            view[:count] = self._early[:count]
            self._early = self._early[count:]
            return count
        if self._gone:
            if self._fault is not None:
                raise Broken(self._fault)
            return 0
        self._target = view
        self._read = asyncio.get_running_loop().create_future()
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        try:
            return await self._read
        finally:
            self._target = None

    async def write(self, *views: memoryview) -> None:
        for view in views:
            if not self._gone:
                self._transport.write(view)
            while self._full:  # with a high-water mark of 0 the view is ours again only then
                await self._room.wait()
            if self._gone:
                raise Broken(self._fault or "the other end has gone")

    def close(self) -> None:
        if self._full:
            self._transport.abort()
        else:
            self._transport.close()

    @property
    def remote(self) -> Address:
        """The other end's ``tcp://HOST:PORT``."""
        return _address(*self._transport.get_extra_info("peername")[:2])

    # asyncio.BufferedProtocol

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.set_write_buffer_limits(0)

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._target is None:
            self._early = memoryview(bytearray(SPARE))
            return self._early
        return self._target

    def buffer_updated(self, nbytes: int) -> None:
        if self._target is None:
            self._early = self._early[:nbytes]
            self._paused = True
            self._transport.pause_reading()
            return
        self._target = None
        if self._read is not None and not self._read.done():
            self._read.set_result(nbytes)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._room.fire()

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone, self._full, self._target = True, False, None
        if exc is not None:
            self._fault = f"the socket failed: {exc}"
        self._room.fire()
        if self._read is not None and not self._read.done():
            if self._fault is None:
                self._read.set_result(0)
            else:
                self._read.set_exception(Broken(self._fault))


class _Arriving(TcpPipe):
    """A pipe that tells its transport when a stranger has connected."""

    def __init__(self, owner: Tcp) -> None:
        super().__init__()
        self._owner = owner

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._owner.knock(self)


class Tcp(Endpoint):
    """One peer's TCP endpoint; made by :meth:`listen`.

    Attributes:
        port: where it listens.
    """

    scheme = "tcp"

    def __init__(self, identity: Identity, host: str) -> None:
        super().__init__(identity)
        self.port = 0
        self._host = host
        self._server: asyncio.Server | None = None
        self._greeting: dict[asyncio.Task[None], str] = {}

    @classmethod
    async def listen(cls, identity: Identity, host: str = "127.0.0.1", port: int = 0) -> Tcp:
        """Listen on one interface, or on all with ``0.0.0.0`` or ``::``; port 0 takes a free one.

        Raises:
            BadInput: the address is not this machine's, or is taken.
        """
        self = cls(identity, host)
        try:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: _Arriving(self), host, port, backlog=BACKLOG
            )
        except (OSError, OverflowError) as error:
            raise BadInput("listen", f"{host}:{port}", f"a free address here ({error})") from error
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def addresses(self) -> list[Address]:
        if self._host not in ("0.0.0.0", "::"):
            return [_address(self._host, self.port)]
        return [_address(host, self.port) for host in _own_hosts(six=self._host == "::")]

    async def reach(self, peer: PeerId, addresses: Sequence[Address]) -> MuxConnection:
        faults: list[str] = []
        trials: set[asyncio.Task[MuxConnection]] = set()
        places = [place for address in addresses if (place := _parse(address)) is not None][:TRIED]
        won: list[MuxConnection] = []
        try:
            while (places or trials) and not won:
                if places:
                    trials.add(asyncio.create_task(self._try(peer, *places.pop(0))))
                done, trials = await asyncio.wait(
                    trials, timeout=STAGGER if places else None, return_when=asyncio.FIRST_COMPLETED
                )
                for trial in done:
                    try:
                        won.append(trial.result())
                    except (Unreachable, OSError, ValueError) as error:  # strangers write addresses too
                        faults.append(str(error))
        finally:
            for trial in trials:
                trial.cancel()
            late = await asyncio.gather(*trials, return_exceptions=True)
            won += [result for result in late if isinstance(result, MuxConnection)]
            for connection in won[1:]:
                await connection.close()
        if not won:
            raise Unreachable(f"{peer[:8]}: {'; '.join(faults) or 'no tcp:// address'}")
        return won[0]

    async def close(self) -> None:
        self.closed = True
        if self._server is not None:
            self._server.close()
        for task in list(self._greeting):
            task.cancel()
        await asyncio.gather(*self._greeting, return_exceptions=True)
        await super().close()

    def knock(self, pipe: TcpPipe) -> None:
        """Somebody has connected: find out who, within bounds."""
        try:
            remote = pipe.remote
        except (OSError, TypeError):  # gone again already
            pipe.close()
            return
        host = remote.rpartition(":")[0]
        hosts = list(self._greeting.values())
        if self.closed or len(hosts) >= HANDSHAKES or hosts.count(host) >= HANDSHAKES_HOST:
            self.refused["too many handshakes"] += 1
            pipe.close()
            return
        task = asyncio.create_task(self._greet(pipe, remote))
        self._greeting[task] = host
        task.add_done_callback(lambda task: self._greeting.pop(task, None))

    async def _greet(self, pipe: TcpPipe, remote: Address) -> None:
        try:
            connection = await secure_connection(pipe, self.identity, None, False, remote=remote)
        except Unreachable:
            self.refused["handshake"] += 1
            return
        if self.room():
            self.arrive(connection)
        else:
            connection.fail("too many connections")

    async def _try(self, peer: PeerId, host: str, port: int) -> MuxConnection:
        _, pipe = await asyncio.get_running_loop().create_connection(TcpPipe, host, port)
        return await secure_connection(pipe, self.identity, peer, True, remote=_address(host, port))


def _address(host: str, port: int) -> Address:
    return f"{SCHEME}[{host}]:{port}" if ":" in host else f"{SCHEME}{host}:{port}"


def _parse(address: Address) -> tuple[str, int] | None:
    """Host and port of a TCP address; None for any other text (records come from strangers)."""
    if not address.startswith(SCHEME) or len(address) > 300:
        return None
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    return (host, port) if host and port else None


def _own_hosts(*, six: bool) -> list[str]:
    """The addresses from which this machine would speak, for one that listens everywhere.

    Connecting a datagram socket only looks up the route; nothing is sent.
    """
    hosts = []
    families = [(socket.AF_INET, "192.0.2.1", "127.0.0.1")]
    if six:
        families.append((socket.AF_INET6, "2001:db8::1", "::1"))
    for family, far, loopback in families:
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((far, 9))
            hosts.append(probe.getsockname()[0])
        hosts.append(loopback)
    return hosts
