"""One request and one reply on a stream of its own: both ends of a call."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from .conduct import Standing
from .frames import (
    HEAD,
    BadReply,
    CallRefused,
    Code,
    Head,
    Malformed,
    Refused,
    Type,
    decode,
    encode,
    pack,
    printable,
    read_body,
    read_head,
)
from .limits import Limits
from .link import Link
from .transport.base import Broken, PeerId, Stream

__all__ = ["Service", "ask", "drain", "refuse", "reply_to"]

TOGETHER = 1 << 16  # a request up to this is written before its reply is looked for
DRAIN = 1 << 20  # bytes of a refused request that are read and thrown away
LINGER = 1.0  # ... and seconds

logger = logging.getLogger(__name__)

T = TypeVar("T")
Count = Callable[[PeerId, str, float], None]


@dataclass(frozen=True)
class Service:
    """What is done with the calls of a kind.

    Args:
        kind: its name.
        request: the type of a request.
        handler: makes the reply.
        limit: bytes of a request.
    """

    kind: str
    request: type[msgspec.Struct]
    handler: Callable[[PeerId, Any], Awaitable[Any]]
    limit: int


async def ask(
    stream: Stream, peer: PeerId, kind: str, body: bytes, reply: type[T], limit: int, patience: float
) -> tuple[T, float]:
    """The caller's end.

    Args:
        stream: a new one; over when this returns or raises.
        body: the encoded request.
        reply: type of the reply.
        limit: bytes of it.
        patience: seconds after which the other side need not go on.

    Returns:
        The reply, and the seconds that the handler took by the peer's account.

    Raises:
        CallRefused: the peer says so.
        BadReply: what came is no reply of this type, or too large.
        Broken: the connection is gone.
    """
    frame = pack(Type.CALL, body, kind=kind.encode(), time=patience * 1e3)
    writing: asyncio.Task[None] | None = None
    try:
        if len(frame) <= TOGETHER:
            await _write(stream, frame)
        else:  # a refusal comes before all is written, and nobody reads the rest
            writing = asyncio.create_task(_write(stream, frame))
        head = await read_head(stream)
        if head.type != Type.REPLY or head.code not in list(Code) or head.kind:
            raise BadReply(f"{peer[:8]} answered {kind} with no reply")
        try:
            answer = await read_body(stream, head, limit)
            if head.code == Code.OK:
                return decode(answer, reply), head.time / 1e6
        except Malformed as error:
            raise BadReply(f"{peer[:8]} answered {kind} with a reply that is {error}") from None
        raise CallRefused(peer, kind, Code(head.code), printable(answer), head.time / 1e6)
    finally:
        if writing is not None:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
        stream.abort()


async def _write(stream: Stream, frame: bytes) -> None:
    await stream.write(frame)
    await stream.finish()


async def reply_to(
    stream: Stream, head: Head, kind: str, service: Service | None, link: Link, limits: Limits, count: Count
) -> None:
    """The other end: read the request, have it handled, reply.

    Args:
        head: of the request, read already.
        kind: its kind, read already.
        service: None where there is none of this kind.
        limits: of this node.
        count: called with (peer, reason, weight) for each refusal.

    Raises:
        Broken: the stream is gone.
        TimeoutError: the request did not come.
    """
    standing, peer = link.standing, link.peer
    if service is None:
        count(peer, "unknown kind", 0.2)
        await refuse(stream, Code.UNKNOWN)
        return
    if wait := standing.calls.ask(time.monotonic()):
        count(peer, "too many calls", 0.01)
        await refuse(stream, Code.BUSY, wait=wait)
        return
    size = max(head.full, head.size)
    if size > service.limit:
        count(peer, "too large", 1.0)
        await refuse(stream, Code.TOO_LARGE, f"more than {service.limit} bytes")
        return
    await standing.hold(size)
    try:
        async with asyncio.timeout(limits.ceiling_s):
            request = await _request(stream, head, service, standing)
        await _handle(stream, request, min(head.time / 1e3, limits.ceiling_s), service, peer, count)
    except Malformed as error:
        count(peer, str(error), 1.0)
        await refuse(stream, Code.MALFORMED, str(error))
    finally:
        standing.let_go(size)


async def _handle(
    stream: Stream, request: Any, patience: float, service: Service, peer: PeerId, count: Count
) -> None:
    began = time.monotonic()
    try:
        async with asyncio.timeout(patience):
            reply = encode(await service.handler(peer, request))
    except Refused as error:
        count(peer, error.reason, error.weight)
        await refuse(stream, Code.REFUSED, error.reason)
    except TimeoutError:
        await refuse(stream, Code.LATE)
    except Exception:
        # One of two places that catch everything: a handler's mistake ends its call, not the node, and
        # its text stays here.
        logger.exception("handler of %s failed on a call of %s", service.kind, peer[:8])
        await refuse(stream, Code.FAILED)
    else:
        await stream.write(pack(Type.REPLY, reply, time=(time.monotonic() - began) * 1e6))
        await stream.finish()


async def _request(stream: Stream, head: Head, service: Service, standing: Standing) -> msgspec.Struct:
    body = await read_body(stream, head, service.limit)
    if await stream.read(1):
        raise Malformed("bytes after the end")
    if delay := standing.charge(HEAD.size + len(body)):
        await asyncio.sleep(delay)
    return decode(body, service.request)


async def refuse(stream: Stream, code: Code, reason: str = "", *, wait: float = 0) -> None:
    """Answer a call or a stream with no, and end it."""
    await stream.write(pack(Type.REPLY, reason.encode()[:200], code=code, time=wait * 1e6))
    await stream.finish()
    await drain(stream)


async def drain(stream: Stream) -> None:
    """Read away what is left of a refused request, so that the answer is not lost, and end the stream."""
    left = DRAIN
    try:
        async with asyncio.timeout(LINGER):
            while left > 0 and (data := await stream.read()):
                left -= len(data)
    except (Broken, TimeoutError):
        pass
    stream.abort()
