"""One stream of a connection: what was received and not read, and the credit in both directions."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from .base import Broken, Stream
from .outbox import ABORT, DATA, FINISH, FRAME, LARGE, Outbox
from .pipe import Signal

__all__ = ["WINDOW", "MuxStream", "Owner", "Violation"]

WINDOW = 1 << 17  # bytes a stream may send before its reader has read any
SMALL = 1 << 12  # payloads below this are gathered, so that tiny frames cost no more than their bytes
MOST_CREDIT = (1 << 31) - 1


class Violation(Broken):
    """The connection ended because the peer broke its rules."""


class Owner(Protocol):
    """What a stream needs of its connection.

    Attributes:
        outbox: where frames go.
        stray: bytes that may still come for streams that were aborted here.
    """

    outbox: Outbox
    stray: int

    def announce(self, stream: MuxStream) -> int:
        """Give the stream its number, with its first frame."""

    def release(self, stream: MuxStream) -> None:
        """The stream is over in both directions."""

    def grow(self, window: int) -> int:
        """By how many bytes a window may grow: doubled, or not at all."""


class MuxStream(Stream):
    """One stream of a connection.

    A ``write`` that is cancelled may have sent any part of its data; abort the stream then, and leave
    the buffer as it is. One task reads a stream and one writes it.
    """

    def __init__(self, connection: Owner, number: int) -> None:
        self._connection = connection
        self._own = number == 0
        self._number = number  # 0: not announced yet
        self._credit = WINDOW  # bytes that may still be sent
        self._granted = WINDOW  # bytes that the other side may still send
        self._window = WINDOW
        self._consumed = 0  # bytes read since the last grant
        self._waited = False  # whether the reader has been waiting since then
        self._parts: deque[bytes | bytearray] = deque()
        self._in_done = self._out_done = False
        self._fault: str | None = None
        self._readable, self._writable = Signal(), Signal()

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        outbox = self._connection.outbox
        self._check_writable()
        while view:
            while not self._credit and self._fault is None:
                await self._writable.wait()
            await outbox.turn()
            try:
                self._check_writable()
                count = min(len(view), self._credit, FRAME)
                if count:
                    self._credit -= count
                    outbox.put(DATA, self._announce(), count, view[:count])
                    view = view[count:]
            finally:
                outbox.pass_turn()
            if count >= LARGE:
                await outbox.sent()
                if self._fault is not None:
                    raise Broken(self._fault)

    async def read(self, most: int = 1 << 18) -> bytes:
        while not self._parts:
            if self._in_done:
                return b""
            if self._fault is not None:
                raise Broken(self._fault)
            self._waited = True
            await self._readable.wait()
        part = self._parts.popleft()
        if len(part) > most:
            self._parts.appendleft(part[most:])
            part = part[:most]
        self._grant(len(part))
        return bytes(part)

    async def finish(self) -> None:
        if self._out_done and self._fault is None:
            return
        self._check_writable()
        self._out_done = True
        self._connection.outbox.put(FINISH, self._announce(), 0)
        self._settle()

    def abort(self) -> None:
        self._parts.clear()
        if self._fault is not None or (self._in_done and self._out_done):
            return
        if self._number:
            self._connection.outbox.put(ABORT, self._number, 0)
            if not self._in_done:
                self._connection.stray += self._granted
        self._in_done = False
        self.fail("the stream was aborted here")
        self._connection.release(self)

    # What the connection calls.

    def received(self, data: bytes) -> None:
        if self._fault is not None:
            return
        if self._parts and len(data) < SMALL and len(self._parts[-1]) < SMALL:
            last = self._parts[-1]
            if isinstance(last, bytes):
                self._parts[-1] = last = bytearray(last)
            last += data
        else:
            self._parts.append(data)
        self._readable.fire()

    def expect(self, count: int) -> None:
        """The other side announces ``count`` bytes."""
        if self._in_done:
            raise Violation("data after a finish")
        if not 0 < count <= self._granted:
            raise Violation("more data than the window")
        self._granted -= count

    def finished(self) -> None:
        if self._in_done:
            raise Violation("two finishes")
        self._in_done = True
        self._readable.fire()
        self._settle()

    def credited(self, count: int) -> None:
        self._credit += count
        if self._credit > MOST_CREDIT:
            raise Violation("a window without end")
        self._writable.fire()

    def fail(self, fault: str) -> None:
        """Wake everyone; what was received before can still be read."""
        if self._fault is None:
            self._fault = fault
        self._readable.fire()
        self._writable.fire()

    def aborted(self) -> None:
        self._parts.clear()
        self._in_done = False
        self.fail("the peer aborted the stream")
        self._connection.release(self)

    @property
    def number(self) -> int:
        return self._number

    @property
    def grown(self) -> int:
        return self._window - WINDOW

    @property
    def complete(self) -> bool:
        """Whether all that the other side had to say has come."""
        return self._in_done

    @property
    def own(self) -> bool:
        return self._own

    def _announce(self) -> int:
        if not self._number:
            self._number = self._connection.announce(self)
        return self._number

    def _grant(self, count: int) -> None:
        self._consumed += count
        if self._in_done or self._fault is not None or 2 * self._consumed < self._window:
            return
        grant, self._consumed = self._consumed, 0
        if self._waited:
            self._waited = False
            grown = self._connection.grow(self._window)
            grant, self._window = grant + grown, self._window + grown
        self._granted += grant
        self._connection.outbox.grant(self._number, grant)

    def _settle(self) -> None:
        if self._in_done and self._out_done:
            self._connection.release(self)

    def _check_writable(self) -> None:
        if self._fault is not None:
            raise Broken(self._fault)
        if self._out_done:
            raise Broken("the stream was finished")
