"""Connections through a third peer, for two that cannot reach each other.

A peer that cannot dial another asks a willing one (``relay/open``) to pass bytes on; that one opens a
stream to the other (``relay/leg``) and pumps. The two ends run the Noise handshake over the pumped bytes
as over any pipe, so the relay sees lengths, times and ciphertext, and can neither read, forge nor pose
as either end. What each relay grants is bounded: circuits in all and of one peer, bytes a second, and
a time without traffic. A relay connects only peers that are connected to it already, without a relay.

:class:`Relay` is both halves: a transport of addresses ``relay://PEERID`` and, with ``grants``, the
service. The scheme follows libp2p's circuit relay v2, whose reservation is here the connection itself.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from shoal.core import BadInput, Part, ShoalError

from .channel import Channel
from .identity import Identity
from .limits import TokenBucket
from .records import Key
from .transport.base import Address, Broken, Connection, PeerId, Stream, Transport, Unreachable
from .transport.mux import MuxConnection
from .transport.pipe import StreamPipe
from .transport.secure import secure_connection

if TYPE_CHECKING:
    from .node import Node

__all__ = ["Grants", "Relay"]

SCHEME = "relay://"
OPEN, LEG = "relay/open", "relay/leg"
ANSWER = 3.0  # seconds for the far end to take its leg
PIECE = 1 << 16  # bytes pumped at a time, so also what a circuit holds in each direction
SILENCE = 1 << 10  # bytes that do not count as traffic: signs of life
LEGS = 64  # circuits that end here, in all
SMALL = 1 << 10  # bytes of a message

Positive = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]


@dataclass(frozen=True)
class Grants(Part):
    """What a willing peer does for others.

    Args:
        circuits: at a time.
        circuits_each: ... of which one peer is an end.
        bytes_per_s: of all circuits together.
        bytes_each: bytes a second of one circuit, both directions together.
        idle_s: seconds without traffic after which a circuit is closed (signs of life are none).
    """

    circuits: Count = 128
    circuits_each: Count = 16
    bytes_per_s: Positive = float(1 << 27)
    bytes_each: Positive = float(1 << 25)
    idle_s: Positive = 300.0


class Open(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Asks a relay for a circuit to a peer."""

    to: Key


