"""Who is connected: one connection a peer, made when needed and again when it broke.

Dials are shared by all who wait for the peer and spaced out after failures. Of two connections that
peers make at once one stays (see :mod:`.link`). A peer that is not on the allow-list, is banned, or has
too many connections is not let in; what was refused is counted by (peer, reason).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from shoal.core import BadInput, ShoalError

from .book import Book
from .conduct import Conduct
from .frames import Malformed
from .identity import Identity, is_peer_id
from .limits import Limits
from .link import Incompatible, Link, supersedes
from .transport.base import Address, Broken, Connection, Path, PeerId, Stream, Transport, Unreachable

__all__ = ["Connected", "Connections"]

LINKS = 6  # connections of one peer at a time, dialled from both ends and those on their way out included

logger = logging.getLogger(__name__)


class Connected(NamedTuple):
    """How a peer is connected at present."""

    path: Path
    rtt_s: float | None
    remote: Address


class Connections(ABC):
    """All connections of one peer.

    Args:
        identity: this peer.
        transports: already listening; closed by :meth:`stop`. A dial tries them in this order.
        limits: what each peer is granted.
        allow: the peers that may be talked to; None for everyone.

    Attributes:
        id: this peer.
        refusals: how often what a peer did was refused, by (peer, reason).
        dialler: makes a connection to (peer, known addresses), or raises Unreachable.
    """

    def __init__(
        self,
        identity: Identity,
        transports: Sequence[Transport],
        *,
        limits: Limits | None = None,
        allow: set[PeerId] | None = None,
    ) -> None:
        for transport in transports:
            if transport.id != identity.id:
                raise BadInput("transports", transport.scheme, f"transports of {identity.id[:8]}")
        self.id = identity.id
        self.identity, self.transports = identity, list(transports)
        self.limits, self.allow = limits or Limits(), allow
        self.conduct = Conduct(self.limits)
        self.refusals = self.conduct.refusals
        self.dialler: Callable[[PeerId, Sequence[Address]], Awaitable[Connection]] = self.dial_direct
        self._life = secrets.token_bytes(8)
        self._book = Book()
        self._current: dict[PeerId, Link] = {}
        self._links: set[Link] = set()
        self._waiters: dict[PeerId, asyncio.Future[None]] = {}
        self._watchers: list[Callable[[PeerId, bool], None]] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._accepting: list[asyncio.Task[Any]] = []
        self._stopped = False

    # -- the whole ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Let peers in."""
        self._accepting = [self._spawn(self._accept(transport)) for transport in self.transports]

    async def stop(self) -> None:
        """Let calls in progress finish for ``grace_s``, then close everything."""
        self._stopped = True
        for task in self._accepting:
            task.cancel()
        leaving = [asyncio.create_task(link.leave()) for link in self._links]
        if leaving:
            await asyncio.wait(leaving, timeout=self.limits.grace_s)
        for task in leaving:
            task.cancel()
        links = list(self._links)
        await asyncio.gather(*leaving, *(link.close() for link in links), return_exceptions=True)
        for link in links:
            self._down(link)
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(transport.close() for transport in self.transports))

    # -- who is there ---------------------------------------------------------------------------------

    def learn(self, peer: PeerId, addresses: Sequence[Address]) -> None:
        """Where ``peer`` may be dialled, best first; replaces what was known."""
        if peer != self.id and is_peer_id(peer):
            self._book.learn(peer, addresses)

    def known(self, peer: PeerId) -> tuple[Address, ...]:
        """The addresses that :meth:`learn` was told."""
        return self._book.known(peer)

    def addresses(self) -> list[Address]:
        """Where this node listens."""
        return [address for transport in self.transports for address in transport.addresses()]

    def connections(self) -> dict[PeerId, Connected]:
        """The peers that are connected."""
        return {
            peer: Connected(link.connection.path, link.standing.trip.smooth, link.connection.remote)
            for peer, link in self._current.items()
            if link.connection.alive
        }

    def round_trip(self, peer: PeerId) -> tuple[float, float] | None:
        """Smoothed round trip and its deviation in seconds, without handlers' time; None if unknown."""
        trip = self.conduct.trip(peer)
        return None if trip is None or trip.smooth is None else (trip.smooth, trip.deviation)

    def on_connection(self, callback: Callable[[PeerId, bool], None]) -> None:
        """Call ``callback(peer, up)`` whenever a peer becomes connected or ceases to be."""
        self._watchers.append(callback)

    def refuse(self, peer: PeerId, reason: str, weight: float = 1.0) -> None:
        """Count that what ``peer`` did was refused; too often, and it is banned for a while.

        Args:
            reason: short and fixed, since it is a counter's key.
            weight: strikes (see :class:`~.limits.Limits`).
        """
        if self.conduct.refuse(peer, reason, weight):
            logger.warning("%s is banned for %.0f s: %s", peer[:8], self.banned(peer), reason)
            for link in [link for link in self._links if link.peer == peer]:
                self._spawn(self._drop(link))

    def banned(self, peer: PeerId) -> float:
        """Seconds for which ``peer`` is still banned; 0 where it is not."""
        return self.conduct.banned(peer)

    async def disconnect(self, peer: PeerId) -> None:
        """Break the connection to ``peer``, if there is one."""
        for link in [link for link in self._links if link.peer == peer]:
            await self._drop(link)

    # -- making connections ---------------------------------------------------------------------------

    async def dial_direct(self, peer: PeerId, addresses: Sequence[Address]) -> Connection:
        """The plain way: each transport with the addresses of its kind, one after the other."""
        fitting = [
            (transport, mine)
            for transport in self.transports
            if (mine := [a for a in addresses if a.partition("://")[0] == transport.scheme])
        ]
        for transport, mine in fitting:
            with suppress(Unreachable, TimeoutError):
                async with asyncio.timeout(self.limits.connect_s / len(fitting)):
                    return await transport.dial(peer, mine)
        raise Unreachable(f"{peer[:8]} at none of {len(addresses)} addresses")

    async def adopt(self, connection: Connection) -> None:
        """Take in a connection that came about otherwise (a relay's), greet, and use it.

        Raises:
            ShoalError: the peer may not be here, or what it said is no greeting.
            TimeoutError: it said nothing.
        """
        peer = connection.peer
        link = Link(connection, self.conduct.standing(peer), self.limits)
        self._links.add(link)
        try:
            self._admit(peer)
            async with asyncio.timeout(self.limits.connect_s):
                if connection.dialled:
                    await link.greet(self._life, link.standing.lost)
                    self._settle(link, bytes(8))
                else:
                    greeting = await link.welcome()
                    self._admit(peer)
                    self._settle(link, greeting.after)
                    await link.answer(self._life, link.standing.lost)
        except BaseException:
            if self._current.get(peer) is not link:
                self._links.discard(link)
            await link.close()
            raise

    def _admit(self, peer: PeerId) -> None:
        """Raise where the peer may not have another connection."""
        if self._stopped:
            raise Unreachable("this node has been stopped")
        if peer == self.id:
            raise Unreachable("that is this peer's own key")
        if wait := self.banned(peer):
            raise Unreachable(f"{peer[:8]} is banned for {wait:.0f} s")
        if self.allow is not None and peer not in self.allow:
            self.refuse(peer, "not on the allow-list", 0.0)
            raise Unreachable(f"{peer[:8]} is not on the allow-list")
        if len(self._links) > self.limits.peers:
            self.refuse(peer, "too many connections", 0.0)
            raise Unreachable("there are too many connections")
        if sum(link.peer == peer for link in self._links) > LINKS:
            self.refuse(peer, "too many connections of one peer", 0.2)
            raise Unreachable(f"{peer[:8]} has too many connections")

    async def _accept(self, transport: Transport) -> None:
        with suppress(Broken):
            while True:
                self._spawn(self._welcome(await transport.accept()))

    async def _welcome(self, connection: Connection) -> None:
        peer = connection.peer
        try:
            await self.adopt(connection)
        except (Malformed, Incompatible) as error:
            self.refuse(peer, str(error) if isinstance(error, Malformed) else "another version")
        except TimeoutError:
            self.refuse(peer, "no greeting")
        except (Unreachable, Broken):
            pass

    async def _reach(self, peer: PeerId) -> Link:
        """A connection that new streams may use."""
        while True:
            link = self._current.get(peer)
            if link is not None and link.usable:
                return link
            waiter = self._waiters.get(peer)
            if waiter is None:
                self._admit_dial(peer)
                waiter = self._waiters[peer] = asyncio.get_running_loop().create_future()
                waiter.add_done_callback(_retrieve)
                self._spawn(self._dial(peer, waiter))
            await asyncio.shield(waiter)

    def _admit_dial(self, peer: PeerId) -> None:
        if peer == self.id or not is_peer_id(peer):
            raise BadInput("peer", peer, "another peer's id of 64 hexadecimal digits")
        self._admit(peer)
        if wait := self._book.wait(peer):
            raise Unreachable(f"{peer[:8]} could not be reached; tried again in {wait:.2g} s")

    async def _dial(self, peer: PeerId, waiter: asyncio.Future[None]) -> None:
        error: ShoalError = Unreachable(f"{peer[:8]} has gone again")
        try:
            async with asyncio.timeout(self.limits.connect_s):
                await self.adopt(await self.dialler(peer, self.known(peer)))
        except TimeoutError:
            error = Unreachable(f"{peer[:8]} did not answer within {self.limits.connect_s:g} s")
        except (Malformed, Incompatible) as fault:
            self.refuse(peer, str(fault) if isinstance(fault, Malformed) else "another version")
            error = fault if isinstance(fault, Incompatible) else Unreachable(f"{peer[:8]} did not greet")
        except Broken as fault:
            error = Unreachable(f"{peer[:8]} hung up: {fault}")
        except ShoalError as fault:
            error = fault
        finally:
            if self._waiters.get(peer) is waiter:
                del self._waiters[peer]
            if not waiter.done():
                current = self._current.get(peer)
                if current is not None and current.usable:
                    waiter.set_result(None)
                else:
                    self._book.failed(peer)
                    waiter.set_exception(error)

    def _settle(self, link: Link, lost: bytes) -> None:
        """Use the link, or the one that there is, and let the other go."""
        peer = link.peer
        old = self._current.get(peer)
        if old is None or not old.usable or supersedes(link, old, self.id, lost):
            self._current[peer] = link
            if old is not None:
                dead = lost == old.token or old.life != link.life
                self._spawn(self._drop(old) if dead else old.leave())
            else:
                self._tell(peer, True)
        else:
            self._spawn(link.leave())
        self._book.reached(peer)
        self._spawn(self._run(link))
        waiter = self._waiters.pop(peer, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # -- while a connection lasts -----------------------------------------------------------------------

    async def _run(self, link: Link) -> None:
        attending = self._spawn(self._attend(link))
        if not link.connection.dialled:
            link.check()  # the greeting has told the dialler the round trip, but not this end
        try:
            while True:
                stream = await link.connection.accept()
                await link.standing.slots.acquire()  # while all are taken nothing more is accepted
                link.began()
                self._spawn(self._take(link, stream))
        except Broken:
            pass
        finally:
            attending.cancel()
            self._down(link)
            await link.close()

    async def _attend(self, link: Link) -> None:
        peer = link.peer
        try:
            await link.attend(lambda: self.refuse(peer, "too many pings", 0.05))
        except Malformed as error:
            self.refuse(peer, str(error))
        except Broken:
            pass
        await link.connection.close()

    async def _take(self, link: Link, stream: Stream) -> None:
        try:
            await self._answer(link, stream)
        except Malformed as error:
            self.refuse(link.peer, str(error))
        except TimeoutError:
            self.refuse(link.peer, "stalled", 0.2)
        except Broken:
            pass
        finally:
            stream.abort()  # nothing is lost where both have finished
            link.standing.slots.release()
            link.ended()

    @abstractmethod
    async def _answer(self, link: Link, stream: Stream) -> None:
        """What is done with a stream that the peer opened.

        Raises:
            Malformed: it carried what it should not; counted, with the error's text.
            TimeoutError: nothing came for too long; counted.
            Broken: it ended early.
        """

    async def _drop(self, link: Link) -> None:
        self._down(link)
        await link.close()

    def _down(self, link: Link) -> None:
        self._links.discard(link)
        peer = link.peer
        if self._current.get(peer) is link:
            del self._current[peer]
            link.standing.lost = link.token
            self._tell(peer, False)

    def _tell(self, peer: PeerId, up: bool) -> None:
        for watcher in self._watchers:
            watcher(peer, up)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a task of this node failed", exc_info=error)


def _retrieve(waiter: asyncio.Future[None]) -> None:
    """Whoever waited has been told; if nobody did, that is no error."""
    if not waiter.cancelled():
        waiter.exception()
