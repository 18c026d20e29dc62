"""What peers of a trial say to each other and to its operator: the messages and their bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from shoal.core import BadInput
from shoal.runtimes.p2p.identity import Identity, verify
from shoal.trust.bandwidth_tokens import Half

from .trial import Deployed

__all__ = ["Answer", "Ask", "Chunk", "Held", "IdKeys", "News", "Order", "Records", "Settle", "Standing"]

PAGE = 400
"""Records in one answer to a crawler."""
_Index = Annotated[int, Meta(ge=0)]
Records = list[tuple[_Index, _Index, Annotated[list[Any], Meta(max_length=PAGE)]]]


class Ask(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A chunk, please; ``version`` is what the asker runs."""

    index: _Index
    version: Deployed


class Chunk(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The chunk, and the version under which it is written down (``off`` where the two differ)."""

    data: bytes
    version: Deployed


class Settle(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A half-block with its signer's signature: a proposal, or the answer to one."""

    half: Half
    seal: bytes


class Answer(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The other half, or none for a proposal that cannot be accepted."""

    told: Settle | None


class Held(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What a crawler holds: a version vector."""

    versions: Annotated[list[_Index], Meta(max_length=256)]


class News(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What it does not: (origin, first position, records)."""

    records: Records


class Order(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """From the operator: the version to run, whether to work, and where the others are."""

    version: Deployed
    work: bool
    addresses: dict[str, list[str]]


class Standing(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The peer's answer: its version, what it has done, and the digest of each version's account."""

    version: Deployed
    chunks: int
    starts: int
    digests: dict[str, bytes]


class IdKeys:
    """The keys of a log whose origins are real identities, by number.

    Args:
        ids: of all origins.
        own: whose private key signs, or None for who only checks.
    """

    PURPOSE = "trial-record"

    def __init__(self, ids: Sequence[str], own: Identity | None = None) -> None:
        self.ids, self.own = list(ids), own

    def sign(self, peer: int, message: bytes) -> bytes:
        if self.own is None or self.own.id != self.ids[peer]:
            raise BadInput("peer", peer, "only a peer itself signs for it")
        return self.own.sign(self.PURPOSE, message)

    def verify(self, peer: int, message: bytes, signature: bytes) -> bool:
        return verify(self.ids[peer], self.PURPOSE, message, signature)
