"""Signed changes of one author's part of a replicated store, and the log that they make.

An author's part is a table of cells ``(group, item) -> value``. Each change is a *delta*: the cells that
it sets or clears, the version that it starts from and the one that it leads to, and the digest of the
whole table before and after. The author signs it; anybody may pass it on. A delta that starts from
version 0 (nothing) is a *snapshot*: it replaces the table, so a log stays short.

The digests make two things true. Replicas at one version with one digest hold the same cells, whatever
way the deltas took. And an author who signs two different tables under one version (a fork) has signed
the proof of it: two deltas that state different digests for a version, which anybody can check.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Annotated

import msgspec
from msgspec import Meta

from shoal.core import BadInput, ShoalError

from ..frames import Malformed, decode
from ..identity import Identity, verify

__all__ = [
    "Cell",
    "Delta",
    "Log",
    "LARGEST_TABLE",
    "LARGEST_VALUE",
    "Refused",
    "Signed",
    "contradict",
    "read",
    "Unwanted",
    "sign",
]

PURPOSE = "delta"
MOST_CELLS = 1 << 14
LARGEST_TABLE = 3 << 17
"""Bytes that one author may hold."""
LARGEST_DELTA = 1 << 19
LARGEST_VALUE = 1 << 14
LAST_VERSION = 2**53
WAITING = 1 << 20

Bytes32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
Version = Annotated[int, Meta(ge=0, le=LAST_VERSION)]
Table = dict[str, dict[str, bytes]]
START = b"shoal/table\0"
EMPTY = hashlib.sha256(START).digest()


class Refused(ShoalError):
    """A delta that is not what an honest author sends. Its text is the reason to count."""


class Unwanted(Refused):
    """A delta that this replica has no room for: no fault of the author or of who passed it on."""


class Cell(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One cell set to ``value``, or cleared (None)."""

    group: Annotated[str, Meta(min_length=1, max_length=320)]
    item: Annotated[str, Meta(max_length=640)]
    value: Annotated[bytes, Meta(max_length=LARGEST_VALUE + 16)] | None


