"""Frames on their way to a pipe: short ones gathered, large payloads by reference, writers in turns."""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable

from .pipe import Pipe, Signal

__all__ = ["ABORT", "CLOSE", "DATA", "FINISH", "FRAME", "GRANT", "HEAD", "LARGE", "PING", "PONG", "Outbox"]

DATA, GRANT, FINISH, ABORT, PING, PONG, CLOSE = range(7)
HEAD = struct.Struct(">BII")  # kind, stream, value

OUT = 1 << 18  # bytes that wait for the pipe before writers wait
OUT_HARD = (
    1 << 20
)  # ... with the short frames, which never wait; a peer that lets it come to this is cut off
FRAME = 4 * 65519  # payload bytes per turn of a writer: four full records of the encryption below
LARGE = 1 << 14  # payloads from here on are not copied; their writer waits until the pipe has them


class Outbox:
    """What one connection has to send. One task, :meth:`pump`, sends it.

    Args:
        overrun: called when the peer lets more than ``OUT_HARD`` bytes pile up.
    """

    def __init__(self, overrun: Callable[[], None]) -> None:
        self._overrun = overrun
        self._parts: list[bytearray | memoryview] = []
        self._size = 0
        self._closed = self._sending = False
        self._grants: dict[int, int] = {}
        self._pong: int | None = None
        self._turns: deque[asyncio.Future[None]] = deque()
        self._batch = Signal()  # fires when what is in _parts has gone
        self._work, self._flushed = Signal(), Signal()

    def put(self, kind: int, number: int, value: int, payload: memoryview | None = None) -> None:
        """Queue a frame; never waits. Who sends data awaits :meth:`turn` before.

        A payload of ``LARGE`` bytes or more must stay as it is until :meth:`sent`.
        """
        if self._closed:
            return
        tail = self._parts[-1] if self._parts else None
        if not isinstance(tail, bytearray):
            tail = bytearray()
            self._parts.append(tail)
        tail += HEAD.pack(kind, number, value)
        self._size += HEAD.size
        if payload is not None:
            self._size += len(payload)
            if len(payload) < LARGE:
                tail += payload
            else:
                self._parts.append(payload)
        if self._size > OUT_HARD:
            self._overrun()
        self._work.fire()

    def grant(self, number: int, count: int) -> None:
        """Give a stream's writer ``count`` more bytes of credit."""
        self._grants[number] = self._grants.get(number, 0) + count
        self._work.fire()

    def forget(self, number: int) -> None:
        """Grants of a stream that is over are not sent."""
        self._grants.pop(number, None)

    def answer(self, ping: int) -> None:
        """Answer a ping; of several that came meanwhile, the last."""
        self._pong = ping
        self._work.fire()

    async def turn(self) -> None:
        """Wait until there is room and this writer is next; it then calls :meth:`pass_turn`."""
        if self._closed or (self._size < OUT and not self._turns):
            return
        future = asyncio.get_running_loop().create_future()
        self._turns.append(future)
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.pass_turn()
            elif future in self._turns:
                self._turns.remove(future)
            raise

    def pass_turn(self) -> None:
        """Let the next writer go on, if there is room."""
        while self._turns and (self._size < OUT or self._closed):
            future = self._turns.popleft()
            if not future.done():
                future.set_result(None)
                return

    async def sent(self) -> None:
        """Wait until the pipe has taken what is queued now, or never will."""
        if not self._closed:
            await self._batch.wait()

    async def flushed(self) -> None:
        """Wait until the pipe has taken everything, or never will."""
        while (self._parts or self._sending) and not self._closed:
            await self._flushed.wait()

    async def pump(self, pipe: Pipe) -> None:
        """Send until closed.

        Raises:
            Broken: the pipe is gone.
        """
        while not self._closed:
            while not (self._parts or self._grants or self._pong is not None):
                await self._work.wait()
            for number, count in self._grants.items():
                self.put(GRANT, number, count)
            self._grants.clear()
            if self._pong is not None:
                self.put(PONG, 0, self._pong)
                self._pong = None
            batch, self._parts, self._size = self._parts, [], 0
            gone, self._batch = self._batch, Signal()
            self._sending = True
            self.pass_turn()
            try:
                await pipe.write(*(memoryview(part) for part in batch))
            finally:
                self._sending = False
                gone.fire()
            self._flushed.fire()

    def close(self) -> None:
        """Nothing more will be sent: wake whoever waits."""
        self._closed = True
        self._batch.fire()
        self._flushed.fire()
        while self._turns:
            self.pass_turn()
