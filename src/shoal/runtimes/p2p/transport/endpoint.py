"""What the transports that are made of pipes share: the connections they hold and who waits outside."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections import Counter, deque
from collections.abc import Sequence

from ..identity import Identity
from .base import Address, Broken, Connection, PeerId, Transport, Unreachable
from .mux import MuxConnection
from .pipe import Signal

__all__ = ["Endpoint"]

BACKLOG = 256  # connections that nobody has accepted yet


class Endpoint(Transport):
    """Keeps connections until they end, and hands out those that arrived in order.

    Args:
        identity: this peer.

    Attributes:
        identity: this peer.
        refused: peers turned away before they became a connection, by reason.
    """

    def __init__(self, identity: Identity) -> None:
        self.identity, self.id = identity, identity.id
        self.refused: Counter[str] = Counter()
        self.closed = False
        self._connections: set[MuxConnection] = set()
        self._arrived: deque[MuxConnection] = deque()
        self._changed = Signal()

    async def accept(self) -> Connection:
        while True:
            while self._arrived:
                if (connection := self._arrived.popleft()).alive:
                    return connection
            if self.closed:
                raise Broken("the transport was closed")
            await self._changed.wait()

    async def close(self) -> None:
        self.closed = True
        self._arrived.clear()
        self._changed.fire()
        await asyncio.gather(*(connection.close() for connection in list(self._connections)))

    async def dial(self, peer: PeerId, addresses: Sequence[Address]) -> Connection:
        if self.closed:
            raise Unreachable("this transport has been closed")
        return self.keep(await self.reach(peer, addresses))

    @abstractmethod
    async def reach(self, peer: PeerId, addresses: Sequence[Address]) -> MuxConnection:
        """A new connection to ``peer``; as :meth:`dial`."""

    def keep(self, connection: MuxConnection) -> MuxConnection:
        """Hold a connection until it ends."""
        self._connections.add(connection)
        connection.on_end(lambda: self._connections.discard(connection))
        return connection

    def room(self) -> bool:
        """Whether one more connection may arrive; a refusal is counted."""
        if self.closed or len(self._arrived) >= BACKLOG:
            self.refused["too many connections"] += 1
            return False
        return True

    def arrive(self, connection: MuxConnection) -> None:
        """A peer has dialled this end."""
        self._arrived.append(self.keep(connection))
        self._changed.fire()

    def drop(self, peer: PeerId) -> None:
        """Break the connections to ``peer`` without a word."""
        for connection in [c for c in self._connections if c.peer == peer]:
            connection.fail("the connection was cut")
