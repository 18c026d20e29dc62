"""A distributed hash table: who has what, found in about log2(peers) steps without a server.

Source: Kademlia (Maymounkov, Mazières 2002) with k = 20 and alpha = 3, as Lattica (arXiv 2510.00183) uses
it: records have an expiry and subkeys, and provider records say who holds a content.

A record is signed by its publisher and lies at the k peers nearest to its key, under
(key, publisher, subkey): nobody can overwrite another's. It lives for at most its stated lifetime on the
*holder's own* monotonic clock; no clocks are compared. Only its publisher may store or refresh it (the
connection proves who calls), so an old record cannot be kept alive by replaying it, and what its publisher
stops republishing vanishes. A greater sequence number replaces a lesser one.

Deviations: holders do not replicate or cache what they hold (see above). Keys for identities are free, so
someone who makes very many can surround one key: the bounds here (networks per bucket, records per
publisher and key, only keys that are near) make that dear, and an allow-list makes it impossible.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from shoal.core import BadInput, ShoalError

from ..frames import Malformed, decode, encode
from ..identity import Identity, is_peer_id
from ..transport.base import PeerId
from .entries import Digest, Entry, Sequence, Shelf, SignedEntry, key_of, open_entry, sign_entry
from .routing import Contact, Places, Table, place

if TYPE_CHECKING:
    from ..node import Node

__all__ = ["Dht"]

K, ALPHA = 20, 3
MOST_TOLD = 64


class _Find(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    target: Digest
    values: bool
    addresses: Places


class _Held(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A provider record: where the content's holder can be reached."""

    addresses: Places


