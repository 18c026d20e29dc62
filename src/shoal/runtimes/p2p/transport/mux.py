"""Many streams on one pipe, each with its own window, so that a slow reader holds up nobody else.

The pipe carries frames: a head of nine bytes (kind u8, stream u32, value u32, big-endian), after a
``DATA`` head ``value`` bytes of payload. The dialler's streams have odd numbers, the listener's even
ones, each counted up without gaps; a number is taken by the first frame of its stream, so the other
side learns of a stream with the first byte (or the finish). The design follows yamux and HTTP/2.

Back-pressure: a reader grants ``WINDOW`` bytes of credit to begin with and gives back what the
application has read; a writer without credit waits. A stream whose reader had to wait in between
gets twice the window, up to ``MAX_WINDOW``, while the connection's ``GROWTH`` lasts. What one
connection can make its receiver hold is therefore at most ``STREAMS * WINDOW + GROWTH`` bytes, and a
writer holds at most ``OUT + FRAME`` bytes that the pipe has not taken. Writers share the pipe in turns.

The other side is not trusted: more data than credit, more streams than ``STREAMS``, numbers out of
turn, unknown kinds or data after a finish end the connection. Pings (answered at once, at most one
answer pending) measure the round trip and find out a peer that vanished without a word.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from .base import Address, Broken, Connection, Path, PeerId, Stream
from .outbox import ABORT, CLOSE, DATA, FINISH, GRANT, HEAD, PING, PONG, Outbox
from .pipe import Pipe, Signal
from .stream import MuxStream, Violation

__all__ = ["MuxConnection", "MuxStream", "Violation"]

MAX_WINDOW = 1 << 22
GROWTH = 1 << 24  # bytes by which all windows of a connection together may grow
STREAMS = 128  # open at a time, from each side
READ_LEAST, READ = 1 << 12, 1 << 18  # bytes asked from the pipe at a time, growing with the traffic
QUIET = 15.0  # seconds without a byte before the peer is asked for a sign of life, and again to answer
LINGER = 1.0  # seconds that close() waits for what is on its way out


class MuxConnection(Connection):
    """A connection made of a pipe whose other end has proved that it is ``peer``.

    Args:
        pipe: carries the frames; closed with the connection.
        peer: the other end.
        dialled: whether this end dialled (it numbers its streams odd).
        path: how the bytes travel.
        remote: the address at which the peer is seen.

    Attributes:
        round_trip: seconds of the latest ping, None before the first answer.
        violation: the rule that the peer broke, if that is what ended the connection (one of a few texts).
    """

    def __init__(self, pipe: Pipe, peer: PeerId, *, dialled: bool, path: Path, remote: Address) -> None:
        self.peer, self.dialled = peer, dialled
        self.pipe = pipe
        self.round_trip: float | None = None
        self.violation: str | None = None
        self.outbox = Outbox(lambda: self.fail("the peer does not read"))
        self.stray = 0  # bytes that may still come for streams that were aborted here
        self._path, self._remote = path, remote
        self._fault: str | None = None
        self._streams: dict[int, MuxStream] = {}
        self._waiting: deque[MuxStream] = deque()  # to be accepted
        self._next_own, self._next_peer = (1, 2) if dialled else (2, 1)
        self._own_open = self._peer_open = self._grown = 0
        self._into: MuxStream | None = None  # where the payload under way belongs
        self._left = 0  # bytes of it still to come
        self._ping: tuple[int, float] | None = None
        self._pings = 0
        self._changed, self._ponged = Signal(), Signal()
        self._heard = time.monotonic()
        self._ended: list[Callable[[], None]] = []
        self._tasks = [
            asyncio.create_task(self._guard(part)) for part in (self._read, self._write, self._watch)
        ]

    # Connection

    async def open(self) -> Stream:
        while self._own_open >= STREAMS and self._fault is None:
            await self._changed.wait()
        if self._fault is not None:
            raise Broken(self._fault)
        self._own_open += 1
        return MuxStream(self, 0)

    async def accept(self) -> Stream:
        # A stream that was finished before the connection ended still counts as said.
        while not self._waiting:
            if self._fault is not None:
                raise Broken(self._fault)
            await self._changed.wait()
        return self._waiting.popleft()

    @property
    def path(self) -> Path:
        return self._path

    @property
    def remote(self) -> Address:
        return self._remote

    @property
    def alive(self) -> bool:
        return self._fault is None

    async def close(self) -> None:
        self.outbox.put(CLOSE, 0, 0)
        try:
            async with asyncio.timeout(LINGER):
                await self.outbox.flushed()
        except TimeoutError:
            pass  # the peer does not take it
        finally:
            self.fail("the connection was closed here")
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        await asyncio.gather(*tasks, return_exceptions=True)

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once the connection is no more (now, if it is none already)."""
        if self._fault is None:
            self._ended.append(callback)
        else:
            callback()

    async def ping(self) -> float:
        """Seconds to the peer and back. Concurrent callers share one ping.

        Raises:
            Broken: the connection is gone.
        """
        if self._ping is None:
            self._pings = (self._pings + 1) & 0xFFFFFFFF
            self._ping = (self._pings, time.monotonic())
            self.outbox.put(PING, 0, self._pings)
        mine = self._ping
        while self._ping == mine:
            if self._fault is not None:
                raise Broken(self._fault)
            await self._ponged.wait()
        assert self.round_trip is not None
        return self.round_trip

    # What the streams call.

    def grow(self, window: int) -> int:
        """By how many bytes a window may grow: doubled, or not at all."""
        if 2 * window > MAX_WINDOW or self._grown + window > GROWTH:
            return 0
        self._grown += window
        return window

    def announce(self, stream: MuxStream) -> int:
        number, self._next_own = self._next_own, self._next_own + 2
        if number > 0xFFFFFFFF:
            self.fail("the connection has used up its stream numbers")
            raise Broken("the connection has used up its stream numbers")
        self._streams[number] = stream
        return number

    def release(self, stream: MuxStream) -> None:
        """The stream is over in both directions."""
        self._streams.pop(stream.number, None)
        self.outbox.forget(stream.number)
        self._grown -= stream.grown
        if stream.own:
            self._own_open -= 1
            self._changed.fire()
        else:
            self._peer_open -= 1

    def fail(self, fault: str) -> None:
        """The connection is no more: wake everyone, close the pipe."""
        if self._fault is not None:
            return
        self._fault = fault
        for stream in self._streams.values():
            stream.fail(fault)
        self._waiting = deque(stream for stream in self._waiting if stream.complete)
        self.outbox.close()
        self._changed.fire()
        self._ponged.fire()
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        self.pipe.close()
        for callback in self._ended:
            callback()

    # The three tasks: each ends the connection when it ends.

    async def _guard(self, part: Callable[[], Coroutine[Any, Any, None]]) -> None:
        fault = "the connection was closed here"
        try:
            await part()
        except Broken as error:
            fault = str(error)
            if isinstance(error, Violation):
                self.violation = fault
                self._waiting.clear()
        finally:
            self.fail(fault)

    async def _write(self) -> None:
        await self.outbox.pump(self.pipe)

    async def _read(self) -> None:
        view = memoryview(bytearray(READ_LEAST))
        kept = 0
        while self._fault is None:
            count = await self.pipe.readinto(view[kept:])
            if not count:
                raise Broken("the peer has gone")
            self._heard = time.monotonic()
            end = kept + count
            used = self._take(view[:end])
            kept = end - used
            rest = bytes(view[used:end])
            if end == len(view) < READ:
                view = memoryview(bytearray(4 * end))
            view[:kept] = rest

    def _take(self, view: memoryview) -> int:
        """Handle the frames in ``view``; how many bytes that used (less than a head may remain)."""
        at, end = 0, len(view)
        while self._fault is None:
            if self._left:
                count = min(self._left, end - at)
                if not count:
                    break
                if self._into is not None:
                    self._into.received(bytes(view[at : at + count]))
                at += count
                self._left -= count
            elif end - at < HEAD.size:
                break
            else:
                self._handle(*HEAD.unpack_from(view, at))
                at += HEAD.size
        return at

    def _handle(self, kind: int, number: int, value: int) -> None:
        if kind == DATA:
            if not value:
                raise Violation("an empty data frame")
            self._into, self._left = self._stream(number, opens=True), value
            if self._into is not None:
                self._into.expect(value)
            else:
                self.stray -= value
                if self.stray < 0:
                    raise Violation("more data for a closed stream than its window")
        elif kind == GRANT:
            if (stream := self._stream(number)) is not None:
                stream.credited(value)
        elif kind == FINISH:
            if (stream := self._stream(number, opens=True)) is not None:
                stream.finished()
        elif kind == ABORT:
            if (stream := self._stream(number)) is not None:
                stream.aborted()
        elif kind == PING:
            self.outbox.answer(value)
        elif kind == PONG:
            if self._ping is not None and self._ping[0] == value:
                self.round_trip = time.monotonic() - self._ping[1]
                self._ping = None
                self._ponged.fire()
        elif kind == CLOSE:
            self.fail("the peer closed the connection")
        else:
            raise Violation("a frame of unknown kind")

    def _stream(self, number: int, *, opens: bool = False) -> MuxStream | None:
        """The open stream of that number, which the frame may begin; None if it is over."""
        if (stream := self._streams.get(number)) is not None:
            return stream
        if number == self._next_peer and opens:
            if self._peer_open >= STREAMS:
                raise Violation("too many streams")
            self._next_peer += 2
            self._peer_open += 1
            stream = self._streams[number] = MuxStream(self, number)
            self._waiting.append(stream)
            self._changed.fire()
            return stream
        ours = number % 2 == self._next_own % 2
        if not 0 < number < (self._next_own if ours else self._next_peer):
            raise Violation("a stream out of turn")
        return None

    async def _watch(self) -> None:
        while self._fault is None:
            asked = time.monotonic()
            try:
                async with asyncio.timeout(QUIET):
                    await self.ping()
            except TimeoutError:
                if self._heard < asked:
                    raise Broken("the peer no longer answers") from None
            await asyncio.sleep(QUIET)
            while (silent := time.monotonic() - self._heard) < QUIET:
                await asyncio.sleep(QUIET - silent)
