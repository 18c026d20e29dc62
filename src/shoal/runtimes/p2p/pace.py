"""How long to wait for an answer: learned from the answers that came, never guessed by the user.

Smoothed round trip and deviation per peer as TCP keeps them (Jacobson 1988; RFC 6298). A late answer
is waited for beyond its deadline and counts too, so that the deadline of a peer that slows down grows.
"""

from __future__ import annotations

import statistics

from .transport.base import PeerId

__all__ = ["Pace"]

GROWTH = 4.0
DOUBLINGS = 2
MOST = 32.0  # periods: whoever answers ever later cannot slow this peer down without end


class Pace:
    """Round trips by peer, and the times that follow from them. All in seconds.

    Args:
        period: the least protocol period.
    """

    def __init__(self, period: float) -> None:
        self.least = period
        self._trips: dict[PeerId, tuple[float, float]] = {}
        self._misses: dict[PeerId, int] = {}

    def saw(self, peer: PeerId, seconds: float) -> None:
        """An answer took so long."""
        self._misses.pop(peer, None)
        known = self._trips.get(peer)
        if known is None:
            self._trips[peer] = (seconds, seconds / 2)
            return
        smooth, deviation = known
        deviation += (abs(seconds - smooth) - deviation) / 4
        self._trips[peer] = (smooth + (seconds - smooth) / 8, deviation)

    def missed(self, peer: PeerId) -> None:
        """No answer came with all patience."""
        self._misses[peer] = min(DOUBLINGS, self._misses.get(peer, 0) + 1)

    def forget(self, peer: PeerId) -> None:
        """The connection to the peer is gone: what it measured says nothing of the next."""
        self._trips.pop(peer, None)
        self._misses.pop(peer, None)

    def deadline(self, peer: PeerId) -> float:
        """After this long without an answer, others are asked to try.

        A peer that never answered (a connection to it has to be made first) gets a whole period.
        """
        known = self._trips.get(peer)
        if known is None:
            return self.period
        smooth, deviation = known
        return min(max(smooth + 4 * deviation, self.least / 8), MOST * self.least / GROWTH)

    def patience(self, peer: PeerId) -> float:
        """After this long a probe, with the help of others, has failed.

        Doubled after a miss where a connection has to be made, whose time nobody can know beforehand.
        """
        if peer in self._trips:
            return max(GROWTH * self.deadline(peer), self.period)
        return GROWTH * self.period * 2 ** self._misses.get(peer, 0)

    @property
    def period(self) -> float:
        """The protocol period: long enough for a usual probe through a third peer."""
        if not self._trips:
            return self.least
        usual = statistics.median_low(smooth + 4 * deviation for smooth, deviation in self._trips.values())
        return min(max(self.least, GROWTH * usual), MOST * self.least / GROWTH)
