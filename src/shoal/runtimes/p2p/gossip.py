"""What travels on top of probes: the freshest rumours, each told a few times, in bounded space.

Source: the piggybacked dissemination of SWIM (Das, Gupta, Motivala, DSN 2002, section 4.1): of what is
to be told, the least told first, each a small multiple of log n times.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from .records import Key, Sequence, SignedRecord
from .transport.base import PeerId

__all__ = ["Doubt", "Gossip", "Kind", "Rumours"]

RECORDS, DOUBTS, BYTES = 8, 16, 6144
FRAME = 80  # of one record beside its payload

Kind = Literal["record", "doubt"]


class Doubt(msgspec.Struct, frozen=True, array_like=True):
    """Somebody could not reach ``peer`` while record number ``sequence`` was its newest."""

    peer: Key
    sequence: Sequence


class Gossip(msgspec.Struct, frozen=True, array_like=True):
    """What is told at one time."""

    records: Annotated[tuple[SignedRecord, ...], Meta(max_length=RECORDS)] = ()
    doubts: Annotated[tuple[Doubt, ...], Meta(max_length=DOUBTS)] = ()


class Rumours:
    """Which members there is something to tell about, and how often it was told."""

    def __init__(self, draw: random.Random) -> None:
        self._told: dict[tuple[Kind, PeerId], int] = {}
        self._draw = draw

    def untold(self, times: int) -> int:
        """How many have been told fewer times than that."""
        return sum(told < times for told in self._told.values())

    def add(self, kind: Kind, peer: PeerId) -> None:
        """There is news."""
        self._told[kind, peer] = 0

    def remind(self, kind: Kind, peer: PeerId, most: int) -> None:
        """Somebody is behind: told once more, after what is fresher.

        Repeating old news to a peer must not crowd out what it has to say.
        """
        self._told.setdefault((kind, peer), most - 1)

    def pick(
        self, most: int, content: Callable[[Kind, PeerId], SignedRecord | Doubt | None], first: Gossip
    ) -> Gossip:
        """What to tell now.

        Args:
            most: times that each is told; then it rests.
            content: what there is to tell now, or None where it is no longer so.
            first: goes before everything.
        """
        records, doubts = list(first.records), list(first.doubts)
        size = sum(len(record.payload) + FRAME for record in records)
        for rumour in sorted(self._told, key=lambda rumour: (self._told[rumour], self._draw.random())):
            news = content(*rumour) if self._told[rumour] < most else None
            if news is None:
                del self._told[rumour]
                continue
            if isinstance(news, Doubt):
                if len(doubts) == DOUBTS:
                    continue
                doubts.append(news)
            else:
                length = len(news.payload) + FRAME
                if len(records) == RECORDS or size + length > BYTES:
                    continue
                size += length
                records.append(news)
            self._told[rumour] += 1
        return Gossip(tuple(records), tuple(doubts))
