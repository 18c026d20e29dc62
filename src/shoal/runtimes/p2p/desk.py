"""Where the parcels of a run are handed in and picked up: the exchange between real peers.

Every peer holds one seat of the run and numbers its calls by (tick, call), the same everywhere. What
arrives is kept for the present tick and the next few, one parcel for each seat and call; what comes
late, too early or twice is refused, at no cost to whoever sent it: an honest peer may be late.

How long a parcel is waited for is learned from how long they took. A seat that keeps others waiting is
soon not waited for, or hardly, until it has been in time again a few times in a row. It still takes
part: a slow peer works for a tick so far ahead that its parcel is there when the others get to it, and
says along with it how far it really is, so that nobody mistakes its number for the run's progress.
"""

from __future__ import annotations

import asyncio
import math
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

from .debtor import Debtor
from .frames import Refused
from .node import Node
from .transfer import BlobRefused, Receiver, send_blob
from .transport.base import PeerId
from .witness import UNSIGNED, Witness

__all__ = ["Desk", "Patience"]

_KEY = struct.Struct("<8sIHI64s")
AHEAD = 16
"""Ticks that a parcel may be ahead of this peer."""
CALLS = 4096
"""Calls in one tick."""
QUEUED = 8
"""Parcels on their way to one peer; of more the oldest is given up."""
_Name = tuple[int, int, int, bytes]
GRACE = 0.1
"""Of a tick's usual time: how long a seat is waited for that has not been in time lately."""
LATE = 8
"""Parcels in a row that a neighbour finds late, before this peer goes on where such neighbours are."""
SLOW = 1.5
"""Times the others' time for a tick: who takes longer works ahead."""


