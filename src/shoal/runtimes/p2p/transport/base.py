"""The narrow interface that every transport implements: authenticated connections with streams.

A transport connects two identities. Whatever it is built on, the peer's key has been proved before a
connection is handed out, everything on it is encrypted, streams are reliable, ordered and push back
on a sender that is faster than its receiver, and a broken connection raises :class:`Broken` on every
call that waits on it. Nothing here knows what is said on a stream.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

from shoal.core import ShoalError

__all__ = [
    "Address",
    "Broken",
    "Connection",
    "Path",
    "PeerId",
    "Stream",
    "Transport",
    "TransportError",
    "Unreachable",
]

PeerId = str
"""A peer's Ed25519 public key as 64 lower-case hexadecimal digits."""

Address = str
"""Where a peer may be reached: ``tcp://HOST:PORT``, ``iroh://HOST:PORT`` (UDP), ``memory://NAME``,
``relay://PEERID`` (through that peer)."""

Path = Literal["direct", "punched", "relayed"]
"""How a connection came about: dialled, through two NATs at once, or passed on by a third peer."""


class TransportError(ShoalError):
    """A connection that could not be made, or is no more."""


class Unreachable(TransportError):
    """No address of the peer answered, or who answered was not that peer."""


class Broken(TransportError):
    """The connection or stream ended before it should have."""


class Stream(ABC):
    """A reliable, ordered pair of byte flows."""

    @abstractmethod
    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``; returns when the transport has room again (back-pressure).

        Raises:
            Broken: the stream or its connection is gone.
        """

    @abstractmethod
    async def read(self, most: int = 1 << 18) -> bytes:
        """Between 1 and ``most`` bytes, or ``b""`` once the other side has finished.

        Raises:
            Broken: the stream was aborted or its connection is gone.
        """

    async def read_exactly(self, size: int) -> bytes:
        """``size`` bytes.

        Raises:
            Broken: the stream ended before.
        """
        parts, left = [], size
        while left:
            part = await self.read(min(left, 1 << 20))
            if not part:
                raise Broken(f"stream ended {left} bytes early")
            parts.append(part)
            left -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @abstractmethod
    async def finish(self) -> None:
        """No more will be written; reading goes on."""

    @abstractmethod
    def abort(self) -> None:
        """Give the stream up in both directions, now."""


class Connection(ABC):
    """An encrypted connection to one peer whose key has been proved.

    Attributes:
        peer: the other end.
        dialled: whether this end dialled.
    """

    peer: PeerId
    dialled: bool

    @abstractmethod
    async def open(self) -> Stream:
        """A new stream to the peer. The other side learns of it with the first byte written."""

    @abstractmethod
    async def accept(self) -> Stream:
        """The next stream that the peer opens.

        Raises:
            Broken: the connection is gone.
        """

    @property
    @abstractmethod
    def path(self) -> Path:
        """How the bytes travel at present."""

    @property
    @abstractmethod
    def remote(self) -> Address:
        """The address from which the peer is seen at present."""

    @property
    @abstractmethod
    def alive(self) -> bool:
        """Whether the connection is still up, as far as this end knows."""

    @abstractmethod
    async def close(self) -> None:
        """End the connection; streams in progress break."""


class Transport(ABC):
    """One way of connecting: listens, dials, and knows its own identity.

    Attributes:
        scheme: of the addresses that it can dial (``"tcp"``, ``"iroh"``, ``"memory"``).
        id: this peer.
    """

    scheme: str
    id: PeerId

    @abstractmethod
    def addresses(self) -> list[Address]:
        """Where this end listens, as far as it knows."""

    @abstractmethod
    async def dial(self, peer: PeerId, addresses: Sequence[Address]) -> Connection:
        """Connect to ``peer`` at the first of its addresses that answers with the right key.

        The caller bounds the time with ``asyncio.timeout``.

        Raises:
            Unreachable: none of them did.
        """

    @abstractmethod
    async def accept(self) -> Connection:
        """The next connection that a peer has made to this end.

        Raises:
            Broken: the transport has been closed.
        """

    @abstractmethod
    async def close(self) -> None:
        """Stop listening and break all connections."""
