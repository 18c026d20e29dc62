"""The one door for everything that is said between peers.

On the one connection that a node keeps to each peer run calls (one request, one reply, both typed) and
streams. What comes in is bounded before it is allocated, decoded strictly, held to the peer's rate and
number of calls in progress, and, where it is wrong, refused and counted by (peer, reason); too many
refusals cost the peer its connection and ban it for a while that grows. Handlers' mistakes are logged
here and reach the caller only as "failed".
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec

from shoal.core import BadInput

from .calls import Service, ask, drain, refuse, reply_to
from .channel import Channel
from .connections import Connections
from .frames import (
    KIND,
    BadReply,
    CallRefused,
    Code,
    Late,
    Malformed,
    Refused,
    Type,
    encode,
    pack,
    read_head,
)
from .identity import Identity
from .limits import Limits, RoundTrip
from .link import Link
from .transport.base import Broken, PeerId, Stream, Transport

__all__ = ["Node", "StreamHandler"]

logger = logging.getLogger(__name__)

R = TypeVar("R")
StreamHandler = Callable[[PeerId, Channel], Awaitable[None]]


class Node(Connections):
    """A peer's end of all its conversations. See :class:`~.connections.Connections` for the arguments."""

    def __init__(
        self,
        identity: Identity,
        transports: Sequence[Transport],
        *,
        limits: Limits | None = None,
        allow: set[PeerId] | None = None,
    ) -> None:
        super().__init__(identity, transports, limits=limits, allow=allow)
        self._services: dict[str, Service] = {}
        self._streams: dict[str, StreamHandler] = {}

    # -- what is offered ------------------------------------------------------------------------------

    def serve(
        self,
        kind: str,
        request: type[msgspec.Struct],
        handler: Callable[[PeerId, Any], Awaitable[msgspec.Struct]],
        *,
        limit: int = 1 << 16,
    ) -> None:
        """Answer calls of ``kind``.

        Args:
            request: what they carry.
            handler: makes the reply; may raise :class:`~.frames.Refused`.
            limit: bytes of a request.

        Raises:
            BadInput: the kind is taken, or no name.
        """
        self._check_kind(kind)
        self._services[kind] = Service(kind, request, handler, limit)

    def serve_stream(self, kind: str, handler: StreamHandler) -> None:
        """Give streams of ``kind`` to ``handler``; one ends when it returns. Raises as :meth:`serve`."""
        self._check_kind(kind)
        self._streams[kind] = handler

    def _check_kind(self, kind: str) -> None:
        if kind in self._services or kind in self._streams:
            raise BadInput("kind", kind, "a kind that is not served yet")
        if not 0 < len(kind) <= KIND or not kind.isascii() or not kind.isprintable():
            raise BadInput("kind", kind, f"1 to {KIND} printable ASCII letters")

    # -- what is asked --------------------------------------------------------------------------------

    async def call(
        self,
        peer: PeerId,
        kind: str,
        message: msgspec.Struct,
        reply: type[R],
        *,
        deadline: float | None = None,
        limit: int = 1 << 20,
        idempotent: bool = False,
    ) -> R:
        """Ask ``peer`` and wait for its reply.

        A peer that says that it is busy is asked again within the deadline. A call whose connection
        breaks is repeated only if it may be (``idempotent``), since the peer may have acted on it.

        Args:
            reply: type of the reply.
            deadline: seconds for everything, or None: learned from earlier calls of this kind.
            limit: bytes of the reply.
            idempotent: acting on the request twice is the same as once.

        Raises:
            Unreachable: there is no connection, and none can be made.
            Late: the deadline passed.
            CallRefused: the peer refused, or failed.
            BadReply: the reply is not of the type.
            Broken: the connection broke before the reply.
        """
        standing = self.conduct.standing(peer)
        trip = standing.kinds.setdefault(kind, RoundTrip())
        body, repeated = encode(message), 0
        patience = trip.deadline(self.limits) if deadline is None else deadline
        # Making a connection has a limit of its own; a learned deadline knows nothing of it.
        connect = 0.0 if deadline is not None or peer in self._current else self.limits.connect_s
        link: Link | None = None
        try:
            async with asyncio.timeout(patience + connect) as timeout:
                while True:
                    link = await self._reach(peer)
                    if connect:
                        timeout.reschedule(asyncio.get_running_loop().time() + patience)
                        connect = 0.0
                    began = time.monotonic()
                    link.began()
                    try:
                        stream = await link.connection.open()
                        result, handling = await ask(stream, peer, kind, body, reply, limit, patience)
                    except CallRefused as error:
                        if error.code != Code.BUSY:
                            raise
                        repeated += 1
                        await asyncio.sleep(max(error.wait, 0.01 * 2 ** min(repeated, 6)))
                        continue
                    except Broken:
                        repeated += 1
                        if not idempotent or repeated > 8:
                            raise
                        continue
                    finally:
                        link.ended()
                    if not repeated:
                        took = time.monotonic() - began
                        trip.saw(took)
                        standing.trip.saw(max(took - handling, 0.0))
                    return result
        except TimeoutError:
            trip.missed()
            if link is not None and link.connection.alive:
                link.check()
            raise Late(f"{peer[:8]} did not answer {kind} within {patience:.3g} s") from None
        except BadReply:
            self.refuse(peer, "malformed reply")
            raise

    async def open(self, peer: PeerId, kind: str) -> Channel:
        """A stream of ``kind`` to ``peer``. Whether the peer takes it shows at the first read.

        Raises:
            Unreachable: there is no connection, and none can be made.
            Broken: the connection broke meanwhile.
        """
        link = await self._reach(peer)
        link.began()
        try:
            stream = await link.connection.open()
            await stream.write(pack(Type.STREAM, kind=kind.encode()))
        except BaseException:
            link.ended()
            raise
        return Channel(stream, link, kind, answered=False, ended=link.ended)

    # -- what arrives ---------------------------------------------------------------------------------

    async def _answer(self, link: Link, stream: Stream) -> None:
        async with asyncio.timeout(self.limits.first_s):
            head = await read_head(stream)
            if head.type not in {Type.CALL, Type.STREAM} or not 0 < head.kind <= KIND:
                raise Malformed("unknown frame")
            name = await stream.read_exactly(head.kind)
        if not name.isascii():
            raise Malformed("unknown frame")
        kind = name.decode()
        if head.type == Type.CALL:
            service = self._services.get(kind)
            await reply_to(stream, head, kind, service, link, self.limits, self.refuse)
        else:
            await self._answer_stream(link, stream, kind)

    async def _answer_stream(self, link: Link, stream: Stream, kind: str) -> None:
        peer, handler = link.peer, self._streams.get(kind)
        if handler is None:
            self.refuse(peer, "unknown kind", 0.2)
            await refuse(stream, Code.UNKNOWN)
            return
        if link.standing.calls.ask(time.monotonic()):
            self.refuse(peer, "too many calls", 0.01)
            await refuse(stream, Code.BUSY)
            return
        await stream.write(pack(Type.REPLY))
        channel = Channel(stream, link, kind, answered=True, ended=lambda: None)
        try:
            await handler(peer, channel)
        except Refused as error:
            self.refuse(peer, error.reason, error.weight)
            return
        except (Malformed, Broken, TimeoutError):
            raise
        except Exception:
            # As in calls: a handler's mistake ends its stream, not the node, and its text stays here.
            logger.exception("handler of %s failed on a stream of %s", kind, peer[:8])
            return
        await channel.finish()
        await drain(stream)
