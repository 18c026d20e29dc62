"""A replicated store that converges without anybody in charge, and that nobody can vandalise.

The state of a replica is, for each author, how far that author's signed log is known (``delta.py``); a
fork that is proved counts as later than anything, and empties that author's part. Each is a join
semilattice, hence so is the whole: merging is commutative, associative and idempotent, and replicas
that have heard the same deltas in whatever order and however often are equal (Shapiro, Preguiça,
Baquero, Zawirski, "Conflict-free replicated data types", SSS 2011).

Three types are read off the authors' tables:

- map of last writers: the entry with the greatest (Lamport clock, author) holds;
- set of observed removes, in the optimised form (Bieniusa et al. 2012): an author's element carries the
  version at which it was last added, a removal names the versions that were seen, so an addition that the
  remover had not seen survives, and there is one tombstone per (author, element) at most;
- counter that grows: the sum of what each author has counted.

A peer writes only its own table, whatever it sends. Where authors meet (one key, one set), a name
``PEERID/...`` belongs to that peer: what others write under it counts for nothing. Under a shared name a
peer can at worst win the key or remove elements, as any writer may.

Deviation from the paper: it replicates through Yrs documents. Yrs 0.26 (pycrdt 0.14) panics on about 0.3 %
of mutated updates, so bytes from strangers never reach it here; deltas are schema-checked messages.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from shoal.core import BadInput

from ..frames import Malformed, decode
from ..identity import Identity, is_peer_id
from ..transport.base import PeerId
from .delta import (
    EMPTY,
    LARGEST_TABLE,
    LARGEST_VALUE,
    Cell,
    Delta,
    Log,
    Refused,
    Signed,
    Unwanted,
    contradict,
    read,
    sign,
)
from .journal import Fork, Journal, Saved

__all__ = ["Replica", "fingerprint"]

LAST_CLOCK = 2**53
FORKED = 2**62
"""The version under which a fork is known."""
_Clock = Annotated[int, Meta(ge=1, le=LAST_CLOCK)]


class _Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    clock: _Clock
    value: bytes | None


_encode = msgspec.msgpack.Encoder().encode


def _entry(value: bytes) -> _Entry:
    return decode(value, _Entry)


def _number(value: bytes) -> int:
    return decode(value, _Clock)


class Replica:
    """One peer's copy of a store.

    Args:
        identity: who writes here.
        store: name of the store; deltas of another are refused.
        folder: where own deltas are written before anyone sees them, so that a crash makes no fork.
        authors: most authors that are held; further ones are refused.
        allow: the authors that count, or None for all.

    Attributes:
        logs: author -> log.
        forks: author -> proof.
        refused: reasons of what :meth:`hear` turned away.
    """

    def __init__(
        self,
        identity: Identity,
        store: str,
        *,
        folder: str | Path | None = None,
        authors: int = 1024,
        allow: set[PeerId] | None = None,
    ) -> None:
        self.identity, self.store, self.authors, self.allow = identity, store, authors, allow
        self.logs: dict[PeerId, Log] = {}
        self.forks: dict[PeerId, Fork] = {}
        self.refused: Counter[str] = Counter()
        self._clock = 0
        self._batch: list[Cell] | None = None
        self._journal = None if folder is None else Journal(Path(folder))
        if self._journal is not None:
            self._load(self._journal)

    # -- merging --------------------------------------------------------------------------------------

    def hear(self, signed: Signed) -> bool:
        """Take in a delta from anywhere; whether anything changed.

        Raises:
            Refused: no honest author would send it.
        """
        try:
            return self._hear(read(signed, self.store), signed)
        except Refused as why:
            self.refused[str(why)] += 1
            raise

    def hear_fork(self, fork: Fork) -> bool:
        """Take in the proof of a fork from anywhere; whether it is news.

        Raises:
            Refused: it proves nothing.
        """
        one, other = read(fork.one, self.store), read(fork.other, self.store)
        if not contradict(one, other):
            self.refused["fork that is none"] += 1
            raise Refused("fork that is none")
        return self._fork(one.author, fork)

    def merge(self, other: Replica) -> None:
        """Take in all that another replica holds."""
        deltas, forks = other.beyond(self.heads())
        for fork in forks:
            self.hear_fork(fork)
        for signed in deltas:
            self.hear(signed)

    def heads(self) -> dict[PeerId, tuple[int, bytes]]:
        """How far each author is known: version, and the first 8 bytes of the table's digest."""
        known = {author: (log.version, log.digest[:8]) for author, log in self.logs.items() if log.version}
        return known | dict.fromkeys(self.forks, (FORKED, bytes(8)))

    def beyond(self, heads: Mapping[PeerId, tuple[int, bytes]]) -> tuple[list[Signed], list[Fork]]:
        """What a replica with these heads lacks. Where it stands at this version with another table, the
        last delta is among it: together with its own that is the proof of a fork."""
        deltas: list[Signed] = []
        forks: list[Fork] = []
        for author, (version, digest) in self.heads().items():
            known, their_digest = heads.get(author, (0, b""))
            if version == FORKED and known != FORKED:
                forks.append(self.forks[author])
            elif version > known:
                deltas += self.logs[author].since(known)
            elif version == known != FORKED and digest != their_digest:
                deltas.append(self.logs[author].kept[-1][1])
        return deltas, forks

    # -- map of last writers --------------------------------------------------------------------------

    def put(self, key: str, value: bytes) -> None:
        """Write ``value`` under ``key`` (up to 300 characters, 16 KiB)."""
        if len(value) > LARGEST_VALUE:
            raise BadInput("value", f"{len(value)} bytes", f"at most {LARGEST_VALUE} bytes")
        self._clock_on()
        self._write(Cell("l", self._own(key), _encode(_Entry(self._clock, value))))

    def drop(self, key: str) -> None:
        """Delete a key, whoever wrote it last."""
        self._clock_on()
        self._write(Cell("l", self._own(key), _encode(_Entry(self._clock, None))))

    def get(self, key: str) -> bytes | None:
        """What was written last, or None."""
        return self._latest(key).value

    def keys(self, prefix: str = "") -> list[str]:
        """The keys that hold something, in order."""
        held = {k for log in self.logs.values() for k in log.table.get("l", {}) if k.startswith(prefix)}
        return sorted(k for k in held if self._latest(k).value is not None)

    def _latest(self, key: str) -> _Entry:
        found = [
            (entry.clock, author, entry)
            for author, log in self._writers(key)
            if (text := log.table.get("l", {}).get(key)) is not None
            for entry in (_entry(text),)
        ]
        return max(found, key=lambda f: f[:2])[2] if found else _Entry(1, None)

    # -- set of observed removes ----------------------------------------------------------------------

    def add(self, name: str, element: str) -> None:
        """Add an element to a set."""
        tag = self._log.version + 1
        self._write(Cell(f"a/{self._own(name)}", self._checked(element), _encode(tag)))

    def remove(self, name: str, element: str) -> None:
        """Remove an element as far as its additions are known here."""
        self._own(name)
        cells = []
        for author, log in self._writers(name):
            tag = log.table.get(f"a/{name}", {}).get(element)
            if author == self.identity.id and tag is not None:
                cells.append(Cell(f"a/{name}", element, None))
            elif tag is not None:
                cells.append(Cell(f"r/{name}", f"{author}/{element}", tag))
        if cells:
            self._write(*cells)

    def members(self, name: str) -> set[str]:
        """The elements of a set."""
        writers = list(self._writers(name))
        gone: dict[str, int] = {}
        for _, log in writers:
            for item, tag in log.table.get(f"r/{name}", {}).items():
                gone[item] = max(gone.get(item, 0), _number(tag))
        return {
            element
            for author, log in writers
            for element, tag in log.table.get(f"a/{name}", {}).items()
            if _number(tag) > gone.get(f"{author}/{element}", 0)
        }

    # -- counter that grows ---------------------------------------------------------------------------

    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter.

        Raises:
            BadInput: ``by`` is below 1, or more than 2^53 would have been counted here.
        """
        held = self._pending_count(self._own(name))
        if by < 1 or held + by > LAST_CLOCK:
            raise BadInput("by", by, "a whole number from 1 up")
        self._write(Cell("c", name, _encode(held + by)))

    def total(self, name: str) -> int:
        """What all have counted together."""
        return sum(
            _number(text)
            for _, log in self._writers(name)
            if (text := log.table.get("c", {}).get(name)) is not None
        )

    def _pending_count(self, name: str) -> int:
        for cell in reversed(self._batch or []):
            if (cell.group, cell.item) == ("c", name) and cell.value is not None:
                return _number(cell.value)
        text = self._log.table.get("c", {}).get(name)
        return 0 if text is None else _number(text)

    # -- writing --------------------------------------------------------------------------------------

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Writes inside become one signed delta, at the end; reads do not see them before."""
        if self._batch is not None:
            raise RuntimeError("batches do not nest")
        self._batch = []
        try:
            yield
            cells = self._batch
        finally:
            self._batch = None
        if cells:
            self._write(*cells)

    def _write(self, *cells: Cell) -> None:
        if self._batch is not None:
            self._batch += cells
            return
        log, me = self._log, self.identity
        if me.id in self.forks:
            raise BadInput("identity", me.id, "an author who has not forked this store (proof is held)")
        table, after, size = log.changed(cells)
        if size > LARGEST_TABLE:
            raise BadInput("value", f"{size} bytes", f"at most {LARGEST_TABLE} bytes per author in a store")
        behind = sum(signed.size for _, signed in log.kept[1:])
        since, before, said = log.version, log.digest, cells
        if not log.version or behind > size + 4096:  # a snapshot, so that what is kept stays in proportion
            since, before = 0, EMPTY
            said = tuple(Cell(g, i, v) for g in sorted(table) for i, v in sorted(table[g].items()))
        delta = Delta(self.store, me.id, since, log.version + 1, before, after, said)
        signed = sign(me, delta)
        if self._journal is not None:
            self._journal.append(signed, snapshot=since == 0)
        self._hear(delta, signed)

    def save(self) -> None:
        """Write what is known of others too (own deltas are always written first)."""
        if self._journal is not None:
            others = [log for author, log in self.logs.items() if author != self.identity.id]
            known = (signed for log in others for _, signed in log.kept)
            self._journal.save(Saved(tuple(known), tuple(self.forks.values())))

    # -- within ---------------------------------------------------------------------------------------

    @property
    def _log(self) -> Log:
        return self.logs.setdefault(self.identity.id, Log())

    def _writers(self, name: str) -> Iterator[tuple[PeerId, Log]]:
        owner = name.partition("/")[0]
        if "/" in name and is_peer_id(owner):
            return iter([(owner, self.logs[owner])] if owner in self.logs else [])
        return iter(self.logs.items())

    def _own(self, name: str) -> str:
        owner = name.partition("/")[0]
        if "/" in name and is_peer_id(owner) and owner != self.identity.id:
            raise BadInput("key", name, "a name of this peer's own, or a shared one")
        return self._checked(name)

    @staticmethod
    def _checked(text: str) -> str:
        if not 1 <= len(text) <= 300:
            raise BadInput("key", text, "1 to 300 characters")
        return text

    def _clock_on(self) -> None:
        self._clock = min(self._clock + 1, LAST_CLOCK)

    def _hear(self, delta: Delta, signed: Signed) -> bool:
        author = delta.author
        if author in self.forks:
            return False
        if self.allow is not None and author not in self.allow and author != self.identity.id:
            raise Unwanted("author is not allowed")
        for cell in delta.cells:
            _check(cell, delta.upto)
        if author not in self.logs and len(self.logs) >= self.authors:
            raise Unwanted("too many authors")
        log = self.logs.setdefault(author, Log())
        rival = log.rival(delta)
        if rival is not None:
            return self._fork(author, Fork(rival, signed))
        changed = log.take(delta, signed)
        if changed:
            for text in log.table.get("l", {}).values():
                self._clock = max(self._clock, _entry(text).clock)
            for then, its in log.ready():
                self._hear(then, its)
        return changed

    def _fork(self, author: PeerId, fork: Fork) -> bool:
        if author in self.forks or (self.allow is not None and author not in self.allow):
            return False
        if len(self.forks) >= self.authors:
            raise Unwanted("too many authors")
        self.forks[author] = fork
        self.logs.pop(author, None)
        return True

    def _load(self, journal: Journal) -> None:
        saved = journal.load()
        try:
            for signed in journal.own():
                self.hear(signed)
            for fork in saved.forks:
                self.hear_fork(fork)
            for signed in saved.deltas:
                self.hear(signed)
        except Refused as error:
            raise BadInput("folder", str(journal.folder), f"what this store saved ({error})") from None


def _check(cell: Cell, upto: int) -> None:
    """Refuse a cell that no replica writes, so that reading never fails."""
    kind, slash, _ = cell.group.partition("/")
    try:
        if cell.group == "l" and cell.value is not None:
            _entry(cell.value)
        elif cell.group == "c" and cell.value is not None:
            _number(cell.value)
        elif slash and kind in {"a", "r"}:
            if cell.value is not None and _number(cell.value) > upto and kind == "a":
                raise Refused("malformed cell")
        elif cell.group not in {"l", "c"}:
            raise Refused("malformed cell")
    except Malformed:
        raise Refused("malformed cell") from None


def fingerprint(replica: Replica) -> bytes:
    """A hash of all that a replica's state is: equal where replicas are equal."""
    logs = sorted((author, log.version, log.digest) for author, log in replica.logs.items() if log.version)
    return hashlib.sha256(_encode([logs, sorted(replica.forks)])).digest()
