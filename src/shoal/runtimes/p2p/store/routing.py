"""Whom a peer of the hash table knows: k-buckets by XOR distance, in which the long-lived stay.

Source: Maymounkov, Mazières, "Kademlia: A peer-to-peer information system based on the XOR metric"
(IPTPS 2002). A peer's place is the SHA-256 of its key, so it cannot be chosen freely (only searched for).
Only peers that have themselves called or answered enter. A full bucket keeps whom it has: the one heard
of longest ago is probed, and gives way only if it is gone; newcomers wait in a reserve. Of one network
(/24 or /48, public addresses) at most ``per_prefix`` peers are in a bucket.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections import OrderedDict
from typing import Annotated

import msgspec
from msgspec import Meta

from ..transport.base import Address, PeerId

__all__ = ["Contact", "Places", "Table", "place", "prefix"]

Places = Annotated[tuple[Annotated[str, Meta(max_length=200)], ...], Meta(max_length=8)]


class Contact(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A peer and where it says that it can be reached."""

    peer: Annotated[str, Meta(min_length=64, max_length=64)]
    addresses: Places = ()


class _Bucket:
    def __init__(self) -> None:
        self.live: OrderedDict[PeerId, tuple[Contact, str]] = OrderedDict()  # oldest first
        self.reserve: OrderedDict[PeerId, tuple[Contact, str]] = OrderedDict()


class Table:
    """The contacts of one peer.

    Args:
        own: this peer.
        k: contacts of a bucket.
        per_prefix: ... of which from one network; None: any number.
    """

    def __init__(self, own: PeerId, k: int = 20, per_prefix: int | None = 2) -> None:
        self.own, self.k, self.per_prefix = own, k, per_prefix
        self._place = place(own)
        self._buckets: dict[int, _Bucket] = {}

    def __len__(self) -> int:
        return sum(len(bucket.live) for bucket in self._buckets.values())

    def __contains__(self, peer: object) -> bool:
        return isinstance(peer, str) and peer in self._bucket(peer).live

    def seen(self, contact: Contact, remote: Address = "") -> Contact | None:
        """A peer has called or answered; the one to probe where its bucket is full.

        Args:
            remote: where it was seen, for the bound on networks.
        """
        if contact.peer == self.own:
            return None
        bucket, entry = self._bucket(contact.peer), (contact, prefix(remote))
        if contact.peer in bucket.live:
            if not contact.addresses:
                entry = bucket.live[contact.peer][0], entry[1]
            bucket.live[contact.peer] = entry
            bucket.live.move_to_end(contact.peer)
            return None
        if self._crowded(bucket, entry[1]):
            return None
        if len(bucket.live) < self.k:
            bucket.live[contact.peer] = entry
            return None
        bucket.reserve[contact.peer] = entry
        bucket.reserve.move_to_end(contact.peer)
        if len(bucket.reserve) > self.k:
            bucket.reserve.popitem(last=False)
        return next(iter(bucket.live.values()))[0]

    def gone(self, peer: PeerId) -> None:
        """A peer did not answer: the newest of the reserve takes its place."""
        bucket = self._bucket(peer)
        bucket.reserve.pop(peer, None)
        if bucket.live.pop(peer, None) is None:
            return
        while bucket.reserve and len(bucket.live) < self.k:
            name, entry = bucket.reserve.popitem()
            if not self._crowded(bucket, entry[1]):
                bucket.live[name] = entry

    def nearest(self, target: int, count: int) -> list[Contact]:
        """The contacts nearest to a place, nearest first."""
        every = [entry[0] for bucket in self._buckets.values() for entry in bucket.live.values()]
        return sorted(every, key=lambda contact: place(contact.peer) ^ target)[:count]

    def _bucket(self, peer: PeerId) -> _Bucket:
        return self._buckets.setdefault((place(peer) ^ self._place).bit_length(), _Bucket())

    def _crowded(self, bucket: _Bucket, network: str) -> bool:
        same = sum(network == other for _, other in bucket.live.values())
        return bool(network) and self.per_prefix is not None and same >= self.per_prefix


def place(peer: PeerId) -> int:
    """Where a peer is among the keys: SHA-256 of its public key."""
    return int.from_bytes(hashlib.sha256(bytes.fromhex(peer)).digest(), "big")


def prefix(address: Address) -> str:
    """The network of a public IP address, else ``""``."""
    host = address.partition("://")[2].rpartition(":")[0].strip("[]")
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return ""
    if not ip.is_global:
        return ""
    return str(ipaddress.ip_network((ip, 24 if ip.version == 4 else 48), strict=False))
