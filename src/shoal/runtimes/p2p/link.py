"""One connection with what both ends have agreed about it: version, which of two stays, signs of life.

The dialler's first stream is the control stream. It carries a greeting each way (the protocol's version
is in the head, so that any version can read it), then pings, pongs and at most one farewell each way.

**Which of two connections stays.** Two peers that dial each other at once make two connections. Both
ends apply one rule to the pair (:func:`supersedes`), on what both know: one without a relay stays, then
the one that the smaller id dialled, of two that one peer dialled the later. A greeting also says which
connection its sender has lost (``after``) and in which life of its process it is (``life``): a connection
that the other end no longer has, or of an earlier life, never stays. The one that goes carries no new
streams, finishes those in progress, and is closed.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from typing import Annotated

import msgspec
from msgspec import Meta

from shoal.core import ShoalError

from .conduct import Standing
from .frames import Head, Malformed, Type, decode, encode, pack, read_body, read_head
from .limits import Limits
from .transport.base import Broken, Connection, PeerId, Stream
from .transport.pipe import Signal

__all__ = ["VERSION", "Incompatible", "Link", "supersedes"]

VERSION = 1
CONTROL_LIMIT = 256
LINGER = 0.05  # seconds without a stream before a connection on its way out is closed

Mark = Annotated[bytes, Meta(min_length=8, max_length=8)]


class Incompatible(ShoalError):
    """The peer speaks another version of the protocol."""


class Greeting(msgspec.Struct, frozen=True, array_like=True, tag=0, forbid_unknown_fields=True):
    """Who begins what.

    Args:
        life: of the sender's process.
        token: names the connection; the dialler's choice, repeated in the answer.
        after: token of the connection that the sender had to this peer before, zeros if none.
    """

    life: Mark
    token: Mark
    after: Mark


class Ping(msgspec.Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True):
    number: Annotated[int, Meta(ge=0, le=2**62)]


class Pong(msgspec.Struct, frozen=True, array_like=True, tag=2, forbid_unknown_fields=True):
    number: Annotated[int, Meta(ge=0, le=2**62)]


class Farewell(msgspec.Struct, frozen=True, array_like=True, tag=3, forbid_unknown_fields=True):
    """The sender begins no more streams on this connection."""


Control = Greeting | Ping | Pong | Farewell


class Link:
    """A connection on which both have greeted.

    Args:
        connection: of a transport; owned from now on.
        standing: of the peer.
        limits: of this node.

    Attributes:
        token: the connection's name, known to both.
        life: of the peer's process.
        active: streams in progress, in both directions.
    """

    def __init__(self, connection: Connection, standing: Standing, limits: Limits) -> None:
        self.connection, self.standing, self._limits = connection, standing, limits
        self.peer: PeerId = connection.peer
        self.token = self.life = bytes(8)
        self.active = 0
        self._stream: Stream | None = None
        self._writing = asyncio.Lock()
        self._retired = self._leaving = False
        self._changed = Signal()
        self._pinged: tuple[int, float] | None = None
        self._pings = 0
        self._checking: asyncio.Task[None] | None = None
        self._departing: asyncio.Task[None] | None = None

    @property
    def usable(self) -> bool:
        """Whether new streams may begin here."""
        return self.connection.alive and not self._retired and not self._leaving

    async def greet(self, life: bytes, after: bytes) -> None:
        """The dialler's side.

        Raises:
            Incompatible: the versions differ.
            Malformed: the answer is none.
            Broken: the peer hung up.
        """
        self._stream = await self.connection.open()
        self.token = secrets.token_bytes(8)
        began = time.monotonic()
        await self._say(Greeting(life, self.token, after))
        answer = await self._greeting()
        if answer.token != self.token:
            raise Malformed("malformed greeting")
        self.standing.trip.saw(time.monotonic() - began)
        self.life = answer.life

    async def welcome(self) -> Greeting:
        """The other side, first half: what the dialler says. Raises as :meth:`greet`."""
        self._stream = await self.connection.accept()
        greeting = await self._greeting()
        self.token, self.life = greeting.token, greeting.life
        return greeting

    async def answer(self, life: bytes, after: bytes) -> None:
        """The other side, second half: both may use the connection."""
        await self._say(Greeting(life, self.token, after))

    async def _greeting(self) -> Greeting:
        assert self._stream is not None
        head = await read_head(self._stream)
        if head.type != Type.CONTROL:
            raise Malformed("no greeting")
        if head.code != VERSION:
            # Say so in a way that the other can read, whichever version it is.
            await self._say(Greeting(bytes(8), self.token, bytes(8)))
            raise Incompatible(f"{self.peer[:8]} speaks version {head.code} of the protocol, not {VERSION}")
        said = await self._control(head)
        if not isinstance(said, Greeting):
            raise Malformed("no greeting")
        return said

    async def attend(self, late: Callable[[], None]) -> None:
        """Hear what is said on the control stream until the connection ends.

        Args:
            late: called when the peer pings more often than it may.

        Raises:
            Malformed: something that does not belong there.
            Broken: the connection is gone.
        """
        assert self._stream is not None
        while True:
            head = await read_head(self._stream)
            if head.type != Type.CONTROL or head.code != VERSION:
                raise Malformed("malformed control")
            said = await self._control(head)
            if isinstance(said, Ping):
                if self.standing.calls.ask(time.monotonic()):
                    late()
                else:
                    await self._say(Pong(said.number))
            elif isinstance(said, Pong):
                if self._pinged is not None and said.number == self._pinged[0]:
                    self.standing.trip.saw(time.monotonic() - self._pinged[1])
                    self._pinged = None
                    self._changed.fire()
            elif isinstance(said, Farewell):
                self._leaving = True
                self._changed.fire()
                self._departing = asyncio.create_task(self.leave(), name=f"leave {self.peer[:8]}")
            else:
                raise Malformed("a second greeting")

    async def _control(self, head: Head) -> Control:
        assert self._stream is not None
        if head.flags or head.kind:
            raise Malformed("malformed control")
        return decode(await read_body(self._stream, head, CONTROL_LIMIT), Control)  # type: ignore[arg-type]

    async def _say(self, message: Control) -> None:
        assert self._stream is not None
        async with self._writing:
            await self._stream.write(pack(Type.CONTROL, encode(message), code=VERSION))

    def check(self) -> None:
        """Find out whether the peer is still there: one that does not answer loses the connection."""
        if self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(self._check(), name=f"check {self.peer[:8]}")

    async def _check(self) -> None:
        self._pings += 1
        self._pinged = (self._pings, time.monotonic())
        try:
            async with asyncio.timeout(self.standing.trip.deadline(self._limits)):
                await self._say(Ping(self._pings))
                while self._pinged is not None and self.connection.alive:
                    await self._changed.wait()
        except TimeoutError:
            self.standing.trip.missed()
            await self.connection.close()
        except Broken:
            return

    def began(self) -> None:
        """A stream is in progress."""
        self.active += 1

    def ended(self) -> None:
        """A stream is over."""
        self.active -= 1
        self._changed.fire()

    async def leave(self) -> None:
        """Begin nothing more here, let what is in progress finish, then close."""
        if self._retired:
            return
        self._retired = True
        try:
            async with asyncio.timeout(self._limits.grace_s):
                await self._say(Farewell())
                while not self._leaving and self.connection.alive:
                    await self._changed.wait()
        except (Broken, TimeoutError):
            pass  # gone already, or without manners: what is in progress may finish all the same
        while self.connection.alive:
            if not self.active:
                # A stream that was begun before the farewell may still arrive.
                await asyncio.sleep(LINGER + 2 * (self.standing.trip.smooth or 0.0))
                if not self.active:
                    break
            else:
                await self._changed.wait()
        await self.close()

    async def close(self) -> None:
        """Break whatever is in progress."""
        for task in (self._checking, self._departing):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        await self.connection.close()
        self._changed.fire()


def supersedes(new: Link, old: Link, own: PeerId, lost: bytes) -> bool:
    """Whether ``new`` stays and ``old`` goes, by the rule that both ends apply.

    Args:
        own: this peer.
        lost: the connection that the other end says to have lost (zeros if it has not said).
    """
    if not old.connection.alive or new.life != old.life or lost == old.token:
        return True
    relayed = new.connection.path == "relayed"
    if relayed != (old.connection.path == "relayed"):
        return not relayed
    if new.connection.dialled == old.connection.dialled:
        return True
    return new.connection.dialled == (own < new.peer)
