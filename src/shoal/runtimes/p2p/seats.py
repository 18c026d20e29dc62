"""Who holds which seat of a run: agreed from what every peer's signed record says, without asking.

A run has n seats, numbered as its configuration numbers peers. A peer claims one in its record
(``seat:K``); of two claims to one seat that of the smaller SHA-256 of (peer, run) stands, and the other
peer moves to the lowest seat that is free. Whoever has heard the same records sees the same table. The
record also says what its owner is about: ready to receive, in the midst of the run, done with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from enum import StrEnum

from .membership import Membership
from .roster import Member, State
from .transport.base import PeerId

__all__ = ["Seats", "Stage"]

PREFIX = "seat:"
AWAY = frozenset({State.DEAD, State.LEFT})


class Stage(StrEnum):
    """What a peer is about."""

    COMING = "coming"
    """It opens its data, or wants a seat: nothing can be sent to it yet."""
    READY = "ready"
    BEGUN = "begun"
    DONE = "done"


class Seats:
    """The seats of a run as one member sees them.

    Args:
        membership: of this peer.
        run: the run's digest.
        count: n.
        offers: further services that this peer offers, kept in its record.
    """

    def __init__(self, membership: Membership, run: str, count: int, offers: Iterable[str] = ()) -> None:
        self.membership, self.run, self.count = membership, run, count
        self.offers = tuple(offers)
        self.me = membership.record.peer
        self.stage = Stage.COMING

    def table(self) -> dict[int, PeerId]:
        """Seat -> who holds it, the dead and those who left included as long as nobody else claims it."""
        return assigned(self.membership.members(), self.run, self.count)

    def holder(self, seat: int) -> PeerId | None:
        """Who holds a seat."""
        return self.table().get(seat)

    def holders(self) -> set[PeerId]:
        """Everyone who holds a seat."""
        return set(self.table().values())

    def fellows(self) -> list[PeerId]:
        """The holders of seats that are not known to be away, without this peer."""
        return [peer for peer in self.present().values() if peer != self.me]

    def seat(self, peer: PeerId) -> int | None:
        """The seat that a peer holds."""
        return next((seat for seat, who in self.table().items() if who == peer), None)

    def present(self) -> dict[int, PeerId]:
        """The seats whose holders are not known to be away."""
        members = self.membership.members()
        return {s: p for s, p in self.table().items() if p == self.me or members[p].state not in AWAY}

    def stages(self) -> dict[int, Stage]:
        """What the holder of each present seat is about."""
        members = self.membership.members()
        return {seat: stage_of(members[peer]) for seat, peer in self.present().items()}

    def away(self, seat: int) -> bool:
        """Whether nothing can be expected of a seat: nobody there, or not ready, or done."""
        return self.stages().get(seat, Stage.COMING) not in {Stage.READY, Stage.BEGUN}

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
            free = [s for s, p in sorted(table.items()) if members[p].state in AWAY]
        chosen = wished if wished in free else min(free, default=None)
        self.stage = Stage.COMING
        self._announce(chosen)
        return chosen

    def say(self, stage: Stage) -> None:
        """Tell the others what this peer is about."""
        self.stage = stage
        self._announce(claimed(self.membership.members()[self.me]))

    def _announce(self, seat: int | None) -> None:
        offers = (f"{PREFIX}{seat}", str(self.stage), *self.offers) if seat is not None else self.offers
        if offers != self.membership.record.said.offers:
            self.membership.announce(offers=offers)


def assigned(members: Mapping[PeerId, Member], run: str, count: int) -> dict[int, PeerId]:
    """The table that these members' records make."""
    claims: dict[int, list[tuple[bool, bytes, PeerId]]] = {}
    for peer, member in members.items():
        seat = claimed(member)
        if seat is not None and 0 <= seat < count:
            rank = hashlib.sha256(f"{peer}\0{run}".encode()).digest()
            claims.setdefault(seat, []).append((member.state in AWAY, rank, peer))
    return {seat: min(found)[2] for seat, found in sorted(claims.items())}


def claimed(member: Member) -> int | None:
    """The seat that a member's record claims."""
    for offer in member.record.said.offers:
        if offer.startswith(PREFIX) and offer[len(PREFIX) :].isdecimal():
            return int(offer[len(PREFIX) :][:9])
    return None


def stage_of(member: Member) -> Stage:
    """What a member's record says that it is about."""
    said = set(member.record.said.offers)
    return next((stage for stage in Stage if stage in said), Stage.COMING)
