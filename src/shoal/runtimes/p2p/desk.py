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
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from shoal.core import RunFailed, ShoalError
from shoal.network.port import Buffer

from .frames import Refused
from .node import Node
from .patience import Patience
from .tempo import AHEAD, Tempo
from .transfer import BlobRefused, Receiver, send_blob
from .transport.base import PeerId
from .witness import UNSIGNED, Witness

__all__ = ["Desk", "Patience"]

_KEY = struct.Struct("<8sIHI64s")
CALLS = 4096
"""Calls in one tick."""
QUEUED = 8
"""Parcels on their way to one peer; of more the oldest is given up."""
_Name = tuple[int, int, int, bytes]
LARGE = 1 << 12
"""Bytes from which on a piece is told by where it lies."""


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
        self.tempo = Tempo(patience, self.gone)
        self._box: dict[tuple[int, int], dict[int, tuple[float, memoryview]]] = {}
        self._held: dict[int, int] = {}
        self._missed: set[int] = set()
        self._queues: dict[int, deque[tuple[_Name, bytearray]]] = {}
        self._senders: dict[int, asyncio.Task[None]] = {}
        self._wake, self._turn, self._room = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._hurried = self._closed = False
        Receiver(node, self._accept, limit, self._done, kind="run", budget=4 * limit, tagged=False)

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
        self.tempo.begin(tick)
        self.tick = tick
        self._turn.set()
        self._turn = asyncio.Event()
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
            self.tempo.worked(began)
        parcels = _copies(out)
        signature = UNSIGNED
        if self.witness is not None and self.witness.silent(tick):
            self._missed.update(parcels)
            parcels = {}
        elif self.witness is not None and parcels:
            signature = await self.witness.sign(tick, call, parcels.values())
        for seat, data in parcels.items():
            while strict and len(self._queues.get(seat, ())) >= QUEUED:
                self._room.clear()
                await self._room.wait()
            self._send(seat, (*key, min(self.tempo.reached, tick), signature), data)
        box = self._box.setdefault(key, {})
        trusted, anyone = self.tempo.until(want, began)
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
                self.tempo.of(seat).hit(came - began, self.patience.tries)
            else:
                self.tempo.of(seat).miss(self.patience.tries)
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

    def holds(self, seat: int, tick: int) -> bool:
        """Whether something of this seat lies here for that tick."""
        return any(key[0] == tick and seat in box for key, box in self._box.items())

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

    def _due(self, seat: int, tick: int) -> bool:
        """Whether anything may still come: parcels of one peer arrive in order."""
        return not self.gone(seat) and self.tempo.of(seat).tick <= tick

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
            self._room.set()
            name = _KEY.pack(self.run, tick, call, reached, signature)
            try:
                self.wire += await send_blob(
                    self.node, peer, name, [data], kind="run", patience=self.patience.most_s
                )
                self.tempo.heeded(seat)
            except BlobRefused:
                self._missed.add(seat)
                self.tempo.refused(seat)
            except ShoalError:
                self._missed.add(seat)
                self.tempo.unheard(seat)

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
        debtor = self.tempo.of(seat)
        debtor.saw(tick, reached)
        if tick < self.tick:
            debtor.late += 1
            raise Refused("late", 0.0)
        while reason := self._too_early(seat, tick, len(data)):
            if not self.patience.strict:
                raise Refused(reason, 0.0)
            await self._turn.wait()  # nothing is lost: its sender waits, or comes again
        box = self._box.setdefault((tick, call), {})
        if seat in box:
            raise Refused("twice", 0.0)
        box[seat] = (time.monotonic(), data)
        self._held[seat] = self._held.get(seat, 0) + len(data)
        self._wake.set()

    def _too_early(self, seat: int, tick: int, size: int) -> str:
        if tick > max(self.tick, self.tempo.expected) + AHEAD:
            return "ahead"
        full = self._held.get(seat, 0) + size > 4 * self._limit
        return "too much ahead" if full and (tick > self.tick or not self.patience.strict) else ""


def _copies(out: Mapping[int, Sequence[Buffer]]) -> dict[int, bytearray]:
    """Each parcel in one piece, the same for all that get the same: the pieces may be written over."""
    made: dict[tuple[Any, ...], bytearray] = {}
    parcels = {}
    for seat, pieces in out.items():
        name = tuple(bytes(p) if len(p) < LARGE else (_address(p), len(p)) for p in pieces)
        if name not in made:
            made[name] = bytearray().join(pieces)
        parcels[seat] = made[name]
    return parcels


def _address(piece: Buffer) -> int:
    return np.frombuffer(piece, np.uint8).ctypes.data
