"""Where peers may be dialled, and for how long a dial that failed is not tried again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TypeVar

from .transport.base import Address, PeerId

__all__ = ["Book"]

ADDRESSES = 16  # kept of a peer
PEERS = 4096
BACKOFF, BACKOFF_MOST = 0.05, 5.0  # seconds, doubled with each failure

T = TypeVar("T")


class Book:
    """Addresses and failures by peer, of bounded size: the oldest entries give way."""

    def __init__(self) -> None:
        self._addresses: dict[PeerId, tuple[Address, ...]] = {}
        self._failed: dict[PeerId, tuple[float, float]] = {}  # until when a dial is pointless, last delay

    def learn(self, peer: PeerId, addresses: Sequence[Address]) -> None:
        """Best first; replaces what was known. New addresses may be tried at once."""
        new = tuple(addresses)[:ADDRESSES]
        if self._addresses.get(peer) == new:
            return
        _put(self._addresses, peer, new)
        self.reached(peer)

    def known(self, peer: PeerId) -> tuple[Address, ...]:
        """What was learnt last."""
        return self._addresses.get(peer, ())

    def failed(self, peer: PeerId) -> None:
        """The peer could not be reached."""
        _, delay = self._failed.get(peer, (0.0, BACKOFF / 2))
        delay = min(2 * delay, BACKOFF_MOST)
        _put(self._failed, peer, (time.monotonic() + delay, delay))

    def reached(self, peer: PeerId) -> None:
        """The peer is connected."""
        self._failed.pop(peer, None)

    def wait(self, peer: PeerId) -> float:
        """Seconds until dialling makes sense again."""
        until, _ = self._failed.get(peer, (0.0, 0.0))
        return max(0.0, until - time.monotonic())


def _put(table: dict[PeerId, T], peer: PeerId, value: T) -> None:
    table.pop(peer, None)
    while len(table) >= PEERS:
        del table[next(iter(table))]
    table[peer] = value
