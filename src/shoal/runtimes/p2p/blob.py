"""What is said about blobs on their way (see :mod:`.transfer`), and the tag that they are known by."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from shoal.core import need

__all__ = [
    "NO_SECRET",
    "PIECE",
    "SECRET",
    "SMALL",
    "Answer",
    "Claim",
    "Offer",
    "Tagger",
    "Verdict",
    "Whole",
]

SMALL = 1 << 16  # bytes that go in one call
PIECE = 1 << 18  # bytes written or read at a time
SECRET = TAG = 16

Key = Annotated[bytes, Meta(min_length=1, max_length=128)]
Tag = Annotated[bytes, Meta(min_length=TAG, max_length=TAG)]
Secret = Annotated[bytes, Meta(min_length=SECRET, max_length=SECRET)]
Size = Annotated[int, Meta(ge=0, le=2**48)]


class Answer(enum.IntEnum):
    """What the receiver says."""

    GO = 0
    DONE = 1
    HAVE = 2
    WAIT = 3
    NO = 4
    CONFLICT = 5
    DAMAGED = 6


class Whole(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A small blob."""

    key: Key
    data: Annotated[bytes, Meta(max_length=SMALL)]


class Offer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A large one."""

    key: Key
    size: Size


class Claim(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """That the blob which the receiver has is the one meant."""

    tag: Tag


class Verdict(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Of the receiver. ``offset``: bytes that it holds. ``secret``: under which the tag is made; all
    zeros: it wants none."""

    answer: Answer
    offset: Size = 0
    secret: Secret = bytes(SECRET)


NO_SECRET = bytes(SECRET)
"""Says that the receiver asks for no tag."""


class Tagger:
    """AES-128-GMAC of what it is fed. The secret is used for one blob only, so the nonce may be fixed.

    Without a secret nothing is computed, and the tag is all zeros.
    """

    def __init__(self, secret: bytes) -> None:
        if secret == NO_SECRET:
            self.feed: Callable[[Any], None] = lambda data: None
            self._gcm: Any = None
            return
        ciphers = need("cryptography.hazmat.primitives.ciphers", "p2p")
        mode = ciphers.modes.GCM(bytes(12))
        self._gcm = ciphers.Cipher(ciphers.algorithms.AES(secret), mode).encryptor()
        self.feed = self._gcm.authenticate_additional_data

    def tag(self) -> bytes:
        if self._gcm is None:
            return bytes(TAG)
        self._gcm.finalize()
        return self._gcm.tag
