"""What a peer knows of another seat of its run: how far it is, and whether it is worth waiting for."""

from __future__ import annotations

from .limits import RoundTrip

__all__ = ["Debtor"]

TRIAL = 16
"""Of so many parcels that did not come in time one is waited for after all: it may be late by little."""


class Debtor:
    """One seat that owes parcels.

    Attributes:
        tick: the last one that it sent something for.
        reached: the tick that it says it has come to; below ``tick`` where it works ahead.
        trusted: whether it is waited for.
        missed: parcels in a row that did not come in time.
        late: parcels that came too late to be used.
    """

    def __init__(self) -> None:
        self.tick = self.reached = -1
        self.trusted = True
        self.missed = self.late = 0
        self._hits = 0
        self._trip = RoundTrip()

    @property
    def usual(self) -> float | None:
        """Seconds by which nearly all of its parcels come, after they are wanted."""
        trip = self._trip
        return None if trip.smooth is None else trip.smooth + 4 * trip.deviation

    @property
    def on_trial(self) -> bool:
        """Whether to wait for this parcel of one that is not waited for otherwise."""
        return self.missed % TRIAL == TRIAL - 1

    def saw(self, tick: int, reached: int) -> None:
        """A parcel came, in time or not."""
        self.tick, self.reached = max(self.tick, tick), max(self.reached, reached)

    def hit(self, seconds: float, tries: int) -> None:
        """Its parcel was there so long after it was wanted (less than 0: before)."""
        self._trip.saw(max(0.0, seconds))
        self._hits += 1
        self.trusted = self.trusted or self._hits >= tries or self.on_trial
        self.missed = 0

    def miss(self, tries: int) -> None:
        """Its parcel did not come in time."""
        self._hits = 0
        self.missed += 1
        self.trusted = self.trusted and self.missed < tries
