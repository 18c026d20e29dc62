"""What lies in the hash table: signed entries, and the shelf of one holder.

An entry lies under (key, publisher, subkey), so nobody can overwrite another's, and lives for at most its
stated lifetime on the holder's own monotonic clock. A greater sequence number replaces a lesser one.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable
from typing import Annotated

import msgspec
from msgspec import Meta

from shoal.core import BadInput

from ..frames import Malformed, decode, encode
from ..identity import Identity, verify
from ..transport.base import PeerId

__all__ = ["Digest", "Entry", "Sequence", "Shelf", "SignedEntry", "key_of", "open_entry", "sign_entry"]

PURPOSE = "dht"
MOST_PER_KEY, MOST_PER_PUBLISHER, MOST = 128, 512, 1 << 14
LONGEST_S = 48 * 3600.0
LAST_SEQUENCE = 2**62

Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
Key = Annotated[str, Meta(min_length=64, max_length=64)]
Sequence = Annotated[int, Meta(ge=0, le=LAST_SEQUENCE)]


class Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a publisher says about a key.

    Args:
        key: 32 bytes, see :func:`key_of`.
        publisher: its public key.
        subkey: for more than one entry of a publisher under a key.
        sequence: a greater one replaces a lesser.
        lifetime_s: seconds that it lives where it lies, unless it is stored again.
        value: up to 1 KiB.
    """

    key: Digest
    publisher: Key
    subkey: Annotated[str, Meta(max_length=64)]
    sequence: Sequence
    lifetime_s: Annotated[float, Meta(gt=0, le=LONGEST_S)]
    value: Annotated[bytes, Meta(max_length=1024)]


class SignedEntry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An entry as it travels: the very bytes that were signed, and the signature."""

    payload: Annotated[bytes, Meta(max_length=1400)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


def key_of(*parts: str | bytes) -> bytes:
    """The key of something named by these parts."""
    found = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        found.update(len(data).to_bytes(4, "big") + data)
    return found.digest()


def sign_entry(identity: Identity, entry: Entry) -> SignedEntry:
    """The publisher's signature on it.

    Raises:
        BadInput: other peers would not accept it.
    """
    payload = encode(entry)
    try:
        decode(payload, Entry)
    except Malformed as error:
        raise BadInput("entry", entry.subkey or entry.lifetime_s, str(error)) from None
    return SignedEntry(payload, identity.sign(PURPOSE, payload))


def open_entry(signed: SignedEntry) -> Entry | None:
    """The entry, or None where it is malformed or its publisher did not sign it."""
    try:
        entry = decode(signed.payload, Entry)
    except Malformed:
        return None
    return entry if verify(entry.publisher, PURPOSE, signed.payload, signed.signature) else None


class Shelf:
    """The entries that lie at this peer.

    Args:
        clock: this process's monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held: dict[bytes, dict[tuple[PeerId, str], tuple[Entry, SignedEntry, float]]] = {}
        self._by: Counter[PeerId] = Counter()

    def __len__(self) -> int:
        return self._by.total()

    def put(self, entry: Entry, signed: SignedEntry) -> tuple[bool, int]:
        """Keep an entry whose signature was checked; whether it was, and the sequence number held."""
        self.expire(entry.key)
        held = self._held.get(entry.key, {})
        slot = entry.publisher, entry.subkey
        old = held.get(slot)
        if old is not None:
            if entry.sequence < old[0].sequence or (entry.sequence == old[0].sequence and entry != old[0]):
                return False, old[0].sequence
        elif len(held) >= MOST_PER_KEY or self._by[entry.publisher] >= MOST_PER_PUBLISHER or self._full():
            return False, 0
        else:
            self._by[entry.publisher] += 1
        self._held.setdefault(entry.key, {})[slot] = entry, signed, self._clock() + entry.lifetime_s
        return True, entry.sequence

    def get(self, key: bytes) -> list[SignedEntry]:
        """The entries of a key that have not expired, in no order that matters."""
        self.expire(key)
        return [signed for _, signed, _ in self._held.get(key, {}).values()]

    def expire(self, *keys: bytes) -> None:
        """Let go of what has outlived its lifetime (of these keys, or of all)."""
        now = self._clock()
        for key in keys or tuple(self._held):
            held = self._held.get(key, {})
            for slot in [slot for slot, (_, _, until) in held.items() if until <= now]:
                del held[slot]
                self._by[slot[0]] -= 1
                if not self._by[slot[0]]:
                    del self._by[slot[0]]
            if not held:
                self._held.pop(key, None)

    def _full(self) -> bool:
        if len(self) >= MOST:
            self.expire()
        return len(self) >= MOST
