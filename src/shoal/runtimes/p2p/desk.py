"""Where the parcels of a run are handed in and picked up: the exchange between real peers.

Every peer holds one seat of the run and numbers its calls by (tick, call), the same everywhere. What
arrives is kept for the present tick and the next few, one parcel for each seat and call; what comes
late, too early or twice is refused. How long a parcel is waited for is learned from how long they took.
"""

from __future__ import annotations

import asyncio
import statistics
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from shoal.core import Part, RunFailed, ShoalError
from shoal.network.port import Buffer

from .frames import Refused
from .limits import RoundTrip
from .node import Node
from .transfer import Receiver, send_blob
from .transport.base import PeerId

__all__ = ["Desk", "Patience"]

_KEY = struct.Struct("<8sIH")
AHEAD = 4
"""Ticks that a parcel may be ahead of this peer."""
QUEUED = 8
"""Parcels on their way to one peer; of more the oldest is given up."""


@dataclass(frozen=True)
class Patience(Part):
    """How long a peer waits for what others owe it.

    Args:
        strict: wait for everyone, and fail where someone stays away for ``most_s``. Without it a peer
            goes on with what has come.
        factor: of the time that parcels usually take, measured, before going on without one.
        least_s: seconds, never less,
        most_s: never more.
        tries: parcels that a peer may be late with in a row before it is not waited for any more.
    """

    strict: bool = False
    factor: Annotated[float, Meta(ge=1)] = 4.0
    least_s: Annotated[float, Meta(gt=0)] = 0.5
    most_s: Annotated[float, Meta(gt=0)] = 30.0
    tries: Annotated[int, Meta(ge=1)] = 3


class _Debtor:
    """What is known of one seat: how long its parcels take, and how far it is."""

    def __init__(self) -> None:
        self.trip = RoundTrip()
        self.missed = 0
        self.tick = -1
        self.late = 0