class _Found(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    contacts: Annotated[tuple[Contact, ...], Meta(max_length=K)]
    entries: Annotated[tuple[SignedEntry, ...], Meta(max_length=MOST_TOLD)] = ()


class _Kept(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Whether an entry was kept, and the sequence number that is held."""

    kept: bool
    sequence: Sequence


class Dht:
    """One peer of the table.

    Args:
        node: through which everything is said.
        identity: signs what is published.
        draw: for the times of upkeep and the choice among very many entries.
        clock: monotonic seconds.
        k, alpha: contacts of a bucket and holders of a key; questions at a time.
        per_prefix: see :class:`~.routing.Table`.
    """

    def __init__(
        self,
        node: Node,
        identity: Identity,
        *,
        draw: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        k: int = K,
        alpha: int = ALPHA,
        per_prefix: int | None = 2,
    ) -> None:
        if not 1 <= k <= K or alpha < 1:
            raise BadInput("k", k, f"1 to {K}, and alpha from 1 up")
        self.node, self.identity, self.k, self.alpha = node, identity, k, alpha
        self.table = Table(identity.id, k, per_prefix)
        self.shelf = Shelf(clock)
        self.asked = 0
        self._draw = draw or random.Random(identity.id)
        self._published: dict[tuple[bytes, str], Entry] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._probing: set[PeerId] = set()
        node.serve("dht/find", _Find, self._on_find, limit=4096)
        node.serve("dht/store", SignedEntry, self._on_store, limit=2048)

    async def join(self, *contacts: Contact) -> int:
        """Enter through some peers that are known; how many the table then holds."""
        await self._walk(self._own_place(), start=list(contacts))
        return len(self.table)

    async def nearest(self, key: bytes) -> list[Contact]:
        """The k live peers nearest to a key, nearest first."""
        return (await self._walk(key))[0]

    async def find(self, key: bytes, enough: int | None = None) -> list[Entry]:
        """The entries of a key, of each (publisher, subkey) the newest.

        Args:
            enough: stop once so many are found; None: ask all holders.
        """
        found: dict[tuple[PeerId, str], Entry] = {}
        own = [entry for signed in self.shelf.get(key) if (entry := open_entry(signed)) is not None]
        for entry in [*own, *(await self._walk(key, values=True, enough=enough))[1]]:
            slot = entry.publisher, entry.subkey
            if slot not in found or found[slot].sequence < entry.sequence:
                found[slot] = entry
        return sorted(found.values(), key=lambda entry: (entry.publisher, entry.subkey))

    async def publish(
        self, key: bytes, value: bytes, *, subkey: str = "", lifetime_s: float = 3600.0,
        sequence: int | None = None,
    ) -> int:  # fmt: skip
        """Store an entry at the k nearest peers and keep it there (see :meth:`upkeep`); how many took it.

        Args:
            sequence: default: one more than the last, and than what any holder has of it.
        """
        last = self._published.get((key, subkey))
        number = sequence if sequence is not None else (last.sequence + 1 if last else 0)
        entry = Entry(key, self.identity.id, subkey, number, lifetime_s, value)
        kept, newest = await self._place(entry)
        if sequence is None and newest > number:  # of an earlier life of this peer
            entry = msgspec.structs.replace(entry, sequence=newest + 1)
            kept, _ = await self._place(entry)
        self._published[key, subkey] = entry
        return kept

    def withdraw(self, key: bytes, subkey: str = "") -> None:
        """Republish no more: the entry vanishes with its lifetime."""
        self._published.pop((key, subkey), None)

    async def provide(self, digest: bytes, lifetime_s: float = 3600.0) -> int:
        """Say that this peer holds a content."""
        held = encode(_Held(tuple(self.node.addresses()[:8])))
        return await self.publish(key_of("provider", digest), held, lifetime_s=lifetime_s)

    async def providers(self, digest: bytes, enough: int | None = None) -> list[PeerId]:
        """Who says that it holds a content. What they say is not yet proved."""
        found = []
        for entry in await self.find(key_of("provider", digest), enough):
            if entry.publisher == self.identity.id:
                continue
            try:
                contact = Contact(entry.publisher, decode(entry.value, _Held).addresses)
            except Malformed:
                self.node.refuse(entry.publisher, "malformed provider record")
                continue
            self._learn(contact, own_word=True)
            found.append(entry.publisher)
        return found

    async def upkeep(self) -> None:
        """Republish what is halfway through its lifetime, and look around: for as long as it runs."""
        due: dict[tuple[bytes, str], float] = {}
        while True:
            await asyncio.sleep(self._draw.uniform(0.5, 1.0))
            now = asyncio.get_running_loop().time()
            for slot, entry in list(self._published.items()):
                when = due.setdefault(slot, now + entry.lifetime_s / 2)
                if when <= now:
                    due[slot] = now + entry.lifetime_s / 2
                    await self._place(entry)
            if due.setdefault((b"", "look around"), now + 600) <= now:
                due[b"", "look around"] = now + 600
                await self.nearest(self._draw.randbytes(32))
                self.shelf.expire()

    async def close(self) -> None:
        """End what runs in the background."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- asking ---------------------------------------------------------------------------------------

    async def _place(self, entry: Entry) -> tuple[int, int]:
        signed = sign_entry(self.identity, entry)
        holders = await self.nearest(entry.key)
        replies = await asyncio.gather(*(self._store(holder.peer, signed) for holder in holders))
        kept, newest = sum(reply.kept for reply in replies), max((r.sequence for r in replies), default=0)
        far = [place(holder.peer) ^ int.from_bytes(entry.key, "big") for holder in holders]
        if len(holders) < self.k or place(self.identity.id) ^ int.from_bytes(entry.key, "big") < max(far):
            taken, held = self.shelf.put(entry, signed)
            kept, newest = kept + taken, max(newest, held)
        return kept, newest

    async def _store(self, peer: PeerId, signed: SignedEntry) -> _Kept:
        try:
            return await self.node.call(peer, "dht/store", signed, _Kept, idempotent=True)
        except ShoalError:
            return _Kept(False, 0)

    async def _walk(
        self,
        key: bytes,
        *,
        values: bool = False,
        enough: int | None = None,
        start: list[Contact] | None = None,
    ) -> tuple[list[Contact], list[Entry]]:
        """Ask nearer and nearer peers, ``alpha`` at a time, until the k nearest have answered."""
        target = int.from_bytes(key, "big")
        known = {c.peer: c for c in [*self.table.nearest(target, self.k), *(start or [])]}
        answered: set[PeerId] = set()
        failed: set[PeerId] = {self.identity.id}
        entries: list[Entry] = []
        asking: dict[asyncio.Task[_Found | None], PeerId] = {}
        try:
            while True:
                front = sorted((c for c in known.values() if c.peer not in failed), key=_distance(target))[
                    : self.k
                ]
                fresh = [c for c in front if c.peer not in answered and c.peer not in asking.values()]
                for contact in fresh[: self.alpha - len(asking)]:
                    asking[asyncio.create_task(self._ask(contact, key, values))] = contact.peer
                if not asking or (enough is not None and len({e.publisher for e in entries}) >= enough):
                    return [c for c in front if c.peer in answered], entries
                done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    peer, reply = asking.pop(task), task.result()
                    if reply is None:
                        failed.add(peer)
                        continue
                    answered.add(peer)
                    entries += self._checked(peer, key, reply)
                    for contact in reply.contacts:
                        if contact.peer not in known and is_peer_id(contact.peer):
                            known[contact.peer] = contact
        finally:
            for task in asking:
                task.cancel()

    async def _ask(self, contact: Contact, key: bytes, values: bool) -> _Found | None:
        self.asked += 1
        self._learn(contact)
        question = _Find(key, values, tuple(self.node.addresses()[:8]))
        try:
            found = await self.node.call(contact.peer, "dht/find", question, _Found, idempotent=True)
        except ShoalError:
            self.table.gone(contact.peer)
            return None
        self._seen(contact)
        return found

    def _checked(self, peer: PeerId, key: bytes, reply: _Found) -> list[Entry]:
        good = []
        for signed in reply.entries:
            entry = open_entry(signed)
            if entry is None or entry.key != key:
                self.node.refuse(peer, "forged table entry")
                return []
            good.append(entry)
        return good

    def _own_place(self) -> bytes:
        return place(self.identity.id).to_bytes(32, "big")

    # -- answering ------------------------------------------------------------------------------------

    async def _on_find(self, peer: PeerId, asked: _Find) -> _Found:
        contact = Contact(peer, asked.addresses)
        self._learn(contact, own_word=True)
        self._seen(contact)
        target = int.from_bytes(asked.target, "big")
        near = tuple(c for c in self.table.nearest(target, self.k + 1) if c.peer != peer)[: self.k]
        if not asked.values:
            return _Found(near)
        entries = self.shelf.get(asked.target)
        told = entries if len(entries) <= MOST_TOLD else self._draw.sample(entries, MOST_TOLD)
        return _Found(near, tuple(told))

    async def _on_store(self, peer: PeerId, signed: SignedEntry) -> _Kept:
        entry = open_entry(signed)
        if entry is None or entry.publisher != peer:
            self.node.refuse(peer, "table entry not signed by who stores it")
            return _Kept(False, 0)
        target = int.from_bytes(entry.key, "big")
        nearer = self.table.nearest(target, 2 * self.k)
        own = place(self.identity.id) ^ target
        if len(nearer) == 2 * self.k and all(place(c.peer) ^ target < own for c in nearer):
            return _Kept(
                False, 0
            )  # no business of this peer: publishers see the table a little differently
        return _Kept(*self.shelf.put(entry, signed))

    def _learn(self, contact: Contact, own_word: bool = False) -> None:
        """Addresses: its own word comes first; hearsay only adds to what is known."""
        known, new = self.node.known(contact.peer), contact.addresses
        if new:
            both = (*new, *known) if own_word else (*known, *new)
            self.node.learn(contact.peer, tuple(dict.fromkeys(both))[:16])

    def _seen(self, contact: Contact) -> None:
        held = self.node.connections().get(contact.peer)
        oldest = self.table.seen(contact, held[2] if held else "")
        if oldest is not None and oldest.peer not in self._probing and len(self._probing) < self.alpha:
            self._probing.add(oldest.peer)
            task = asyncio.create_task(self._probe(oldest))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _probe(self, contact: Contact) -> None:
        try:
            await self._ask(contact, self._own_place(), values=False)
        finally:
            self._probing.discard(contact.peer)


def _distance(target: int) -> Callable[[Contact], int]:
    return lambda contact: place(contact.peer) ^ target
