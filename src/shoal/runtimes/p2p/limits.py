"""What one peer may ask of another, and how long an answer is waited for.

Rates are token buckets. Deadlines follow TCP's retransmission timer (Jacobson 1988; RFC 6298): smoothed
time plus four deviations, doubled after each miss; a call that was repeated or timed out gives no sample
(Karn and Partridge 1987). All times are this process's monotonic seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from shoal.core import BadInput, Part

__all__ = ["Limits", "RoundTrip", "TokenBucket"]

Positive = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]


@dataclass(frozen=True)
class Limits(Part):
    """What is granted to each peer. Seconds and bytes.

    Args:
        calls_per_s: calls and streams that it may begin, on average; beyond it is told to come later.
        calls_burst: ... at once.
        bytes_per_s: what it may send in bodies and streams; beyond it is read more slowly.
        bytes_burst: ... at once.
        concurrent: calls and streams of it in progress; beyond they wait to be accepted.
        held: bytes of its requests held at a time.
        peers: connections altogether.
        strikes: refusals that earn a ban.
        forgiven_per_s: strikes forgiven.
        ban_s: the first ban; each further one is twice as long.
        ban_most_s: ... up to this.
        connect_s: to reach a peer and agree on the protocol.
        first_s: deadline of a call of which nothing is known.
        floor_s: no learned deadline is shorter,
        ceiling_s: or longer.
        grace_s: that :meth:`~.node.Node.stop` and a connection on its way out wait for calls in progress.
    """

    calls_per_s: Positive = 2000.0
    calls_burst: Positive = 4000.0
    bytes_per_s: Positive = float(1 << 30)
    bytes_burst: Positive = float(1 << 26)
    concurrent: Annotated[int, Meta(ge=2)] = 96
    held: Annotated[int, Meta(ge=1 << 16)] = 1 << 26
    peers: Count = 512
    strikes: Positive = 20.0
    forgiven_per_s: Annotated[float, Meta(ge=0)] = 0.2
    ban_s: Positive = 10.0
    ban_most_s: Positive = 3600.0
    connect_s: Positive = 10.0
    first_s: Positive = 10.0
    floor_s: Positive = 2.0
    ceiling_s: Positive = 60.0
    grace_s: Annotated[float, Meta(ge=0)] = 2.0

    def check(self) -> None:
        if not self.floor_s <= self.first_s <= self.ceiling_s:
            raise BadInput(
                "first_s", self.first_s, f"between floor_s {self.floor_s} and ceiling_s {self.ceiling_s}"
            )
        if self.ban_most_s < self.ban_s:
            raise BadInput("ban_most_s", self.ban_most_s, f"at least ban_s {self.ban_s}")


class TokenBucket:
    """``rate`` tokens a second, at most ``burst`` saved up."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate, self._burst = rate, burst
        self._tokens, self._at = burst, now

    def _fill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now

    def ask(self, now: float) -> float:
        """Take one token: 0, or the seconds until there is one (and none is taken)."""
        self._fill(now)
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate

    def charge(self, count: float, now: float) -> float:
        """Take ``count`` tokens, on credit if need be: the seconds after which the debt is paid."""
        self._fill(now)
        self._tokens -= count
        return max(0.0, -self._tokens / self._rate)


class RoundTrip:
    """Smoothed time and deviation of what was measured, and the deadline that follows.

    Attributes:
        smooth: seconds; None before the first sample.
        deviation: smoothed distance of the samples from ``smooth``.
    """

    __slots__ = ("_misses", "deviation", "smooth")

    def __init__(self) -> None:
        self.smooth: float | None = None
        self.deviation = 0.0
        self._misses = 0

    def saw(self, seconds: float) -> None:
        """A call took so long. Not to be told of calls that were repeated."""
        self._misses = 0
        if self.smooth is None:
            self.smooth, self.deviation = seconds, seconds / 2
            return
        self.deviation += (abs(seconds - self.smooth) - self.deviation) / 4
        self.smooth += (seconds - self.smooth) / 8

    def missed(self) -> None:
        """A deadline passed."""
        self._misses = min(self._misses + 1, 16)

    def deadline(self, limits: Limits) -> float:
        """How long to wait for the next."""
        base = limits.first_s if self.smooth is None else self.smooth + 4 * self.deviation
        return min(max(base, limits.floor_s) * 2**self._misses, limits.ceiling_s)
