"""Who holds which seat of a run: agreed from what every peer's signed record says, without asking.

A run has n seats, numbered as its configuration numbers peers. A peer claims one in its record
(``seat:K``); of two claims to one seat that of the smaller SHA-256 of (peer, run) stands, and the other
peer moves to the lowest seat that is free. Whoever has heard the same records sees the same table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from .membership import Membership
from .roster import Member, State
from .transport.base import PeerId

__all__ = ["Seats"]

PREFIX = "seat:"


class Seats:
    """The seats of a run as one member sees them.

    Args:
        membership: of this peer.
        run: the run's digest.
        count: n.
        others: further services that this peer offers, kept in its record.
    """

    def __init__(self, membership: Membership, run: str, count: int, others: Iterable[str] = ()) -> None:
        self.membership, self.run, self.count = membership, run, count
        self.others = tuple(others)
        self.me = membership.record.peer

    def table(self) -> dict[int, PeerId]:
        """Seat -> who holds it, the dead and those who left included as long as nobody else claims it."""
        return assigned(self.membership.members(), self.run, self.count)

    def seat(self, peer: PeerId) -> int | None:
        """The seat that a peer holds."""
        return next((seat for seat, who in self.table().items() if who == peer), None)

    def present(self) -> dict[int, PeerId]:
        """The seats whose holders are not known to be away."""
        members = self.membership.members()
        away = {State.DEAD, State.LEFT}
        return {s: p for s, p in self.table().items() if p == self.me or members[p].state not in away}

    def claim(self, wished: int | None = None) -> int | None:
        """Hold a seat: the one held, else the wished one, else the lowest that is free; None: all taken.

        To be called again whenever the table has changed.
        """
        table = self.table()
        held = next((seat for seat, who in table.items() if who == self.me), None)
        if held is not None:
            return held
        free = [s for s in range(self.count) if s not in table]
        if not free:
            members = self.membership.members()
            away = {State.DEAD, State.LEFT}
            free = [s for s, p in sorted(table.items()) if members[p].state in away]
        chosen = wished if wished in free else min(free, default=None)
        offers = self.others if chosen is None else (f"{PREFIX}{chosen}", *self.others)
        if offers != self.membership.record.said.offers:
            self.membership.announce(offers=offers)
        return chosen


def assigned(members: Mapping[PeerId, Member], run: str, count: int) -> dict[int, PeerId]:
    """The table that these members' records make."""
    claims: dict[int, list[tuple[bool, bytes, PeerId]]] = {}
    for peer, member in members.items():
        seat = claimed(member)
        if seat is not None and 0 <= seat < count:
            away = member.state in {State.DEAD, State.LEFT}
            rank = hashlib.sha256(f"{peer}\0{run}".encode()).digest()
            claims.setdefault(seat, []).append((away, rank, peer))
    return {seat: min(found)[2] for seat, found in sorted(claims.items())}


def claimed(member: Member) -> int | None:
    """The seat that a member's record claims."""
    for offer in member.record.said.offers:
        if offer.startswith(PREFIX) and offer[len(PREFIX) :].isdecimal():
            return int(offer[len(PREFIX) :][:9])
    return None