class Desk:
    """One peer's place in the exchange of a run.

    Args:
        node: of this peer.
        run: 8 bytes that name the run.
        here: this peer's seat.
        limit: bytes of one parcel.
        patience: see :class:`Patience`.
        holder: seat -> who holds it now, or None.
        seat: who -> the seat, or None for one that takes no part.
        gone: whether the holder of a seat is known to be away.
    """

    def __init__(
        self,
        node: Node,
        run: bytes,
        here: int,
        limit: int,
        patience: Patience,
        holder: Callable[[int], PeerId | None],
        seat: Callable[[PeerId], int | None],
        gone: Callable[[int], bool],
    ) -> None:
        self.node, self.run, self.here, self.patience = node, run, here, patience
        self.holder, self.seat, self.gone = holder, seat, gone
        self.tick = -1
        self.wire = 0
        self._box: dict[tuple[int, int], dict[int, memoryview]] = {}
        self._calls: dict[tuple[int, int], float] = {}
        self._debtors: dict[int, _Debtor] = {}
        self._missed: set[int] = set()
        self._queues: dict[int, deque[tuple[tuple[int, int], bytes]]] = {}
        self._senders: dict[int, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._closed = False
        Receiver(node, self._accept, limit, self._done, kind="run", budget=2 * limit * AHEAD)

    # -- what the port does -----------------------------------------------------------------------------

    async def begin(self, tick: int) -> None:
        """Tick ``tick`` begins; what came for earlier ones is dropped."""
        self.tick = tick
        for key in [key for key in self._box if key[0] < tick]:
            del self._box[key]

    async def swap(
        self, tick: int, call: int, out: Mapping[int, Sequence[Buffer]], want: Sequence[int]
    ) -> dict[int, memoryview]:
        """Send what is in ``out`` (seat -> pieces), wait for ``want``; returns what came in time.

        Raises:
            RunFailed: a strict peer waited in vain.
        """
        for seat, pieces in out.items():
            # The pieces may be written over as soon as this call is over.
            self._send(seat, (tick, call), b"".join(pieces))
        began, key = time.monotonic(), (tick, call)
        box = self._box.setdefault(key, {})
        until = began + self._deadline(want)
        while True:
            now = time.monotonic()
            missing = [s for s in want if s not in box]
            waited = missing if self.patience.strict else [s for s in missing if self._worth(s)]
            if not waited or now >= until:
                break
            self._wake.clear()
            try:
                # Who is found to be away meanwhile is noticed within a quarter of a second.
                async with asyncio.timeout(min(until - now, 0.25)):
                    await self._wake.wait()
            except TimeoutError:
                continue
        for seat in want:
            debtor = self._of(seat)
            if seat in box:
                debtor.trip.saw(max(0.0, self._calls.get((seat, tick), now) - began))
                debtor.missed = 0
            else:
                debtor.missed += 1
        if missing and self.patience.strict:
            raise RunFailed(
                f"peer {missing[0]} sent nothing for tick {tick} within {self.patience.most_s:g} s"
            )
        found = {seat: box[seat] for seat in want if seat in box}
        self._box[key] = {}
        return found

    def missed(self) -> list[int]:
        """Seats that something may not have reached in time, since the last call of this."""
        found, self._missed = sorted(self._missed), set()
        return found

    def refuse(self, seat: int, why: str) -> None:
        """What came from ``seat`` could not be used."""
        peer = self.holder(seat)
        if peer is not None:
            self.node.refuse(peer, why[:60])

    # -- what the peer asks ------------------------------------------------------------------------------

    def frontier(self, seats: Iterable[int]) -> int:
        """The tick that the peers of these seats have reached, by the lower median of what came.

        One that lies about it moves nobody as long as most do not.
        """
        told = [self._of(s).tick for s in seats if not self.gone(s)]
        told = [tick for tick in told if tick >= 0]
        return statistics.median_low(told) if told else -1

    def heard(self, seat: int, tick: int) -> None:
        """A peer said by other ways which tick it is at."""
        debtor = self._of(seat)
        debtor.tick = max(debtor.tick, tick)

    def lag(self) -> dict[int, tuple[int, int, int]]:
        """Seat -> (the last tick heard of, missed in a row, late in all)."""
        return {s: (d.tick, d.missed, d.late) for s, d in sorted(self._debtors.items())}

    async def flush(self, seconds: float) -> None:
        """Let what is queued leave, for at most so long."""
        tasks = [task for task in self._senders.values() if not task.done()]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    async def close(self) -> None:
        """Give up what is on its way."""
        self._closed = True
        tasks = list(self._senders.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- inside ------------------------------------------------------------------------------------------

    def _of(self, seat: int) -> _Debtor:
        return self._debtors.setdefault(seat, _Debtor())

    def _worth(self, seat: int) -> bool:
        """Whether to wait for this seat at all."""
        debtor = self._of(seat)
        return not self.gone(seat) and debtor.missed < self.patience.tries

    def _deadline(self, want: Sequence[int]) -> float:
        patience = self.patience
        known = [self._of(s).trip for s in want]
        usual = [t.smooth + 4 * t.deviation for t in known if t.smooth is not None]
        if patience.strict or not usual:
            return patience.most_s
        # The median of the neighbours: one that dawdles does not teach the others to wait for it.
        learned = patience.factor * statistics.median_low(usual)
        return min(max(learned, patience.least_s), patience.most_s)

    def _send(self, seat: int, key: tuple[int, int], data: bytes) -> None:
        queue = self._queues.setdefault(seat, deque())
        queue.append((key, data))
        while len(queue) > QUEUED:
            queue.popleft()
            self._missed.add(seat)
        task = self._senders.get(seat)
        if task is None or task.done():
            self._senders[seat] = asyncio.create_task(self._deliver(seat))

    async def _deliver(self, seat: int) -> None:
        queue = self._queues[seat]
        while queue and not self._closed:
            key, data = queue.popleft()
            peer = self.holder(seat)
            if peer is None or (self.gone(seat) and not self.patience.strict):
                self._missed.add(seat)
                continue
            name = _KEY.pack(self.run, *key)
            try:
                self.wire += await send_blob(
                    self.node, peer, name, [data], kind="run", patience=self.patience.most_s
                )
            except ShoalError:
                self._missed.add(seat)

    def _read(self, peer: PeerId, name: bytes) -> tuple[int, tuple[int, int]] | None:
        seat = self.seat(peer)
        if seat is None or len(name) != _KEY.size:
            return None
        run, tick, call = _KEY.unpack(name)
        if run != self.run or call > 4096:
            return None
        return seat, (tick, call)

    def _accept(self, peer: PeerId, name: bytes, size: int) -> bool:
        read = self._read(peer, name)
        return read is not None and read[0] != self.here

    async def _done(self, peer: PeerId, name: bytes, data: memoryview) -> None:
        read = self._read(peer, name)
        if read is None:
            raise Refused("no seat in this run")
        seat, key = read
        debtor = self._of(seat)
        debtor.tick = max(debtor.tick, min(key[0], self.tick + 1_000_000))
        if key[0] < self.tick:
            debtor.late += 1
            raise Refused("late", 0.0)
        if key[0] > self.tick + AHEAD:
            raise Refused("ahead", 0.0)
        self._box.setdefault(key, {})[seat] = data
        self._calls[seat, key[0]] = time.monotonic()
        self._wake.set()
