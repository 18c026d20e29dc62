"""SIMULATED address translators in one process: which of many peers can meet without a relay.

Packets are decided one by one by tables as RFC 4787 describes them: a translator maps an inside address to
a port of its own, the same for every destination or one for each (``mapping``), and lets a packet in if it
has sent one out from that port to anybody, to that host, or to that very port (``filtering``). Nothing
here knows which pairs are compatible: a dial sends packets, and succeeds if one and its answer arrive.
Once they have, the bytes take the memory transport's pipe. Nothing is timed, lost or forgotten.

A dial first tries the address that the rendezvous host saw; then both sides send at once (Ford, Srisuresh,
Kegel 2005), each to where the rendezvous saw the other, answering whatever arrives to where it came from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from shoal.core import BadInput

from ..identity import Identity
from .base import Address, PeerId, Unreachable
from .endpoint import Endpoint
from .mux import MuxConnection
from .pipe import MemoryPipe

__all__ = ["KINDS", "Internet", "Kind", "Simulated", "Translator"]

SCHEME = "simulated://"
REPEATS = 3
Kind = Literal["open", "full-cone", "address-cone", "port-cone", "symmetric"]
Place = tuple[str, int]
"""Host and port, as seen outside."""


@dataclass
class Translator:
    """One peer's way out.

    Args:
        host: its public address.
        mapping: "endpoint": one port for all destinations; "destination": one for each.
        filtering: who may answer.
    """

    host: str
    mapping: Literal["endpoint", "destination"]
    filtering: Literal["none", "host", "port"]
    _ports: dict[Place | None, int] = field(default_factory=dict)
    _sent: dict[int, set[Place]] = field(default_factory=dict)

    def leaves(self, to: Place) -> Place:
        """A packet goes out: where it seems to come from."""
        key = None if self.mapping == "endpoint" else to
        port = self._ports.setdefault(key, 40_000 + len(self._ports))
        self._sent.setdefault(port, set()).add(to)
        return self.host, port

    def enters(self, port: int, source: Place) -> bool:
        """Whether a packet from ``source`` to ``port`` comes through."""
        if port not in self._ports.values():
            return False
        sent = self._sent.get(port, set())
        return (
            self.filtering == "none"
            or source in sent
            or (self.filtering == "host" and source[0] in {host for host, _ in sent})
        )


KINDS: dict[Kind, tuple[Literal["endpoint", "destination"], Literal["none", "host", "port"]]] = {
    "open": ("endpoint", "none"),
    "full-cone": ("endpoint", "none"),
    "address-cone": ("endpoint", "host"),
    "port-cone": ("endpoint", "port"),
    "symmetric": ("destination", "port"),
}


class Internet:
    """All peers and their translators, and a rendezvous host that tells each how it is seen."""

    rendezvous: Place = ("0.0.0.1", 1)

    def __init__(self) -> None:
        self._hosts: dict[str, Simulated] = {}

    def join(self, peer: Simulated, kind: Kind) -> Translator:
        if kind not in KINDS:
            raise BadInput("kind", kind, ", ".join(KINDS))
        host = f"10.0.{len(self._hosts) // 250}.{len(self._hosts) % 250 + 1}"
        self._hosts[host] = peer
        return Translator(host, *KINDS[kind])

    def send(self, sender: Translator, to: Place) -> tuple[Simulated, Place] | None:
        """One packet: who gets it, and from where it seems to come; None where it is dropped."""
        source = sender.leaves(to)
        receiver = self._hosts.get(to[0])
        if receiver is None or not receiver.translator.enters(to[1], source):
            return None
        return receiver, source

    def find(self, place: Place) -> Simulated | None:
        """The peer that the rendezvous knows under ``place``."""
        peer = self._hosts.get(place[0])
        return peer if peer is not None and peer.seen == place else None


class Simulated(Endpoint):
    """One peer behind a translator; made by :meth:`listen`.

    Args:
        identity: this peer.
        internet: where it is.
        kind: of its translator.
    """

    scheme = "simulated"

    def __init__(self, identity: Identity, internet: Internet, kind: Kind) -> None:
        super().__init__(identity)
        self._internet = internet
        self.translator = internet.join(self, kind)
        self.seen = self.translator.leaves(internet.rendezvous)

    @classmethod
    async def listen(cls, identity: Identity, internet: Internet, kind: Kind) -> Simulated:
        return cls(identity, internet, kind)

    def addresses(self) -> list[Address]:
        return [f"{SCHEME}{self.seen[0]}:{self.seen[1]}"]

    async def reach(self, peer: PeerId, addresses: Sequence[Address]) -> MuxConnection:
        await asyncio.sleep(0)
        for address in addresses:
            host, _, port = address.removeprefix(SCHEME).rpartition(":")
            if not host or not port.isdecimal():
                continue
            other = self._internet.find((host, int(port)))
            if other is None or other.id != peer or other.closed or not other.room():
                continue
            direct = self._exchange(self.translator, other.seen)
            if not direct and not self._punch(other):
                continue
            path: Literal["direct", "punched"] = "direct" if direct else "punched"
            mine, theirs = MemoryPipe.pair()
            own = self.addresses()[0]
            other.arrive(MuxConnection(theirs, self.id, dialled=False, path=path, remote=own))
            return MuxConnection(mine, peer, dialled=True, path=path, remote=address)
        raise Unreachable(f"{peer[:8]} lets nothing through")

    def _exchange(self, sender: Translator, to: Place) -> bool:
        """A packet, and the receiver's answer to where it came from: whether both arrive."""
        arrived = self._internet.send(sender, to)
        if arrived is None:
            return False
        receiver, source = arrived
        return self._internet.send(receiver.translator, source) is not None

    def _punch(self, other: Simulated) -> bool:
        """Both send at once, a few times."""
        return any(
            self._exchange(one.translator, two.seen)
            for _ in range(REPEATS)
            for one, two in ((self, other), (other, self))
        )
