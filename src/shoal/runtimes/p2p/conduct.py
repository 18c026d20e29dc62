"""How each peer has behaved: what it may still ask, what it did wrong, how fast it answers.

What a peer does wrong is counted in strikes that are forgiven with time; too many at once earn a ban,
each twice as long as the one before. All of this is of bounded size, however many keys come by.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from .limits import Limits, RoundTrip, TokenBucket
from .transport.base import PeerId
from .transport.pipe import Signal

__all__ = ["Conduct", "Standing"]

REMEMBERED = 4096  # peers
REASONS = 10_000  # different refusals counted; beyond, all others are one


class Standing:
    """What is known of one peer's conduct.

    Attributes:
        calls, bytes: what it may still ask.
        slots: its calls and streams in progress.
        trip: network round trip, without the time that handlers take.
        kinds: whole time of a call, by kind.
        lost: token of the connection to the peer that broke last (see :mod:`.link`).
    """

    def __init__(self, limits: Limits) -> None:
        now = time.monotonic()
        self._limits = limits
        self.calls = TokenBucket(limits.calls_per_s, limits.calls_burst, now)
        self.bytes = TokenBucket(limits.bytes_per_s, limits.bytes_burst, now)
        self.slots = asyncio.Semaphore(limits.concurrent)
        self.trip = RoundTrip()
        self.kinds: dict[str, RoundTrip] = {}
        self.lost = bytes(8)
        self._strikes, self._struck = 0.0, now
        self._bans, self._until = 0, now
        self._held = 0
        self._room = Signal()

    def strike(self, weight: float) -> bool:
        """Something was wrong; whether this earns a ban."""
        now = time.monotonic()
        forgiven = (now - self._struck) * self._limits.forgiven_per_s
        self._strikes, self._struck = max(0.0, self._strikes - forgiven) + weight, now
        if self._strikes < self._limits.strikes or self.banned:
            return False
        length = min(self._limits.ban_s * 2**self._bans, self._limits.ban_most_s)
        self._bans, self._until, self._strikes = min(self._bans + 1, 32), now + length, 0.0
        return True

    @property
    def banned(self) -> float:
        """Seconds that the ban still lasts; 0 without one."""
        return max(0.0, self._until - time.monotonic())

    @property
    def clean(self) -> bool:
        """Whether there is nothing to remember."""
        now = time.monotonic()
        forgiven = (now - self._struck) * self._limits.forgiven_per_s
        past = now - self._until > 4 * self._limits.ban_s * 2**self._bans
        return self._strikes <= forgiven and (not self._bans or past) and not self._held

    async def hold(self, size: int) -> None:
        """Wait for room for a request of ``size`` bytes. One alone always finds room."""
        while self._held and self._held + size > self._limits.held:
            await self._room.wait()
        self._held += size

    def let_go(self, size: int) -> None:
        """The request is done with."""
        self._held -= size
        self._room.fire()

    def charge(self, size: int) -> float:
        """Seconds to wait until ``size`` bytes are within the peer's rate."""
        return self.bytes.charge(size, time.monotonic())


class Conduct:
    """The standings of all peers, and what was refused.

    Args:
        limits: what each peer is granted.

    Attributes:
        refusals: how often, by (peer, reason).
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.refusals: Counter[tuple[PeerId, str]] = Counter()
        self._standings: dict[PeerId, Standing] = {}

    def refuse(self, peer: PeerId, reason: str, weight: float) -> bool:
        """Count a refusal; whether it earns a ban."""
        key = (peer, reason)
        if key not in self.refusals and len(self.refusals) >= REASONS:
            key = ("", "others")
        self.refusals[key] += 1
        return self.standing(peer).strike(weight)

    def banned(self, peer: PeerId) -> float:
        """Seconds for which the peer is still banned; 0 where it is not."""
        standing = self._standings.get(peer)
        return standing.banned if standing else 0.0

    def trip(self, peer: PeerId) -> RoundTrip | None:
        """What is known of the round trip."""
        standing = self._standings.get(peer)
        return standing.trip if standing else None

    def standing(self, peer: PeerId) -> Standing:
        """The standing of a peer, made when first asked for."""
        standing = self._standings.pop(peer, None)
        if standing is None:
            if len(self._standings) >= REMEMBERED:
                self._forget()
            standing = Standing(self._limits)
        self._standings[peer] = standing  # last: the longest unused come first
        return standing

    def _forget(self) -> None:
        """Make room for an eighth: who has nothing to be remembered for, then the longest unused."""
        gone = sorted(self._standings, key=lambda peer: not self._standings[peer].clean)
        for peer in gone[: REMEMBERED // 8]:
            del self._standings[peer]
