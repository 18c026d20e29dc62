"""How a peer is reached: directly; else by dialling from both sides at once; else through a relay.

:class:`Ladder` is a node's dialler. Whoever was once reached only through a relay is reached that way at
once the next time, and every relayed connection is tried again, with back-off, from the first rung: a
direct connection takes its place as soon as there is one. Of the two ends the one with the smaller id
tries. The ladder of libp2p (direct, DCUtR, circuit relay) and Lattica (arXiv 2510.00183).

:func:`serve_relay` is a peer that does nothing but help others to meet.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from shoal.core import ShoalError

from .identity import Identity
from .limits import Limits
from .nat import Nat, NoHelp
from .node import Node
from .relay import Grants, Relay, plain, via
from .transport.base import Address, Connection, Path, PeerId, Transport, Unreachable
from .transport.iroh import Iroh
from .transport.tcp import Tcp

__all__ = ["Ladder", "serve_relay"]

DIRECT = 1.0  # seconds for a plain dial while there is another rung (which dials the same addresses too)
STAGGER = 0.2  # seconds that one transport has before the next one dials as well
HELPERS = 3  # peers asked to help with a dial, one after the other
RELAYS = 4  # ... and to relay
AGAIN, AGAIN_MOST = 2.0, 300.0  # seconds until a relayed connection is tried directly again: doubled
REMEMBERED = 1024  # peers that were reached through a relay
LOOK = 0.5  # seconds between looks for relayed connections


class Ladder:
    """The dialler of ``node``; sets itself up there.

    Args:
        node: not started yet.
        relay: one of its transports.

    Attributes:
        nat: observed addresses and simultaneous dialling.
        reached: how often a dial succeeded, by path.
    """

    def __init__(self, node: Node, relay: Relay) -> None:
        self.node, self.relay = node, relay
        self.nat = Nat(node, relay.grants is not None, self._offer)
        self.reached: Counter[Path] = Counter()
        self._again: dict[PeerId, tuple[float, float, object]] = {}  # when, delay, what it depends on
        self._task: asyncio.Task[None] | None = None
        relay.attach(node)
        node.dialler = self

    async def start(self) -> None:
        """Begin to observe, and to look for better paths; after the node has been started."""
        await self.nat.start()
        self._task = asyncio.create_task(self._improve(), name=f"ladder {self.node.id[:8]}")

    async def stop(self) -> None:
        """Before the node is stopped."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.nat.stop()

    async def __call__(self, peer: PeerId, addresses: Sequence[Address]) -> Connection:
        """A connection to ``peer``.

        Raises:
            Unreachable: by no rung, and why.
        """
        relayed_last = peer in self._again
        reasons = []
        for rung in (self._relayed, self._near) if relayed_last else (self._near, self._relayed):
            try:
                connection = await rung(peer, addresses)
            except Unreachable as error:
                reasons.append(str(error))
                if self._adjoins(peer):  # it was quicker
                    break
                continue
            self.reached[connection.path] += 1
            return connection
        raise Unreachable("; ".join(reasons))

    # -- the rungs ------------------------------------------------------------------------------------

    async def _near(self, peer: PeerId, addresses: Sequence[Address]) -> Connection:
        """Without a relay: plainly, then from both sides."""
        helpers = self._others(peer, addresses)[:HELPERS]
        limit = DIRECT if helpers else self.node.limits.connect_s
        reasons = []
        try:
            async with asyncio.timeout(limit):
                return await self._direct(peer, plain(addresses))
        except Unreachable as error:
            reasons.append(str(error))
        except TimeoutError:
            reasons.append(f"{peer[:8]} did not answer within {limit:g} s")
        for helper in helpers:
            try:
                return await self.nat.punch(peer, helper)
            except NoHelp as error:
                reasons.append(str(error))
            except Unreachable as error:  # tried; a relayed connection will see further tries
                reasons.append(str(error))
                break
        raise Unreachable("; ".join(reasons))

    async def _direct(self, peer: PeerId, addresses: Sequence[Address]) -> Connection:
        """All transports that know an address, each a little after the one before; the first to connect."""
        dials = [
            asyncio.create_task(self._later(place * STAGGER, transport, peer, mine))
            for place, (transport, mine) in enumerate(self._fitting(addresses))
        ]
        error = Unreachable(f"{peer[:8]} has no known address")
        won: Connection | None = None
        try:
            for dial in asyncio.as_completed(dials):
                try:
                    won = await dial
                    return won
                except Unreachable as fault:
                    error = fault
            raise error
        finally:
            for task in dials:
                task.cancel()
            for made in await asyncio.gather(*dials, return_exceptions=True):
                if isinstance(made, Connection) and made is not won:
                    await made.close()

    @staticmethod
    async def _later(
        delay: float, transport: Transport, peer: PeerId, addresses: Sequence[Address]
    ) -> Connection:
        await asyncio.sleep(delay)
        return await transport.dial(peer, addresses)

    def _fitting(self, addresses: Sequence[Address]) -> list[tuple[Transport, list[Address]]]:
        pairs = [
            (transport, [a for a in addresses if a.startswith(f"{transport.scheme}://")])
            for transport in self.node.transports
        ]
        return [(transport, mine) for transport, mine in pairs if mine]

    async def _relayed(self, peer: PeerId, addresses: Sequence[Address]) -> Connection:
        """Through the relays that the peer names, then through those that are connected here."""
        named = [relay for relay in via(addresses) if relay != self.node.id]
        relays = list(dict.fromkeys([*named, *self._others(peer, addresses)]))[:RELAYS]
        connection = await self.relay.dial(peer, [f"relay://{relay}" for relay in relays])
        self._again.setdefault(peer, (time.monotonic() + AGAIN, AGAIN, None))
        while len(self._again) > REMEMBERED:
            del self._again[next(iter(self._again))]
        return connection

    def _others(self, peer: PeerId, addresses: Sequence[Address]) -> list[PeerId]:
        """Who is connected and may know ``peer``: its own relays, those that relay, then the nearest."""
        named = via(addresses)
        near = {
            other: (other not in named, other not in self.relay.offering, how.rtt_s or 1.0)
            for other, how in self.node.connections().items()
            if other != peer and how.path != "relayed"
        }
        return sorted(near, key=near.__getitem__)

    def _adjoins(self, peer: PeerId) -> bool:
        how = self.node.connections().get(peer)
        return how is not None and how.path != "relayed"

    def _offer(self, peer: PeerId, relays: bool) -> None:
        (self.relay.offering.add if relays else self.relay.offering.discard)(peer)

    # -- from a relay to something better -------------------------------------------------------------

    async def _improve(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            connected = self.node.connections()
            for peer in [p for p in self._again if p in connected and connected[p].path != "relayed"]:
                del self._again[peer]
            relayed = [peer for peer, how in connected.items() if how.path == "relayed"]
            await asyncio.gather(*(self._try(peer) for peer in relayed if self.node.id < peer))

    async def _try(self, peer: PeerId) -> None:
        """One more attempt without the relay, if it is time, or if an address has changed."""
        world = (self.node.known(peer), tuple(plain(self.node.addresses())))
        due, delay, before = self._again.get(peer, (time.monotonic() + AGAIN, AGAIN, None))
        if before not in (None, world):
            due, delay = 0.0, AGAIN / 2
        if time.monotonic() < due:
            self._again[peer] = (due, delay, world)
            return
        delay = min(2 * delay, AGAIN_MOST)
        self._again[peer] = (time.monotonic() + delay, delay, world)
        with suppress(ShoalError, TimeoutError):
            async with asyncio.timeout(self.node.limits.connect_s):
                connection = await self._near(peer, self.node.known(peer))
            self.reached[connection.path] += 1
            await self.node.adopt(connection)


async def serve_relay(
    identity: Identity,
    host: str = "0.0.0.0",
    port: int = 0,
    *,
    grants: Grants | None = None,
    limits: Limits | None = None,
    allow: set[PeerId] | None = None,
    ready: Callable[[Node, Relay], Awaitable[None]] | None = None,
) -> None:
    """Serve observations, simultaneous dials and relaying until cancelled.

    Args:
        identity: of the relay.
        host, port: where it listens, UDP (iroh) and TCP; 0: any free ports.
        grants: what it passes on.
        limits: what it grants each peer.
        allow: whom it serves; None: everyone.
        ready: told once it listens (its addresses are ``node.addresses()``).

    Raises:
        BadInput: it cannot listen there.
    """
    iroh = await Iroh.listen(identity, host, port)
    try:
        tcp = await Tcp.listen(identity, host, port)
    except BaseException:
        await iroh.close()
        raise
    relay = Relay(identity, grants or Grants())
    node = Node(identity, [iroh, tcp, relay], limits=limits, allow=allow)
    ladder = Ladder(node, relay)
    await node.start()
    await ladder.start()
    try:
        if ready is not None:
            await ready(node, relay)
        await asyncio.get_running_loop().create_future()
    finally:
        await ladder.stop()
        await node.stop()