class Delta(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What an author says.

    Args:
        store: which store it belongs to.
        author: its public key.
        since, upto: the versions that it leads from and to; ``since`` 0 is a snapshot.
        before, after: SHA-256 of the table at these versions.
        cells: what changes; in a snapshot: the whole table.
    """

    store: Annotated[str, Meta(max_length=64)]
    author: Annotated[str, Meta(min_length=64, max_length=64)]
    since: Version
    upto: Version
    before: Bytes32
    after: Bytes32
    cells: Annotated[tuple[Cell, ...], Meta(max_length=MOST_CELLS)]


class Signed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A delta as it travels: the very bytes that were signed, and the signature."""

    payload: Annotated[bytes, Meta(max_length=LARGEST_DELTA)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]

    @property
    def size(self) -> int:
        """Bytes on the wire, about."""
        return len(self.payload) + 80


_encode = msgspec.msgpack.Encoder().encode


def sign(identity: Identity, delta: Delta) -> Signed:
    """The author's own signature on it.

    Raises:
        BadInput: other peers would not accept it (too many cells).
    """
    payload = _encode(delta)
    try:
        decode(payload, Delta)
    except Malformed as error:
        raise BadInput("delta", f"{len(delta.cells)} cells", str(error)) from None
    return Signed(payload, identity.sign(PURPOSE, payload))


def read(signed: Signed, store: str) -> Delta:
    """Check a delta that arrived from anywhere.

    Raises:
        Refused: malformed, of another store, or not signed by its author.
    """
    try:
        delta = decode(signed.payload, Delta)
    except Malformed:
        raise Refused("malformed delta") from None
    if delta.store != store:
        raise Refused("delta of another store")
    if delta.upto <= delta.since or (delta.since == 0 and delta.before != EMPTY):
        raise Refused("delta that leads nowhere")
    if not verify(delta.author, PURPOSE, signed.payload, signed.signature):
        raise Refused("unsigned delta")
    return delta


def contradict(a: Delta, b: Delta) -> bool:
    """Whether one author has signed two different tables under one version."""
    said = {a.upto: a.after} | ({a.since: a.before} if a.since else {})
    return a.author == b.author and any(
        said.get(version, digest) != digest
        for version, digest in ((b.since, b.before), (b.upto, b.after))
        if version
    )


class Log:
    """One author's table, and the signed deltas that lead to it from nothing.

    Attributes:
        version, digest, size: where it stands, and the bytes of the table.
        table: group -> item -> value.
        kept: the deltas since the last snapshot, that one included, in order.
    """

    def __init__(self) -> None:
        self.version, self.digest, self.size = 0, EMPTY, 0
        self.table: Table = {}
        self.kept: list[tuple[Delta, Signed]] = []
        self._waiting: dict[tuple[int, int, bytes], tuple[Delta, Signed]] = {}

    def rival(self, delta: Delta) -> Signed | None:
        """A delta held here that contradicts this one."""
        for known, signed in self.kept:
            if contradict(known, delta):
                return signed
        return None

    def take(self, delta: Delta, signed: Signed) -> bool:
        """Apply a checked delta that contradicts none; whether the table changed.

        One that starts beyond this version waits for those before it (``WAITING`` bytes of them do).

        Raises:
            Refused: its table is not the one that it states, or is too large.
        """
        if delta.upto <= self.version:
            return False
        if delta.since and delta.since != self.version:
            waiting = sum(its.size for _, its in self._waiting.values())
            if delta.since > self.version and waiting + signed.size <= WAITING:
                self._waiting[delta.since, delta.upto, delta.after] = delta, signed
            return False
        table, after, size = self.changed(delta.cells, whole=delta.since == 0)
        if after != delta.after:
            raise Refused("delta whose table is not the one it states")
        if size > LARGEST_TABLE:
            raise Refused("author holds too much")
        if delta.since == 0:
            self.kept.clear()
        self.table, self.digest, self.version, self.size = table, after, delta.upto, size
        self.kept.append((delta, signed))
        return True

    def ready(self) -> list[tuple[Delta, Signed]]:
        """Those that have waited long enough; they wait no more."""
        keys = [key for key in sorted(self._waiting) if key[0] <= self.version]
        return [self._waiting.pop(key) for key in keys]

    def changed(self, cells: Iterable[Cell], whole: bool = False) -> tuple[Table, bytes, int]:
        """The table with these cells changed (or of these cells alone), its digest and its size."""
        table = {} if whole else {group: dict(items) for group, items in self.table.items()}
        for cell in cells:
            items = table.setdefault(cell.group, {})
            if cell.value is None:
                items.pop(cell.item, None)
            else:
                items[cell.item] = cell.value
        table = {group: items for group, items in table.items() if items}
        return table, *_digest(table)

    def cells(self) -> tuple[Cell, ...]:
        """The whole table, in order."""
        return tuple(ordered(self.table))

    def since(self, version: int) -> list[Signed]:
        """What leads a replica at ``version`` to this one: deltas, or a snapshot and what follows."""
        if version >= self.version:
            return []
        start = next((i for i, (delta, _) in enumerate(self.kept) if delta.since == version), 0)
        return [signed for _, signed in self.kept[start:]]


def _digest(table: Table) -> tuple[bytes, int]:
    """SHA-256 of a table, independent of the order in which it came about, and its bytes."""
    found, size = hashlib.sha256(START), 0
    for cell in ordered(table):
        text = _encode(cell)
        size += len(text)
        found.update(text)
    return found.digest(), size


def ordered(table: Table) -> Iterator[Cell]:
    for group in sorted(table):
        for item in sorted(table[group]):
            yield Cell(group, item, table[group][item])
