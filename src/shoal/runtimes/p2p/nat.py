"""Through address translators: what is my address out there, and dialling from both sides at once.

**Observed addresses.** A peer behind a NAT does not know its own public address; whoever it is
connected to does. Each peer asks those it is connected to (``nat/observe``) and publishes the answers
beside its own addresses. Where two observers see the same address, the NAT maps by the inner address
alone ("cone"; RFC 4787: endpoint-independent mapping) and others can use it; where each sees another, it
is "symmetric" and nobody can.

**Simultaneous dialling.** A filter lets in only what it has seen asked for from inside. So a peer whose
dial failed asks one that both are connected to (``nat/punch``); that one tells the other (``nat/signal``)
and passes back its addresses, and both dial all addresses of each other at once: each side's first
packets open its own filter for the other's (Ford, Srisuresh, Kegel 2005; libp2p's DCUtR). QUIC repeats its
first packet, so the sides need not be closely in step.

What is passed on is a *wish* signed by the one who wants to connect, numbered upwards so that none is
used twice. Addresses are hints, never trusted: whoever answers must prove its key, and the number of
addresses that a stranger can make a peer send packets to is small.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from shoal.core import ShoalError

from .frames import Malformed, Refused, decode, encode
from .identity import Identity, is_peer_id, verify
from .limits import TokenBucket
from .node import Node
from .records import Key
from .transport.base import Address, Connection, PeerId, Unreachable
from .transport.iroh import Iroh

__all__ = ["Mapping", "Nat", "NoHelp", "dialable"]

OBSERVE, PUNCH, SIGNAL = "nat/observe", "nat/punch", "nat/signal"
EVERY = 30.0  # seconds between questions to one observer (NATs forget UDP mappings after 30 s to minutes)
UNANSWERED = 3.0  # ... or to one that has not answered
GLANCE = 1.0  # seconds between looks at this machine's own addresses
AFRESH = 5.0  # seconds between two times that observers are connected to anew
ASKED = 8  # observers at a time
PUBLISHED = 3  # observed addresses
CANDIDATES = 8  # addresses of the other side that are dialled
LOOK = 0.02  # seconds between looks whether the other side's dial was the first
TRY = 2.0  # seconds of one simultaneous dial: QUIC sends its first packet at 0 and 1 s
DIALS = 8  # simultaneous dials at other peers' wish, at a time
WISHES = 4096  # peers whose last wish is remembered

Mapping = Literal["unknown", "none", "cone", "symmetric"]
"""How this peer's NAT maps it: ``none`` where others see its own address."""

Place = Annotated[str, Meta(max_length=64)]
Places = Annotated[tuple[Place, ...], Meta(max_length=CANDIDATES)]


class Observe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where do you see me, and do you relay?"""


class Observed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An address of the asker, ``""`` where it came through a relay."""

    address: Annotated[str, Meta(max_length=128)]
    relays: bool


class Wish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``source`` wants to connect with ``target`` now, and listens at ``addresses``."""

    source: Key
    target: Key
    number: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    addresses: Places
    mapping: Mapping


class Signed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A wish, by whom it was signed, and (from the one in between) where the signer is seen."""

    wish: Annotated[bytes, Meta(max_length=1 << 10)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]
    seen: Place = ""


