"""What one peer believes about the others: records, states, and the rumours worth passing on.

The table behind :mod:`.membership`, without any I/O. Time is counted in protocol periods by
:meth:`Roster.tick`. The states follow SWIM (Das, Gupta, Motivala, DSN 2002) with two deviations, because
here a peer may lie:

- *Nobody is believed about a third peer's death.* A doubt that arrives as a rumour only says whom to
  probe; a member becomes suspect, and after ``patience`` periods dead, by this peer's own failed probes.
- A member is cleared by what only it can produce: an answer to a probe (:meth:`Roster.contact`) or a
  newer signed record. It signs one when it hears that its present one is doubted, so its incarnation
  moves by its own hand alone, and at most once a period however many doubts are sent.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from .gossip import FRAME, Doubt, Gossip, Kind, Rumours
from .identity import Identity
from .records import (
    LAST_SEQUENCE,
    PeerRecord,
    Record,
    RefusedRecord,
    SignedRecord,
    glance,
    newest,
    read,
    sign,
)
from .transport.base import Address, PeerId

__all__ = ["Member", "Roster", "State"]

BURST = 8  # records that a member may publish at once; two a period, twice what an honest one may need


class State(StrEnum):
    """What is believed of a member."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"
    LEFT = "left"


class Member(msgspec.Struct, frozen=True):
    """One row of the table."""

    state: State
    record: Record

    @property
    def incarnation(self) -> int:
        """The record's sequence number: the owner's alone to advance."""
        return self.record.sequence


@dataclass
class _Entry:
    record: Record
    state: State = State.ALIVE
    since: int = 0  # the period in which the state began
    proved: bool = False  # it has answered, or called, itself
    credit: float = BURST  # records that it may still publish now


