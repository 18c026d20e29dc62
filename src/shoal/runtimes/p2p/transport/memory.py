"""Peers inside one process: the streams of a real connection without sockets and without encryption.

A :class:`Hub` stands for the network. Peers on it are who they say, because the hub made the
introduction; everything above the pipe (streams, windows, frames) is what the TCP transport runs.
Tests may cut peers off from each other and let them meet again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from shoal.core import BadInput

from ..identity import Identity
from .base import Address, PeerId, Unreachable
from .endpoint import Endpoint
from .mux import MuxConnection
from .pipe import MemoryPipe

__all__ = ["Hub", "Memory"]

SCHEME = "memory://"


class Hub:
    """A network in memory."""

    def __init__(self) -> None:
        self._members: dict[str, Memory] = {}
        self._cut: set[frozenset[PeerId]] = set()

    def cut(self, one: PeerId, other: PeerId) -> None:
        """Break what connects two peers, and let neither reach the other until :meth:`heal`."""
        self._cut.add(frozenset((one, other)))
        for member in list(self._members.values()):
            if member.id in (one, other):
                member.drop(other if member.id == one else one)

    def heal(self, one: PeerId, other: PeerId) -> None:
        self._cut.discard(frozenset((one, other)))

    def join(self, name: str, member: Memory) -> None:
        if name in self._members:
            raise BadInput("memory.name", name, "a name that nobody on the hub has")
        self._members[name] = member

    def leave(self, name: str) -> None:
        self._members.pop(name, None)

    def find(self, address: Address, dialler: PeerId) -> Memory | None:
        """Who is at ``address``, as far as ``dialler`` can reach."""
        name = address.removeprefix(SCHEME) if address.startswith(SCHEME) else ""
        member = self._members.get(name)
        if member is None or frozenset((dialler, member.id)) in self._cut:
            return None
        return member


class Memory(Endpoint):
    """One peer on a :class:`Hub`; made by :meth:`listen`.

    Args:
        identity: this peer.
        hub: the network.
        name: its address there (default: its id).
    """

    scheme = "memory"

    def __init__(self, identity: Identity, hub: Hub, name: str | None = None) -> None:
        super().__init__(identity)
        self.name = name or identity.id
        self._hub = hub
        hub.join(self.name, self)

    @classmethod
    async def listen(cls, identity: Identity, hub: Hub, name: str | None = None) -> Memory:
        return cls(identity, hub, name)

    def addresses(self) -> list[Address]:
        return [SCHEME + self.name]

    async def reach(self, peer: PeerId, addresses: Sequence[Address]) -> MuxConnection:
        await asyncio.sleep(0)
        for address in addresses:
            other = self._hub.find(address, self.id)
            if other is None or other.id != peer or not other.room():
                continue
            mine, theirs = MemoryPipe.pair()
            other.arrive(
                MuxConnection(theirs, self.id, dialled=False, path="direct", remote=SCHEME + self.name)
            )
            return MuxConnection(mine, peer, dialled=True, path="direct", remote=address)
        raise Unreachable(f"{peer[:8]} at none of {list(addresses)[:4]}")

    async def close(self) -> None:
        if not self.closed:
            self._hub.leave(self.name)
        await super().close()