class Leg(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Tells the far end who is at the other."""

    source: Key


class Opened(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether the circuit, or the leg, is open; if not, why."""

    refused: Annotated[str, Meta(max_length=100)] = ""


class Circuit:
    """What a relay knows of one circuit.

    Attributes:
        ends: who asked, and whom for.
        moved: bytes passed on, both directions.
    """

    def __init__(self, ends: tuple[PeerId, PeerId], grants: Grants) -> None:
        self.ends = ends
        self.moved = 0
        self.bucket = TokenBucket(grants.bytes_each, grants.bytes_each, time.monotonic())


class Relay(Transport):
    """Dials through relays, is dialled through relays, and is one where it has ``grants``.

    Args:
        identity: this peer.
        grants: what it does for others; None: nothing.

    Attributes:
        offering: connected peers that said that they relay, published as addresses of this peer.
        circuits: that it passes on at present.
        moved: bytes that it has passed on, by (who asked, whom for).
        refused: circuits that it did not open, by reason.
    """

    scheme = "relay"

    def __init__(self, identity: Identity, grants: Grants | None = None) -> None:
        self.id = identity.id
        self.grants = grants
        self.offering: set[PeerId] = set()
        self.circuits: set[Circuit] = set()
        self.moved: Counter[tuple[PeerId, PeerId]] = Counter()
        self.refused: Counter[str] = Counter()
        self._identity = identity
        self._node: Node | None = None
        self._arrived: asyncio.Queue[Connection | None] = asyncio.Queue(LEGS + 1)
        self._connections: set[MuxConnection] = set()
        self._legs: Counter[PeerId] = Counter()
        self._bucket = TokenBucket(1, 1, 0)
        self._closed = False
        if grants is not None:
            self._bucket = TokenBucket(grants.bytes_per_s, grants.bytes_per_s, time.monotonic())

    def attach(self, node: Node) -> None:
        """Answer on ``node``, one of whose transports this is."""
        if self not in node.transports:
            raise BadInput("transports", "relay", "a node that has this transport")
        self._node = node
        node.serve_stream(OPEN, self._on_open)
        node.serve_stream(LEG, self._on_leg)

    # -- the transport --------------------------------------------------------------------------------

    def addresses(self) -> list[Address]:
        return [SCHEME + peer for peer in sorted(self.offering)[:4]]

    async def dial(self, peer: PeerId, addresses: Sequence[Address]) -> Connection:
        reasons = []
        for relay in (address.removeprefix(SCHEME) for address in addresses):
            if relay in (self.id, peer):
                continue
            try:
                return await self._through(relay, peer)
            except (ShoalError, TimeoutError) as error:
                reasons.append(f"{relay[:8]}: {error or 'no answer'}")
        raise Unreachable(f"{peer[:8]} through no relay ({'; '.join(reasons) or 'none known'})")

    async def accept(self) -> Connection:
        connection = None if self._closed else await self._arrived.get()
        if connection is None:
            raise Broken("the transport was closed")
        return connection

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            while not self._arrived.empty():
                self._arrived.get_nowait()
            self._arrived.put_nowait(None)
        await asyncio.gather(*(connection.close() for connection in list(self._connections)))

    async def _through(self, relay: PeerId, peer: PeerId) -> Connection:
        node = self._attached()
        if not self.adjoins(relay):  # never reached through another relay in turn
            await node.adopt(await node.dial_direct(relay, plain(node.known(relay))))
        stream = await node.open(relay, OPEN)
        try:
            async with asyncio.timeout(2 * ANSWER):
                await stream.send(Open(peer))
                answer = await stream.receive(Opened, SMALL)
            if answer.refused:
                raise Unreachable(answer.refused if answer.refused.isprintable() else "refused")
            return await self._secure(stream, relay, peer, initiator=True)
        except BaseException:
            stream.abort()
            raise

    async def _secure(
        self, stream: Stream, relay: PeerId, peer: PeerId, *, initiator: bool
    ) -> MuxConnection:
        connection = await secure_connection(
            StreamPipe(stream), self._identity, peer, initiator, path="relayed", remote=SCHEME + relay
        )
        self._connections.add(connection)
        connection.on_end(lambda: self._connections.discard(connection))
        return connection

    def adjoins(self, peer: PeerId) -> bool:
        """Whether ``peer`` is connected, and not by a relay itself."""
        connected = self._attached().connections().get(peer)
        return connected is not None and connected.path != "relayed"

    def _attached(self) -> Node:
        if self._node is None or self._closed:
            raise Unreachable("this transport has been closed")
        return self._node

    # -- the far end ----------------------------------------------------------------------------------

    async def _on_leg(self, relay: PeerId, stream: Channel) -> None:
        """A relay says that a peer wants to connect; the stream lives as long as the connection."""
        leg = await stream.receive(Leg, SMALL)
        node = self._attached()
        refused = ""
        if node.allow is not None and leg.source not in node.allow:
            refused = "not allowed"
        elif sum(self._legs.values()) >= LEGS or leg.source in (self.id, relay):
            refused = "too many circuits"
        await stream.send(Opened(refused))
        if refused:
            await stream.finish()
            return
        self._legs[relay] += 1
        try:
            connection = await self._secure(stream, relay, leg.source, initiator=False)
            ended = asyncio.Event()
            connection.on_end(ended.set)
            self._arrived.put_nowait(connection)  # has room for every leg
            await ended.wait()
        except Unreachable:
            stream.abort()
        finally:
            self._legs[relay] -= 1

    # -- the relay ------------------------------------------------------------------------------------

    async def _on_open(self, source: PeerId, stream: Channel) -> None:
        """A peer wants a circuit; the stream lives as long as that."""
        target = (await stream.receive(Open, SMALL)).to
        refused = self._refusal(source, target)
        circuit = None
        if not refused and self.grants is not None:
            circuit = Circuit((source, target), self.grants)
            self.circuits.add(circuit)  # counted before anything is awaited
        try:
            if circuit is not None:
                async with await self._attached().open(target, LEG) as leg:
                    refused = await self._ask(leg, source)
                    if not refused:
                        await stream.send(Opened())
                        await self._pump(circuit, stream, leg)
                        return
        except (ShoalError, TimeoutError):
            refused = refused or "the far end does not answer"
        finally:
            if circuit is not None:
                self.circuits.discard(circuit)
        self.refused[refused] += 1
        with suppress(Broken):
            await stream.send(Opened(refused))
            await stream.finish()

    def _refusal(self, source: PeerId, target: PeerId) -> str:
        if self.grants is None:
            return "not willing"
        if not self.adjoins(source) or not self.adjoins(target) or source == target:
            return "not connected to both"
        if len(self.circuits) >= self.grants.circuits:
            return "too many circuits"
        each = Counter(end for circuit in self.circuits for end in circuit.ends)
        if max(each[source], each[target]) >= self.grants.circuits_each:
            return "too many circuits of one peer"
        return ""

    @staticmethod
    async def _ask(leg: Channel, source: PeerId) -> str:
        async with asyncio.timeout(ANSWER):
            await leg.send(Leg(source))
            return (await leg.receive(Opened, SMALL)).refused

    async def _pump(self, circuit: Circuit, one: Stream, other: Stream) -> None:
        """Pass bytes on until either end has gone, or nothing moves any more."""
        tasks = [
            asyncio.create_task(self._pass(circuit, one, other)),
            asyncio.create_task(self._pass(circuit, other, one)),
            asyncio.create_task(self._watch(circuit)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            one.abort()
            other.abort()

    async def _pass(self, circuit: Circuit, source: Stream, sink: Stream) -> None:
        with suppress(Broken):
            while data := await source.read(PIECE):
                now = time.monotonic()
                delay = max(circuit.bucket.charge(len(data), now), self._bucket.charge(len(data), now))
                if delay > 0:
                    await asyncio.sleep(delay)
                await sink.write(data)
                circuit.moved += len(data)
                self.moved[circuit.ends] += len(data)

    async def _watch(self, circuit: Circuit) -> None:
        assert self.grants is not None
        before = -SILENCE - 1
        while circuit.moved - before > SILENCE:
            before = circuit.moved
            await asyncio.sleep(self.grants.idle_s)


def plain(addresses: Sequence[Address]) -> list[Address]:
    """The addresses that lead to a peer itself, not to a relay."""
    return [address for address in addresses if not address.startswith(SCHEME)]


def via(addresses: Sequence[Address]) -> list[PeerId]:
    """The relays that addresses name, in order."""
    return [address.removeprefix(SCHEME) for address in addresses if address.startswith(SCHEME)]