class Roster:
    """The table of one peer.

    Args:
        identity: of this peer.
        said: what this peer says about itself; its sequence number is where counting starts.
        refuse: called with (peer, reason) for what a peer should not have sent.
        learn: called with (peer, addresses) for each record that is accepted.
        allow: the keys that may take part; None for everyone.
        capacity: the most other peers kept.
        draw: chooses evictions and order; seed it to repeat a test.

    Attributes:
        changed: members whose state or record changed, for its reader to empty; ``news`` is set then.
        rumours: what is to be passed on.
        ignored: counts what arrived, was harmless and changed nothing.
    """

    def __init__(
        self,
        identity: Identity,
        said: PeerRecord,
        *,
        refuse: Callable[[PeerId, str], None],
        learn: Callable[[PeerId, tuple[Address, ...]], None],
        allow: Iterable[PeerId] | None = None,
        capacity: int = 256,
        draw: random.Random | None = None,
    ) -> None:
        self._identity, self._refuse, self._learn = identity, refuse, learn
        self.allow = None if allow is None else frozenset(allow)
        self.capacity = capacity
        self.draw = draw or random.Random()
        self.own = sign(identity, said)
        self.clock = 0
        self.ignored: Counter[str] = Counter()
        self.changed: dict[PeerId, None] = {}
        self.news = asyncio.Event()
        self._table: dict[PeerId, _Entry] = {}
        self.rumours = Rumours(self.draw)
        self.rumours.add("record", identity.id)
        self._doubt_credit: dict[PeerId, float] = {}
        self._doubted = self._spoke = False

    # -- looking --------------------------------------------------------------------------------------

    def members(self) -> dict[PeerId, Member]:
        """Everyone known, this peer too, by key in ascending order."""
        me = State.LEFT if self.own.said.left else State.ALIVE
        rows = {self._identity.id: Member(me, self.own)}
        rows |= {peer: Member(entry.state, entry.record) for peer, entry in self._table.items()}
        return dict(sorted(rows.items()))

    def get(self, peer: PeerId) -> Member | None:
        """What is believed of another peer; None where nothing is known."""
        entry = self._table.get(peer)
        return None if entry is None else Member(entry.state, entry.record)

    def those(self, *states: State) -> list[PeerId]:
        """The other peers in these states, in ascending order."""
        return sorted(peer for peer, entry in self._table.items() if entry.state in states)

    @property
    def spread(self) -> int:
        """ceil(log2(n + 1)): the periods in which a rumour reaches about everyone."""
        here = sum(entry.state in {State.ALIVE, State.SUSPECT} for entry in self._table.values())
        return math.ceil(math.log2(here + 2))

    @property
    def patience(self) -> int:
        """Periods between a suspicion and death: time for the doubt to spread and its answer to return."""
        return 3 + 2 * self.spread

    # -- the own record -------------------------------------------------------------------------------

    def speak(self, *, above: int = 0, **changes: object) -> None:
        """Sign a newer record of this peer, with a number beyond the present one and ``above``."""
        sequence = max(self.own.sequence, above) + 1
        said = msgspec.structs.replace(self.own.said, sequence=sequence, **changes)
        self.own = sign(self._identity, said)
        self._spoke, self._doubted = True, False
        self.rumours.add("record", self.own.peer)

    # -- what arrives ---------------------------------------------------------------------------------

    def hear(self, signed: SignedRecord, sender: PeerId) -> bool:
        """Take in a record, whoever passed it on; whether it was news. Whatever is wrong is counted."""
        try:
            claim = glance(signed)
            if claim.peer == self.own.peer:
                return self._hear_own(signed)
            entry = self._table.get(claim.peer)
            known = entry.record if entry else None
            if known is not None and claim.sequence < known.sequence:
                self.ignored["old record"] += 1
                self.rumours.remind("record", known.peer, 3 * self.spread)
                return False
            record = read(signed, self.own.said.run, known)
        except RefusedRecord as error:
            self._refuse(sender, str(error))
            return False
        if known is record:
            return False
        if self.allow is not None and record.peer not in self.allow:
            self._refuse(record.peer, "not on the allow-list")
            return False
        if known is not None and known.sequence == record.sequence:
            self._refuse(record.peer, "equivocation")
            if newest(known, record) is known:
                return False
        return self._accept(record, entry, direct=sender == record.peer)

    def _accept(self, record: Record, entry: _Entry | None, *, direct: bool) -> bool:
        if entry is None:
            if record.said.left:
                return False
            if not self._make_room(direct):
                self.ignored["no room"] += 1
                return False
            entry = self._table[record.peer] = _Entry(record, since=self.clock)
        elif entry.credit < 1:
            self._refuse(record.peer, "too many records")
            return False
        elif record.sequence > entry.record.sequence:
            # Signed after the doubt, so it refutes it. An equal number refutes nothing.
            self._become(entry, State.LEFT if record.said.left else State.ALIVE)
        entry.record = record
        entry.credit -= 1
        self._learn(record.peer, record.addresses)
        self.rumours.add("record", record.peer)
        self._change(record.peer)
        return True

    def _hear_own(self, signed: SignedRecord) -> bool:
        record = read(signed, self.own.said.run, self.own)
        if record.rank <= self.own.rank or record.sequence >= LAST_SEQUENCE:
            return False
        # Of an earlier life whose state was lost, or somebody else holds this key: go beyond it.
        self.ignored["own newer record"] += 1
        if not self._spoke:
            self.speak(above=record.sequence)
        return True

    def heed(self, doubt: Doubt, sender: PeerId) -> bool:
        """Take in a doubt; whether the member should be probed because of it."""
        if doubt.peer == self.own.peer:
            self._doubted |= doubt.sequence == self.own.sequence
            if self._doubted and not self._spoke and not self.own.said.left:
                self.speak()
            return False
        entry = self._table.get(doubt.peer)
        if entry is None or entry.state is not State.ALIVE or doubt.sequence > entry.record.sequence:
            return False
        if doubt.sequence < entry.record.sequence:
            self.rumours.remind("record", doubt.peer, 3 * self.spread)
            return False
        credit = self._doubt_credit.get(sender, float(len(self._table)))
        if credit < 1:
            self.ignored["doubt beyond credit"] += 1
            return False
        self._doubt_credit[sender] = credit - 1
        return True

    def meet(self, peer: PeerId, signed: SignedRecord) -> tuple[State | None, int]:
        """The peer itself spoke, over a connection that proved its key, and showed its own record.

        Returns:
            What was believed of it before, and the number of its record by its own account.
        """
        before = self.get(peer)
        state = None if before is None else before.state
        try:
            claim = glance(signed)
            if claim.peer != peer:
                raise RefusedRecord("not the sender's own record")
        except RefusedRecord as error:
            self._refuse(peer, str(error))
            return state, LAST_SEQUENCE
        self.hear(signed, peer)
        self.contact(peer)
        return state, claim.sequence

    # -- first-hand evidence --------------------------------------------------------------------------

    def contact(self, peer: PeerId) -> bool:
        """The member itself answered or called; whether it had been suspect or dead."""
        entry = self._table.get(peer)
        if entry is None:
            return False
        entry.proved = True
        if entry.state not in {State.SUSPECT, State.DEAD}:
            return False
        self._become(entry, State.ALIVE)
        return True

    def fail(self, peer: PeerId, sequence: int) -> None:
        """A probe of the member, directly and through others, found nothing."""
        entry = self._table.get(peer)
        if entry is not None and entry.state is State.ALIVE and entry.record.sequence == sequence:
            self._become(entry, State.SUSPECT)
            self.rumours.add("doubt", peer)

    def tick(self) -> None:
        """A protocol period has passed."""
        self.clock += 1
        self._spoke = False
        if self._doubted and not self.own.said.left:
            self.speak()
        for peer, entry in self._table.items():
            entry.credit = min(BURST, entry.credit + 2)
            if entry.state is State.SUSPECT and self.clock - entry.since >= self.patience:
                self._become(entry, State.DEAD)
                self.rumours.add("doubt", peer)
        size = len(self._table)
        refilled = {peer: credit + 1 + size / 16 for peer, credit in self._doubt_credit.items()}
        self._doubt_credit = {peer: credit for peer, credit in refilled.items() if credit < size}

    # -- what is passed on ----------------------------------------------------------------------------

    def gossip(self, about: PeerId, sequence: int = LAST_SEQUENCE, *, doubted: bool = False) -> Gossip:
        """What to tell a member now.

        Args:
            about: to whom this is said; it hears first of all that it is doubted, so that it can refute.
            sequence: its record's number by its own account; where ours is newer, it gets ours back
                (it lost its state).
            doubted: somebody else doubts it.
        """
        first, entry = Gossip(), self._table.get(about)
        if entry is not None:
            newer = entry.record.sequence > sequence
            doubted |= entry.state in {State.SUSPECT, State.DEAD}
            first = Gossip(
                (entry.record.signed,) if newer else (),
                (Doubt(about, entry.record.sequence),) if doubted else (),
            )
        return self.rumours.pick(3 * self.spread, self._content, first)

    def _content(self, kind: Kind, peer: PeerId) -> SignedRecord | Doubt | None:
        if peer == self.own.peer:
            return self.own.signed
        entry = self._table.get(peer)
        if entry is None:
            return None
        if kind == "record":
            return entry.record.signed
        return Doubt(peer, entry.record.sequence) if entry.state in {State.SUSPECT, State.DEAD} else None

    def doubts(self, most: int) -> tuple[Doubt, ...]:
        """Of all whom this peer cannot reach, for a peer that may know better."""
        lost = self.those(State.SUSPECT, State.DEAD)
        chosen = lost if len(lost) <= most else self.draw.sample(lost, most)
        return tuple(Doubt(peer, self._table[peer].record.sequence) for peer in chosen)

    def lacking(self, have: Mapping[PeerId, int], most: int) -> tuple[PeerId, ...]:
        """Of whom somebody with digest ``have`` holds a record that would be news here."""
        room = len(self._table) < self.capacity
        mine = self.digest() | {self.own.peer: self.own.sequence}
        news = (
            peer
            for peer, sequence in have.items()
            if sequence > mine.get(peer, 0)
            and (peer in mine or room)
            and (self.allow is None or peer in self.allow or peer == self.own.peer)
        )
        return tuple(itertools.islice(news, most))

    def digest(self) -> dict[PeerId, int]:
        """Key and record number of everyone known."""
        return {peer: entry.record.sequence for peer, entry in self._table.items()}

    def newer(self, have: Mapping[PeerId, int], most: int, size: int) -> tuple[SignedRecord, ...]:
        """Records that somebody with digest ``have`` lacks, at most so many and so many bytes.

        Of the dead and the gone only those that it knows in an older state.
        """
        gone = set(self.those(State.DEAD, State.LEFT)) - have.keys()
        lack = [
            peer
            for peer, entry in self._table.items()
            if entry.record.sequence > have.get(peer, 0) and peer not in gone
        ]
        return self.records(self.draw.sample(lack, len(lack)), most, size)

    def records(self, peers: Iterable[PeerId], most: int, size: int) -> tuple[SignedRecord, ...]:
        """The records of these peers, as far as known, at most so many and so many bytes."""
        found: list[SignedRecord] = []
        for peer in peers:
            entry = self._table.get(peer)
            if entry is None:
                continue
            size -= len(entry.record.signed.payload) + FRAME
            if size < 0 or len(found) == most:
                break
            found.append(entry.record.signed)
        return tuple(found)

    # -- within ---------------------------------------------------------------------------------------

    def _become(self, entry: _Entry, state: State) -> None:
        if entry.state is not state:
            entry.state, entry.since = state, self.clock
            self._change(entry.record.peer)

    def _change(self, peer: PeerId) -> None:
        self.changed[peer] = None
        self.news.set()

    def _make_room(self, direct: bool) -> bool:
        """Room for one more: the longest gone give way, then, to one who calls itself, mere hearsay."""
        if len(self._table) < self.capacity:
            return True
        gone = [peer for peer, entry in self._table.items() if entry.state in {State.DEAD, State.LEFT}]
        hearsay = [peer for peer, entry in self._table.items() if not entry.proved] if direct else []
        if gone:
            out = min(gone, key=lambda peer: (self._table[peer].since, peer))
        elif hearsay:
            out = self.draw.choice(sorted(hearsay))
        else:
            return False
        del self._table[out]
        self._change(out)
        return True
