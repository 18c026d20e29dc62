"""Byte pipes: what a connection is built on, be it a socket, a pair of buffers or another stream.

A pipe is reliable and ordered, moves bytes both ways and pushes back. It proves and hides nothing;
:mod:`.secure` and :mod:`.mux` do that on top. One task reads a pipe and one writes it.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque

from .base import Broken, Stream

__all__ = ["MemoryPipe", "Pipe", "Signal", "StreamPipe", "read_exactly"]


class Pipe(ABC):
    """A duplex flow of bytes."""

    @abstractmethod
    async def readinto(self, view: memoryview) -> int:
        """Put at least one byte at the head of ``view``; how many, or 0 once the other end has gone.

        Raises:
            Broken: the pipe failed.
        """

    @abstractmethod
    async def write(self, *views: memoryview) -> None:
        """Take all of the ``views``, which the caller may reuse on return; waits while the pipe is full.

        Raises:
            Broken: the pipe is gone.
        """

    @abstractmethod
    def close(self) -> None:
        """End the pipe now, both ways; whoever waits on it, at either end, wakes."""


class Signal:
    """Wakes every task that waits on it. Waiters look again at what they waited for."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    async def wait(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            await future
        finally:
            if future in self._waiting:
                self._waiting.remove(future)

    def fire(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


class _Flow:
    """One direction between two ends in one process: at most ``limit`` bytes under way."""

    __slots__ = ("changed", "closed", "limit", "parts", "size")

    def __init__(self, limit: int) -> None:
        self.limit, self.size, self.closed = limit, 0, False
        self.parts: deque[memoryview] = deque()
        self.changed = Signal()

    async def readinto(self, view: memoryview) -> int:
        while not self.parts:
            if self.closed:
                return 0
            await self.changed.wait()
        done = 0
        while self.parts and done < len(view):
            part = self.parts.popleft()
            count = min(len(part), len(view) - done)
            view[done : done + count] = part[:count]
            done += count
            if count < len(part):
                self.parts.appendleft(part[count:])
        self.size -= done
        self.changed.fire()
        return done

    async def write(self, view: memoryview) -> None:
        while view:
            while self.size >= self.limit and not self.closed:
                await self.changed.wait()
            if self.closed:
                raise Broken("the other end has gone")
            part, view = view[: self.limit - self.size], view[self.limit - self.size :]
            self.parts.append(memoryview(bytes(part)))
            self.size += len(part)
            self.changed.fire()

    def close(self) -> None:
        self.closed = True
        self.changed.fire()


class MemoryPipe(Pipe):
    """One end of a pipe inside a process; :meth:`pair` makes both."""

    def __init__(self, incoming: _Flow, outgoing: _Flow) -> None:
        self._in, self._out = incoming, outgoing

    @classmethod
    def pair(cls, limit: int = 1 << 18) -> tuple[MemoryPipe, MemoryPipe]:
        """Two connected ends with at most ``limit`` bytes under way in each direction."""
        one, other = _Flow(limit), _Flow(limit)
        return cls(one, other), cls(other, one)

    async def readinto(self, view: memoryview) -> int:
        return await self._in.readinto(view)

    async def write(self, *views: memoryview) -> None:
        for view in views:
            await self._out.write(view)

    def close(self) -> None:
        self._in.close()
        self._out.close()


class StreamPipe(Pipe):
    """A transport's stream as a pipe, so that a connection can run inside another (a relay's legs)."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._rest = memoryview(b"")

    async def readinto(self, view: memoryview) -> int:
        if not self._rest:
            self._rest = memoryview(await self._stream.read(max(len(view), 1)))
        count = min(len(self._rest), len(view))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    async def write(self, *views: memoryview) -> None:
        for view in views:
            await self._stream.write(view)

    def close(self) -> None:
        self._stream.abort()


async def read_exactly(pipe: Pipe, size: int) -> bytes:
    """``size`` bytes of the pipe.

    Raises:
        Broken: it ended before.
    """
    buffer = bytearray(size)
    view, done = memoryview(buffer), 0
    while done < size:
        count = await pipe.readinto(view[done:])
        if not count:
            raise Broken(f"the other end left {size - done} bytes early")
        done += count
    return bytes(buffer)
