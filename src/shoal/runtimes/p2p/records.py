"""What a peer says about itself, signed: where it can be reached, under which number, whether it left.

A record carries its owner's **sequence number**, which only the owner can advance, since only the
owner can sign. It is also the peer's incarnation in the sense of SWIM (Das, Gupta, Motivala, DSN 2002):
a newer record is proof that its owner was there after the older one was doubted. Records of one peer are
totally ordered by (sequence, bytes), and keeping the greatest is a join (commutative, associative,
idempotent), so that peers who have heard the same records in any order hold the same one. Two records
of one peer with one number are an equivocation; the order still settles which of them is kept.

A record belongs to one run: it is worth nothing in another. Clocks are never compared.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from shoal.core import BadInput, ShoalError

from .identity import Identity, is_peer_id, verify
from .transport.base import Address, PeerId

__all__ = ["PeerRecord", "Record", "RefusedRecord", "SignedRecord", "newest", "read", "sign"]

PURPOSE = "record"
LAST_SEQUENCE = 2**62

RunId = Annotated[str, Meta(max_length=64)]
Text = Annotated[str, Meta(max_length=200)]
Key = Annotated[str, Meta(min_length=64, max_length=64)]
Sequence = Annotated[int, Meta(ge=1, le=LAST_SEQUENCE)]


class RefusedRecord(ShoalError):
    """A record that is not what its owner signed for this run. Its text is the reason to count."""


class PeerRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A peer's statement about itself.

    Args:
        peer: its public key.
        run: the run that it takes part in (the digest of its configuration).
        sequence: grows with every statement; also the peer's incarnation.
        addresses: where it may be reached, best first.
        name: what a person calls it.
        offers: services that it does for others, such as ``"relay"``.
        left: it has gone on purpose.
    """

    peer: Key
    run: RunId
    sequence: Sequence
    addresses: Annotated[tuple[Text, ...], Meta(max_length=16)] = ()
    name: Annotated[str, Meta(max_length=64)] = ""
    offers: Annotated[tuple[Annotated[str, Meta(max_length=32)], ...], Meta(max_length=8)] = ()
    left: bool = False


class SignedRecord(msgspec.Struct, frozen=True, array_like=True):
    """A record as it travels: the very bytes that were signed, and the signature."""

    payload: Annotated[bytes, Meta(max_length=4096)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


class Record(msgspec.Struct, frozen=True):
    """A record whose signature has been checked: what it says, and how it travels."""

    said: PeerRecord
    signed: SignedRecord

    @property
    def peer(self) -> PeerId:
        return self.said.peer

    @property
    def sequence(self) -> int:
        return self.said.sequence

    @property
    def addresses(self) -> tuple[Address, ...]:
        return self.said.addresses

    @property
    def rank(self) -> tuple[int, bytes]:
        """Records of one peer are ordered by this."""
        return self.said.sequence, self.signed.payload


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(PeerRecord).decode


def sign(identity: Identity, said: PeerRecord) -> Record:
    """The owner's signed record.

    Raises:
        BadInput: a field is longer or larger than other peers accept, or not printable.
    """
    payload = _encode(said)
    try:
        if said.peer != identity.id:
            raise RefusedRecord("not the signer's own record")
        _well_formed(_decode(payload))
    except (msgspec.ValidationError, RefusedRecord) as error:
        raise BadInput("peer", said.name or said.addresses, str(error)) from error
    return Record(said, SignedRecord(payload, identity.sign(PURPOSE, payload)))


def read(signed: SignedRecord, run: str, known: Record | None = None) -> Record:
    """Check a record that arrived from anywhere.

    Args:
        signed: as it arrived.
        run: the run that it must belong to.
        known: a checked record that is returned, unchecked again, where the bytes are the same.

    Raises:
        RefusedRecord: it is malformed, of another run, or not signed by the peer it is about.
    """
    if known is not None and known.signed == signed:
        return known
    said = glance(signed)
    _well_formed(said)
    if said.run != run:
        raise RefusedRecord("record of another run")
    if not verify(said.peer, PURPOSE, signed.payload, signed.signature):
        raise RefusedRecord("forged record")
    return Record(said, signed)


def glance(signed: SignedRecord) -> PeerRecord:
    """What a record claims, unchecked: enough to look up whether it would be news.

    Raises:
        RefusedRecord: it is malformed.
    """
    try:
        return _decode(signed.payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise RefusedRecord("malformed record") from None


def newest(first: Record, second: Record) -> Record:
    """The greater of two records of one peer: a join.

    Raises:
        ValueError: they are of different peers.
    """
    if first.peer != second.peer:
        raise ValueError("records of different peers have no order")
    return max(first, second, key=lambda record: record.rank)


def _well_formed(said: PeerRecord) -> None:
    # What is printed in a terminal must not be able to steer it.
    if not is_peer_id(said.peer):
        raise RefusedRecord("malformed record")
    if not all(text.isprintable() for text in (said.run, said.name, *said.addresses, *said.offers)):
        raise RefusedRecord("malformed record")