class Candidates(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the other side is dialled; it dials too, unless both sides' NATs are symmetric."""

    addresses: Places
    mapping: Mapping


class NoHelp(Unreachable):
    """The one asked could not tell the other side; another might."""


class Nat:
    """Observing and simultaneous dialling for one node.

    Args:
        node: whose iroh transport it serves.
        relays: whether this peer relays, which observers are told.
        offers: told (peer, whether it relays) for each connected peer, False when it goes.
    """

    def __init__(
        self, node: Node, relays: bool = False, offers: Callable[[PeerId, bool], None] | None = None
    ) -> None:
        self.node, self._relays = node, relays
        self._offers = offers or (lambda peer, relays: None)
        self._identity: Identity = node.identity
        self._iroh = next((t for t in node.transports if isinstance(t, Iroh)), None)
        self._seen: dict[PeerId, Address] = {}
        self._wishes: dict[PeerId, int] = {}
        self._asking: dict[PeerId, TokenBucket] = {}
        self._asked: dict[PeerId, float] = {}  # when
        self._suspicious, self._refreshed = False, 0.0
        self._dialling: set[PeerId] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        node.serve(OBSERVE, Observe, self._on_observe, limit=64)
        node.serve(PUNCH, Signed, self._on_punch, limit=1 << 11)
        node.serve(SIGNAL, Signed, self._on_signal, limit=1 << 11)
        node.on_connection(self._on_connection)

    async def start(self) -> None:
        """Begin to ask observers."""
        self._spawn(self._keep_asking())

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- observed addresses ---------------------------------------------------------------------------

    @property
    def mapping(self) -> Mapping:
        """What the observers' answers say about this peer's NAT."""
        if self._iroh is None or not self._seen:
            return "unknown"
        if set(self._seen.values()) & set(self._iroh.bound()):
            return "none"
        votes = Counter(self._seen.values())
        if votes.most_common(1)[0][1] > 1:
            return "cone"
        return "symmetric" if len(votes) > 1 else "unknown"

    async def observe(self, peer: PeerId) -> None:
        """Ask one connected peer."""
        try:
            said = await self.node.call(peer, OBSERVE, Observe(), Observed, idempotent=True)
        except ShoalError:
            self._forget(peer)
            return
        if self._direct(peer) is None:
            self._forget(peer)
            return
        if dialable(said.address):
            self._seen[peer] = said.address
        self._offers(peer, said.relays)
        self._publish()

    def _forget(self, peer: PeerId) -> None:
        self._seen.pop(peer, None)
        self._offers(peer, False)
        self._publish()

    def _publish(self) -> None:
        """The addresses that most observers see; one observer's word counts once."""
        if self._iroh is not None:
            votes = Counter(self._seen.values())
            self._iroh.external = [] if self.mapping == "symmetric" else [
                address for address, _ in votes.most_common(PUBLISHED)
            ]  # fmt: skip

    async def refresh(self) -> None:
        """Connect anew to some observers and ask them, because this peer's address may have changed.

        A connection survives when a NAT gives it another address, but both ends go on to report the
        address at which its path was opened (iroh 1.2). A new one shows the new address, and takes the
        old one's place.
        """
        now = time.monotonic()
        if self._iroh is None or now - self._refreshed < AFRESH:
            return
        self._refreshed, self._suspicious = now, False
        there = self.node.connections().items()
        plainly = [p for p, how in there if how.path == "direct" and how.remote in self.node.known(p)]
        await asyncio.gather(*(self._renew(self._iroh, peer) for peer in plainly[:2]))

    async def _renew(self, iroh: Iroh, peer: PeerId) -> None:
        with suppress(ShoalError, TimeoutError):
            async with asyncio.timeout(TRY / 2):
                await self.node.adopt(await iroh.dial(peer, self.node.known(peer)))
                await self.observe(peer)

    async def _on_observe(self, peer: PeerId, _: Observe) -> Observed:
        return Observed(self._direct(peer) or "", self._relays)

    def _on_connection(self, peer: PeerId, up: bool) -> None:
        if up:
            self._spawn(self.observe(peer))
        else:
            self._asking.pop(peer, None)
            self._suspicious = True  # perhaps it went because this peer's address has changed
            self._forget(peer)

    async def _keep_asking(self) -> None:
        own = None
        while True:
            await asyncio.sleep(GLANCE)
            bound = self._iroh.bound() if self._iroh is not None else []
            if own is not None and bound != own:
                self._asked.clear()  # another network: what was seen says nothing any more
            if self._suspicious:
                await self.refresh()
            own, now = bound, time.monotonic()
            there = [peer for peer in self.node.connections() if self._direct(peer) is not None]
            asked = self._asked = {peer: self._asked.get(peer, 0.0) for peer in there}
            due = [p for p in there if now - asked[p] > (EVERY if p in self._seen else UNANSWERED)]
            chosen = sorted(due, key=asked.__getitem__)[:ASKED]
            asked.update(dict.fromkeys(chosen, now))
            await asyncio.gather(*(self.observe(peer) for peer in chosen))

    # -- simultaneous dialling ------------------------------------------------------------------------

    async def punch(self, peer: PeerId, helper: PeerId) -> Connection:
        """Have ``helper`` tell ``peer`` to dial, and dial it at the same time.

        Raises:
            NoHelp: ``helper`` could not.
            Unreachable: it came to nothing, or ``peer`` is connected by its own dial already.
        """
        if self._iroh is None:
            raise Unreachable("no transport here dials through NATs")
        if self._suspicious:
            await self.refresh()
        wish = encode(Wish(self.node.id, peer, time.time_ns(), self._own(), self.mapping))
        signed = Signed(wish, self._identity.sign(PUNCH, wish))
        self._expect(peer)  # the other side's dial may come before the answer
        try:
            answer = await self.node.call(helper, PUNCH, signed, Candidates, deadline=2 * TRY)
        except ShoalError as error:
            raise NoHelp(f"{helper[:8]} does not help: {error}") from None
        if self.mapping == answer.mapping == "symmetric":
            raise Unreachable(f"{peer[:8]} and this peer are both behind symmetric NATs")
        return await self._dial(peer, answer.addresses, answer.mapping)

    def _expect(self, peer: PeerId, mapping: Mapping = "unknown") -> None:
        """Connections with ``peer`` in the next seconds come of a simultaneous dial.

        With one end in the open (``mapping``: the peer's) they are plain: it was only asked to be dialled.
        """
        if self._iroh is not None and "none" in (mapping, self.mapping):
            self._iroh.plain(peer)
        elif self._iroh is not None:
            self._iroh.punching.add(peer)
            asyncio.get_running_loop().call_later(2 * TRY, self._iroh.punching.discard, peer)

    def _own(self) -> tuple[Address, ...]:
        return tuple(self._iroh.addresses()[:CANDIDATES]) if self._iroh is not None else ()

    async def _on_punch(self, peer: PeerId, signed: Signed) -> Candidates:
        """The one in between: tell the target, and tell the source where the target is."""
        wish = _read(signed, peer)
        node = self.node
        if self._direct(wish.target) is None:
            raise Refused("not connected to that peer", 0.0)
        bucket = self._asking.setdefault(peer, TokenBucket(1.0, 16.0, time.monotonic()))
        if bucket.ask(time.monotonic()):
            raise Refused("too many wishes", 0.2)
        seen = self._direct(peer) or ""
        try:
            answer = await node.call(
                wish.target, SIGNAL, msgspec.structs.replace(signed, seen=seen), Candidates, deadline=TRY
            )
        except ShoalError:
            raise Refused("that peer does not answer", 0.0) from None
        target = self._direct(wish.target)  # now: it may have connected anew
        places = dict.fromkeys([*([target] if target else []), *answer.addresses])
        return Candidates(tuple(places)[:CANDIDATES], answer.mapping)

    async def _on_signal(self, helper: PeerId, signed: Signed) -> Candidates:
        """The far end: dial whoever signed the wish."""
        wish = _read(signed, None)
        node = self.node
        if wish.target != node.id or (node.allow is not None and wish.source not in node.allow):
            raise Refused("not for this peer", 0.2)
        if wish.number <= self._wishes.get(wish.source, -1):
            raise Refused("an old wish", 0.2)
        if len(self._dialling) >= DIALS:
            raise Refused("too many wishes", 0.0)
        self._wishes.pop(wish.source, None)
        self._wishes[wish.source] = wish.number
        while len(self._wishes) > WISHES:
            del self._wishes[next(iter(self._wishes))]
        if self._direct(wish.source) is not None:
            await self.refresh()  # what was a connection is none for the other side
        if wish.source not in self._dialling and self._iroh is not None:
            places = tuple(dict.fromkeys(filter(None, [signed.seen, *wish.addresses])))
            if not self.mapping == wish.mapping == "symmetric":
                self._spawn(self._answer(wish.source, places[:CANDIDATES], wish.mapping))
        return Candidates(self._own(), self.mapping)

    async def _answer(self, peer: PeerId, places: Sequence[Address], mapping: Mapping) -> None:
        with suppress(ShoalError, TimeoutError):
            await self.node.adopt(await self._dial(peer, places, mapping))

    async def _dial(self, peer: PeerId, places: Sequence[Address], mapping: Mapping) -> Connection:
        """This side of a simultaneous dial; gives up once the other side's has come through."""
        iroh, before = self._iroh, self._direct(peer)
        if iroh is None:
            raise Unreachable("no transport here dials through NATs")
        dial = asyncio.create_task(iroh.dial(peer, [place for place in places if dialable(place)]))
        self._dialling.add(peer)
        self._expect(peer, mapping)
        try:
            async with asyncio.timeout(TRY):
                while not dial.done() and self._direct(peer) in (None, before):
                    await asyncio.wait([dial], timeout=LOOK)
        except TimeoutError:
            raise Unreachable(f"{peer[:8]} did not come through in {TRY:g} s") from None
        finally:
            self._dialling.discard(peer)
            if not dial.done():
                dial.cancel()
                await asyncio.gather(dial, return_exceptions=True)
        if dial.cancelled():
            raise Unreachable(f"{peer[:8]} came through by its own dial")
        return dial.result()

    def _direct(self, peer: PeerId) -> Address | None:
        """The far end of the connection to ``peer``; None if there is none, or a relayed one."""
        connected = self.node.connections().get(peer)
        return None if connected is None or connected.path == "relayed" else connected.remote

    def _spawn(self, call: Any) -> None:
        task = asyncio.create_task(call)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _read(signed: Signed, source: PeerId | None) -> Wish:
    """The wish, which ``source`` (None: whoever it names) must have signed."""
    try:
        wish = decode(signed.wish, Wish)
    except Malformed:
        raise Refused("malformed wish") from None
    if source is not None and wish.source != source:
        raise Refused("another peer's wish")
    if not is_peer_id(wish.target) or not verify(wish.source, PUNCH, signed.wish, signed.signature):
        raise Refused("forged wish")
    return wish


def dialable(address: Address) -> bool:
    """Whether this is ``iroh://HOST:PORT`` with an IP address that a peer can be dialled at."""
    scheme, _, place = address.partition("://")
    host, _, port = place.rpartition(":")
    if scheme != "iroh" or not port.isdecimal() or not port.isascii() or not 0 < int(port) < 65536:
        return False
    try:
        ip = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return not (ip.is_multicast or ip.is_unspecified or ip == ipaddress.IPv4Address("255.255.255.255"))
