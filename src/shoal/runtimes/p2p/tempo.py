"""The pace of a run as one peer sees it: how far the others are, and how long to wait for whom."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from .debtor import Debtor
from .patience import Patience

__all__ = ["AHEAD", "Tempo"]

AHEAD = 16
"""Ticks that a parcel may be ahead of this peer."""
GRACE = 0.1
"""Of a tick's usual time: how long a seat is waited for that has not been in time lately."""
LATE = 8
"""Parcels in a row that a neighbour finds late, before this peer goes on where such neighbours are."""
SLOW = 1.5
"""Times the others' time for a tick: who takes longer works ahead."""


class Tempo:
    """What a desk has learned of the others, by seat.

    Args:
        patience: of this peer.
        gone: whether nothing can be expected of a seat.

    Attributes:
        reached: the tick that this peer is really at, where it works ahead the others' one.
        expected: the tick that it has set out for; 0 before it ever did.
    """

    def __init__(self, patience: Patience, gone: Callable[[int], bool]) -> None:
        self.patience, self.gone = patience, gone
        self.reached = self.expected = 0
        self._tick, self._jump = -1, 0
        self._progress: deque[tuple[float, int]] = deque(maxlen=5)
        self._began = time.monotonic()
        self._interval: float | None = None
        self._work: float | None = None
        self._debtors: dict[int, Debtor] = {}
        self._late: dict[int, int] = {}

    def begin(self, tick: int) -> None:
        """This peer begins a tick."""
        now = time.monotonic()
        self._jump, self._tick = max(1, tick - self._tick), tick
        if self._jump == 1:
            self.reached = tick
            self._interval = _smoothed(self._interval, now - self._began)
        self._began = now

    def worked(self, now: float) -> None:
        """It has come to the first exchange of the tick."""
        self._work = _smoothed(self._work, now - self._began)

    def heeded(self, seat: int) -> None:
        """A parcel was taken there."""
        self._late[seat] = 0

    def refused(self, seat: int) -> None:
        """A parcel was not taken: too late, mostly."""
        self._late[seat] = self._late.get(seat, 0) + 1

    def unheard(self, seat: int) -> None:
        """A parcel did not get there."""
        self._late.pop(seat, None)

    def frontier(self, seats: Iterable[int]) -> int:
        """The tick that the peers of these seats have reached, by the lower median of what they say.

        One that lies about it moves nobody as long as most do not. -1: nothing is known.
        """
        told = [self.of(s).reached for s in seats if s in self._debtors and not self.gone(s)]
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
        told = [self.of(s).reached for s, n in self._late.items() if n >= LATE]
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
        self.reached, self.expected = reached, target

    def heard(self, seat: int, tick: int) -> None:
        """A peer said by other ways which tick it is at."""
        debtor = self.of(seat)
        debtor.reached = max(debtor.reached, tick)

    def lag(self) -> dict[int, tuple[int, int, int]]:
        """Seat -> (the last tick heard of, missed in a row, late in all)."""
        return {s: (d.reached, d.missed, d.late) for s, d in sorted(self._debtors.items())}

    def of(self, seat: int) -> Debtor:
        """What is known of a seat."""
        return self._debtors.setdefault(seat, Debtor())

    def until(self, want: Sequence[int], now: float) -> tuple[dict[int, float], dict[int, float]]:
        """How long each of these seats is waited for; and how long, as long as most of them are missing."""
        patience = self.patience
        debtors = {s: self.of(s) for s in want}
        usual = [d.usual for d in debtors.values() if d.usual is not None]
        if patience.strict or not (usual or self.expected):  # the run begins: nobody knows anything yet
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


def _smoothed(before: float | None, now: float) -> float:
    return now if before is None else before + (now - before) / 4
