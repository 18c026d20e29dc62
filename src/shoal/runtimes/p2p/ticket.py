"""An invitation: which run, who invites, and where to find them, as one line of text to pass on.

``shoal1`` then base 32 (lower case, no padding) of a checksum and the MessagePack of the ticket. The
text survives a phone or a chat: case and white space do not matter, and a mistyped letter is noticed
(32 bits of BLAKE2b). A ticket is no secret and gives no rights: the inviter's key is proved when it
is dialled, and who may take part is the allow-list's matter.

A bare address with a key, ``PEERID@tcp://HOST:PORT[,ADDRESS...]``, is accepted wherever a ticket is.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Annotated

import msgspec
from msgspec import Meta

from shoal.core import BadInput

from .identity import is_peer_id
from .records import RunId, Text
from .transport.base import Address, PeerId

__all__ = ["Ticket", "parse"]

PREFIX = "shoal1"
LONGEST = 8192
CHECKSUM = 4
_ADDRESS = re.compile(r"[a-z][a-z0-9+]{0,15}://[^\s,@]{1,180}")


class _Packed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    run: RunId
    peer: Annotated[bytes, Meta(min_length=32, max_length=32)]
    addresses: Annotated[tuple[Text, ...], Meta(max_length=16)]


class Ticket(msgspec.Struct, frozen=True):
    """Where to begin.

    Args:
        peer: the inviter's public key.
        addresses: where the inviter may be reached, best first.
        run: the run's digest; empty where only an address was given, and the run is not checked.
    """

    peer: PeerId
    addresses: tuple[Address, ...]
    run: str = ""

    def __str__(self) -> str:
        packed = msgspec.msgpack.encode(_Packed(self.run, bytes.fromhex(self.peer), self.addresses))
        return PREFIX + base64.b32encode(_checksum(packed) + packed).decode().rstrip("=").lower()


def parse(text: str, *, run: str | None = None, field: str = "join") -> Ticket:
    """A ticket, or ``PEERID@ADDRESS[,ADDRESS...]``, from its text.

    Args:
        text: as a person pasted it.
        run: where given, the run that the ticket must invite to.
        field: named in the error.

    Raises:
        BadInput: it is neither, is damaged, or invites to another run.
    """
    if len(text) > LONGEST:
        raise BadInput(field, text, f"a ticket of at most {LONGEST} characters")
    text = "".join(text.split())
    ticket = _plain(text, field) if "@" in text else _packed(text, field)
    if not is_peer_id(ticket.peer):
        raise BadInput(field, ticket.peer, "a peer's key of 64 lower-case hexadecimal digits")
    for address in ticket.addresses:
        if not _ADDRESS.fullmatch(address) or not address.isprintable():
            raise BadInput(field, address, "addresses such as tcp://HOST:PORT, separated by commas")
    if run is not None and ticket.run and ticket.run != run:
        raise BadInput(field, ticket.run, f"a ticket for this run ({run}): the configurations differ")
    return ticket


def _plain(text: str, field: str) -> Ticket:
    peer, _, addresses = text.partition("@")
    found = tuple(address for address in addresses.split(",") if address)
    if not 1 <= len(found) <= 16:
        raise BadInput(field, text, "PEERID@ADDRESS with 1 to 16 addresses separated by commas")
    return Ticket(peer, found)


def _packed(text: str, field: str) -> Ticket:
    body = text.lower()
    if not body.startswith(PREFIX):
        raise BadInput(field, text, f"a ticket (it begins with {PREFIX}) or PEERID@ADDRESS")
    body = body.removeprefix(PREFIX).upper()
    try:
        data = base64.b32decode(body + "=" * (-len(body) % 8))
        if data[:CHECKSUM] != _checksum(data[CHECKSUM:]):
            raise BadInput(
                field, text, "an undamaged ticket: its checksum does not agree (mistyped or cut?)"
            )
        packed = msgspec.msgpack.decode(data[CHECKSUM:], type=_Packed)
    except (binascii.Error, ValueError, msgspec.DecodeError) as error:
        raise BadInput(
            field, text, "an undamaged ticket: it has letters or a length that none has"
        ) from error
    return Ticket(packed.peer.hex(), packed.addresses, packed.run)


def _checksum(data: bytes) -> bytes:
    return hashlib.blake2b(PREFIX.encode() + data, digest_size=CHECKSUM).digest()
