"""A stream of a known kind between two peers: raw bytes or typed messages, with back-pressure."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

from .frames import CallRefused, Code, Malformed, Type, decode, encode, printable, read_body, read_head
from .link import Link
from .transport.base import PeerId, Stream

__all__ = ["Channel"]

LENGTH = struct.Struct(">I")

T = TypeVar("T")


class Channel(Stream):
    """What :meth:`~.node.Node.open` returns and a stream's handler is given; an async context manager.

    Leaving the context ends the stream: cleanly if both sides have finished, else by aborting it.
    What is read is charged to the peer's rate: beyond it reading waits, and so does the peer.

    Args:
        stream: of the link's connection.
        link: on which it runs.
        kind: what the stream is for.
        answered: whether the other end has nothing to say before its first byte (the handler's side).
        ended: called once, when the stream is over.
    """

    def __init__(
        self, stream: Stream, link: Link, kind: str, *, answered: bool, ended: Callable[[], None]
    ) -> None:
        self.peer: PeerId = link.peer
        self.link, self.kind = link, kind
        self._stream, self._standing, self._ended = stream, link.standing, ended
        self._answered = answered
        self._in_done = self._out_done = self._over = False

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.write(data)

    async def read(self, most: int = 1 << 18) -> bytes:
        if not self._answered:
            await self._answer()
        data = await self._stream.read(most)
        if not data:
            self._in_done = True
            self._settle()
        elif delay := self._standing.charge(len(data)):
            await asyncio.sleep(delay)
        return data

    async def send(self, message: Any) -> None:
        """One message, as MessagePack."""
        body = encode(message)
        await self._stream.write(LENGTH.pack(len(body)) + body)

    async def receive(self, kind: type[T], limit: int = 1 << 16) -> T:
        """The next message.

        Raises:
            Malformed: it is larger than ``limit`` or not of this type.
            Broken: the stream ended.
        """
        (size,) = LENGTH.unpack(await self.read_exactly(LENGTH.size))
        if size > limit:
            raise Malformed("too large")
        return decode(await self.read_exactly(size) if size else b"", kind)

    async def finish(self) -> None:
        if not self._out_done:
            await self._stream.finish()
            self._out_done = True
            self._settle()

    def abort(self) -> None:
        if not self._over:
            self._over = True
            self._stream.abort()
            self._ended()

    async def close(self) -> None:
        """Finish, and wait for the other side to do so too; whatever it still sends is an error."""
        await self.finish()
        if not self._in_done and await self.read(1):
            raise Malformed("bytes after the end")

    async def __aenter__(self) -> Channel:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()  # nothing is lost where both have finished

    def _settle(self) -> None:
        if self._in_done and self._out_done and not self._over:
            self._over = True
            self._ended()

    async def _answer(self) -> None:
        """Before the peer's first byte: whether it takes the stream at all."""
        head = await read_head(self._stream)
        self._answered = True
        if head.type != Type.REPLY or head.code > max(Code):
            raise Malformed("malformed reply")
        reason = printable(await read_body(self._stream, head, 1 << 10))
        if head.code != Code.OK:
            raise CallRefused(self.peer, self.kind, Code(head.code), reason)