@dataclass(frozen=True)
class Patience(Part):
    """How long a peer waits for what others owe it.

    Args:
        strict: wait for everyone, and fail where someone stays away for ``most_s``. Without it a peer
            goes on with what has come.
        factor: of the time that parcels usually take, measured, or the work of a tick here, where that
            takes longer, before going on without one.
        least_s: seconds, never less,
        most_s: never more.
        tries: parcels that a peer may be late with in a row before it is not waited for any more, and
            that it must then be in time with in a row to be waited for again.
    """

    strict: bool = False
    factor: Annotated[float, Meta(ge=1)] = 4.0
    least_s: Annotated[float, Meta(gt=0)] = 0.1
    most_s: Annotated[float, Meta(gt=0)] = 30.0
    tries: Annotated[int, Meta(ge=1)] = 3


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
        known: whether somebody without a seat is a member all the same (its claim may be on its way).
        witness: finds out who tells different neighbours different things; None: nobody does.
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
        known: Callable[[PeerId], bool] = lambda peer: False,
        witness: Witness | None = None,
    ) -> None:
        self.node, self.run, self.here, self.patience = node, run, here, patience
        self.holder, self.seat, self.known, self.witness = holder, seat, known, witness
        # Nothing is expected of one that is known to lie, nor sent to it.
        self.gone = gone if witness is None else lambda at: gone(at) or holder(at) in witness.proofs
        self.tick = -1
        self.wire = 0
        self._limit = limit
        self._reached = self._jump = self._expected = 0
        self._progress: deque[tuple[float, int]] = deque(maxlen=5)
        self._began = time.monotonic()
        self._interval: float | None = None
        self._work: float | None = None
        self._box: dict[tuple[int, int], dict[int, tuple[float, memoryview]]] = {}
        self._held: dict[int, int] = {}
        self._debtors: dict[int, Debtor] = {}
        self._late: dict[int, int] = {}
        self._missed: set[int] = set()
        self._queues: dict[int, deque[tuple[_Name, bytearray]]] = {}
        self._senders: dict[int, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._hurried = self._closed = False
        Receiver(node, self._accept, limit, self._done, kind="run", budget=4 * limit)

    # -- what the port does -----------------------------------------------------------------------------

    def sit(self, here: int) -> None:
        """Another seat from now on; what came for the old one is dropped."""
        if here != self.here:
            self.here = here
            self._box.clear()
            self._held.clear()

    async def begin(self, tick: int) -> None:
        """Tick ``tick`` begins; what came for earlier ones is dropped."""
        if self.witness is not None:
            self.witness.begin(tick)
        now = time.monotonic()
        self._jump, self.tick = max(1, tick - self.tick), tick
        if self._jump == 1:
            self._reached = tick
            self._interval = _smoothed(self._interval, now - self._began)
        self._began = now
        for key in [key for key in self._box if key[0] < tick]:
            for seat, (_, data) in self._box.pop(key).items():
                self._held[seat] -= len(data)

    async def swap(
        self, tick: int, call: int, out: Mapping[int, Sequence[Buffer]], want: Sequence[int]
    ) -> dict[int, memoryview]:
        """Send what is in ``out`` (seat -> pieces), wait for ``want``; returns what came in time.

        Raises:
            RunFailed: a strict peer waited in vain.
        """
        began, key, strict = time.monotonic(), (tick, call), self.patience.strict
        if call == 0:
            self._work = _smoothed(self._work, began - self._began)
        # The pieces may be written over as soon as this call is over.
        parcels = {seat: bytearray().join(pieces) for seat, pieces in out.items()}
        signature = UNSIGNED
        if self.witness is not None and self.witness.silent(tick):
            self._missed.update(parcels)
            parcels = {}
        elif self.witness is not None and parcels:
            signature = await self.witness.sign(tick, call, parcels.values())
        for seat, data in parcels.items():
            self._send(seat, (*key, min(self._reached, tick), signature), data)
        box = self._box.setdefault(key, {})
        trusted, anyone = self._until(want, began)
        while True:
            now = time.monotonic()
            missing = [s for s in want if s not in box]
            due = missing if strict else [s for s in missing if self._due(s, tick)]
            # Whoever is ahead of most of its neighbours waits for one half of them.
            until = anyone if 2 * len(due) > len(want) else trusted
            waited = [s for s in due if now < until[s]]
            if not waited or self._hurried:
                break
            self._wake.clear()
            try:
                # Who is found to be away meanwhile is noticed within a quarter of a second.
                async with asyncio.timeout(min(min(until[s] for s in waited) - now, 0.25)):
                    await self._wake.wait()
            except TimeoutError:
                continue
        if missing and strict and not self._hurried:
            raise RunFailed(
                f"peer {missing[0]} sent nothing for tick {tick} within {self.patience.most_s:g} s"
            )
        found = {}
        for seat in want:
            if seat in box:
                came, found[seat] = box.pop(seat)
                self._held[seat] -= len(found[seat])
                self._of(seat).hit(came - began, self.patience.tries)
            else:
                self._of(seat).miss(self.patience.tries)
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
        """The tick that the peers of these seats have reached, by the lower median of what they say.

        One that lies about it moves nobody as long as most do not. -1: nothing is known.
        """
        told = [self._of(s).reached for s in seats if s in self._debtors and not self.gone(s)]
        told = [tick for tick in told if tick >= 0]
        return statistics.median_low(told) if told else -1

    def target(self, index: int, seats: Iterable[int]) -> tuple[int, int]:
        """(how far the others are, the tick to go on with), where ``index`` is next here.

        The next but the others' present one where this peer is behind; farther where it is slow.
        """
        ahead = self.frontier(seats)
        self._progress.append((time.monotonic(), ahead))
        late = ahead > index + 1 or (ahead >= index and bool(self._late) and all(self._late.values()))
        if late:
            self._late.clear()
            return ahead, ahead + self.lead()
        told = [self._of(s).reached for s, n in self._late.items() if n >= LATE]
        told = [tick for tick in told if tick >= index]
        if told:  # a single one may lie: it costs this peer one tick, and no more
            self._late.clear()
            return ahead, index + 1 if len(told) == 1 else statistics.median_low(told) + self.lead()
        return ahead, index

    def lead(self) -> int:
        """Ticks that the others do while this peer does one, and one more."""
        meanwhile = (self._work or 0.0) * self._rate
        return 1 if meanwhile < SLOW else min(1 + math.ceil(meanwhile), AHEAD)

    @property
    def _rate(self) -> float:
        """Ticks a second that the others do; 0 where it is not known yet."""
        known = [(when, at) for when, at in self._progress if at >= 0]
        if len(known) < 2 or known[-1][0] <= known[0][0]:
            return 0.0
        return max(0, known[-1][1] - known[0][1]) / (known[-1][0] - known[0][0])

    def set_out(self, reached: int, target: int) -> None:
        """The next tick to begin is ``target``; the others are at ``reached``."""
        self._reached, self._expected = reached, target

    def heard(self, seat: int, tick: int) -> None:
        """A peer said by other ways which tick it is at."""
        debtor = self._of(seat)
        debtor.reached = max(debtor.reached, tick)

    def holds(self, seat: int, tick: int) -> bool:
        """Whether something of this seat lies here for that tick."""
        return any(key[0] == tick and seat in box for key, box in self._box.items())

    def lag(self) -> dict[int, tuple[int, int, int]]:
        """Seat -> (the last tick heard of, missed in a row, late in all)."""
        return {s: (d.reached, d.missed, d.late) for s, d in sorted(self._debtors.items())}

    def hurry(self) -> None:
        """Wait for nobody any more."""
        self._hurried = True
        self._wake.set()

    async def flush(self, seconds: float) -> None:
        """Let what is queued leave, for at most so long."""
        tasks = [task for task in self._senders.values() if not task.done()]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    async def close(self) -> None:
        """Give up what is on its way."""
        self._closed = True
        if self.witness is not None:
            await self.witness.close()
        tasks = list(self._senders.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- inside ------------------------------------------------------------------------------------------

    def _of(self, seat: int) -> Debtor:
        return self._debtors.setdefault(seat, Debtor())

    def _due(self, seat: int, tick: int) -> bool:
        """Whether anything may still come: parcels of one peer arrive in order."""
        return not self.gone(seat) and self._of(seat).tick <= tick

    def _until(self, want: Sequence[int], now: float) -> tuple[dict[int, float], dict[int, float]]:
        """How long each of these seats is waited for; and how long, as long as most of them are missing."""
        patience = self.patience
        debtors = {s: self._of(s) for s in want}
        usual = [d.usual for d in debtors.values() if d.usual is not None]
        if patience.strict or not (usual or self._expected):  # the run begins: nobody knows anything yet
            most = dict.fromkeys(want, now + patience.most_s)
            return most, most
        # The median of the neighbours: one that dawdles does not teach the others to wait for it.
        learned = patience.factor * max(statistics.median_low(usual) if usual else 0.0, self._work or 0.0)
        long = min(max(learned, patience.least_s), patience.most_s)
        usually = self._interval or 0.0

        def wait(debtor: Debtor) -> float:
            if debtor.trusted or self._jump > 1:
                return long
            return min(long, usually if debtor.on_trial else GRACE * usually)

        each = {seat: now + wait(debtor) for seat, debtor in debtors.items()}
        return each, dict.fromkeys(want, now + long)

    def _send(self, seat: int, key: _Name, data: bytearray) -> None:
        queue = self._queues.setdefault(seat, deque())
        queue.append((key, data))
        while len(queue) > QUEUED:
            queue.popleft()
            self._missed.add(seat)
        task = self._senders.get(seat)
        if task is None or task.done():
            self._senders[seat] = asyncio.create_task(self._deliver(seat))

    async def _deliver(self, seat: int) -> None:
        queue, strict = self._queues[seat], self.patience.strict
        while queue and not self._closed:
            (tick, call, reached, signature), data = queue.popleft()
            peer = self.holder(seat)
            stale = tick < self.tick - 1 or self.gone(seat)
            if peer is None or (stale and not strict):
                self._missed.add(seat)
                continue
            name = _KEY.pack(self.run, tick, call, reached, signature)
            try:
                self.wire += await send_blob(
                    self.node, peer, name, [data], kind="run", patience=self.patience.most_s
                )
                self._late[seat] = 0
            except BlobRefused:
                self._missed.add(seat)
                self._late[seat] = self._late.get(seat, 0) + 1
            except ShoalError:
                self._missed.add(seat)
                self._late.pop(seat, None)

    def _read(self, name: bytes) -> _Name | None:
        if len(name) != _KEY.size:
            return None
        run, *read = _KEY.unpack(name)
        tick, call, reached, signature = read
        ours = run == self.run and call <= CALLS and reached <= tick
        return (tick, call, reached, signature) if ours else None

    def _accept(self, peer: PeerId, name: bytes, size: int) -> bool:
        if self._read(name) is None or (self.witness is not None and peer in self.witness.proofs):
            return False
        seat = self.seat(peer)
        # Whose seat is not known here, or no longer, is told so by what answers the parcel.
        return seat != self.here if seat is not None else self.known(peer)

    async def _done(self, peer: PeerId, name: bytes, data: memoryview) -> None:
        read, seat = self._read(name), self.seat(peer)
        if read is None or seat is None or seat == self.here:
            raise Refused("no seat in this run", 0.0)
        tick, call, reached, signature = read
        if self.witness is not None:
            await self.witness.hear(peer, tick, call, signature, data)
        debtor = self._of(seat)
        debtor.saw(tick, reached)
        if tick < self.tick:
            debtor.late += 1
            raise Refused("late", 0.0)
        if tick > max(self.tick, self._expected) + AHEAD:
            raise Refused("ahead", 0.0)
        box = self._box.setdefault((tick, call), {})
        if seat in box:
            raise Refused("twice", 0.0)
        if self._held.get(seat, 0) + len(data) > 4 * self._limit:
            raise Refused("too much ahead", 0.0)
        box[seat] = (time.monotonic(), data)
        self._held[seat] = self._held.get(seat, 0) + len(data)
        self._wake.set()


def _smoothed(before: float | None, now: float) -> float:
    return now if before is None else before + (now - before) / 4
