"""Who tells different neighbours different things is found out.

In a broadcast (``mix``, ``gather``) a peer says the same to all who listen. It signs (run, tick, call,
SHA-256 of what it says); its listeners keep the last ticks' statements and show them to a few random
members now and then. Two valid statements of one sender for one call with different digests are a proof
that anybody can check. Nobody who holds it takes a parcel of that sender again, and whoever asks gets it.

Left out of the digest is what may differ between listeners: replicas for those out of step, edges,
weights. Messages to chosen peers (``send``, ``share``) and models that come down are not witnessed. A
peer that was killed in the midst of a tick could say it differently the second time, so it keeps silent
in every tick in which an earlier life of it has spoken.

The exchange of signed statements is that of PeerReview (Haeberlen, Kuznetsov, Druschel, SOSP 2007), for
what neighbours of a gossip algorithm need of it.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import secrets
import struct
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from shoal.core import ShoalError
from shoal.network.parcel import buffer, opened
from shoal.network.port import Buffer

from .frames import Refused
from .identity import Identity, verify
from .node import Node
from .records import Key
from .transport.base import PeerId

__all__ = ["UNSIGNED", "Witness"]

HEARD, PURPOSE = "run/heard", "run/said"
UNSIGNED = bytes(64)
KEPT = 64  # ticks, before and after the present one
SHOWN = 256  # statements in one message
ROOM = 4096  # statements kept of one tick
EVERY, ASKED = 0.5, 2  # seconds between exchanges, and members asked in each
LARGE = 1 << 18  # bytes that are not hashed in the event loop
_SLOT = struct.Struct("<IH")
_FLOOR = struct.Struct("<8sq")


class Said(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """That ``sender`` said what has this digest, by its signature."""

    sender: Key
    tick: Annotated[int, Meta(ge=0, lt=2**32)]
    call: Annotated[int, Meta(ge=0, lt=2**16)]
    digest: Annotated[bytes, Meta(min_length=32, max_length=32)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


class Heard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What I heard lately, and whose lies I have proofs of."""

    said: Annotated[tuple[Said, ...], Meta(max_length=SHOWN)]
    liars: Annotated[tuple[Key, ...], Meta(max_length=SHOWN)]


class Proofs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Proofs that the asker lacks."""

    proofs: Annotated[tuple[tuple[Said, Said], ...], Meta(max_length=16)]


class Witness:
    """One peer's part in it.

    Args:
        node, identity: of this peer.
        run: 8 bytes that name the run.
        others: the members that may be asked at present.
        seated: the peers that hold a seat of the run.
        kept: file in which the last tick spoken in survives this process; None: in none.

    Attributes:
        proofs: by liar.
    """

    def __init__(
        self,
        node: Node,
        identity: Identity,
        run: bytes,
        others: Callable[[], Sequence[PeerId]],
        seated: Callable[[], Collection[PeerId]],
        kept: Path | None = None,
    ) -> None:
        self.node, self.identity, self.run = node, identity, run
        self.proofs: dict[PeerId, tuple[Said, Said]] = {}
        self._others, self._seated, self._kept = others, seated, kept
        self._tick = 0
        self._task: asyncio.Task[None] | None = None
        self._held: dict[int, dict[tuple[PeerId, int], tuple[Said, PeerId]]] = {}
        self._fresh: deque[Said] = deque(maxlen=SHOWN)
        self._draw = random.Random(secrets.randbits(64))  # whom to ask: no affair of the run's seed
        self._floor = self._spoken = -1
        if kept is not None and kept.exists() and kept.stat().st_size == _FLOOR.size:
            of, tick = _FLOOR.unpack(kept.read_bytes())
            self._floor = self._spoken = tick if of == run else -1
        node.serve(HEARD, Heard, self._on_heard, limit=1 << 16)

    # -- speaking ------------------------------------------------------------------------------------

    def begin(self, tick: int) -> None:
        """Tick ``tick`` begins; statements of long ago are dropped."""
        self._tick = tick
        if self._task is None:
            self._task = asyncio.create_task(self._compare(), name=f"witness {self.node.id[:8]}")
        for old in [t for t in self._held if t < tick - KEPT]:
            del self._held[old]

    async def close(self) -> None:
        """Show nobody anything any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def silent(self, tick: int) -> bool:
        """Whether an earlier life of this peer may have spoken in this tick."""
        return tick <= self._floor

    async def sign(self, tick: int, call: int, parcels: Iterable[Buffer]) -> bytes:
        """The signature that goes with each of these parcels of one call."""
        if self._kept is not None and tick > self._spoken:
            self._spoken = tick
            self._kept.write_bytes(_FLOOR.pack(self.run, tick))
        for parcel in parcels:
            digest = await _digest(parcel)
            if digest is None:
                break
            if digest:
                return self.identity.sign(PURPOSE, self._message(tick, call, digest))
        return UNSIGNED

    # -- listening -----------------------------------------------------------------------------------

    async def hear(self, peer: PeerId, tick: int, call: int, signature: bytes, parcel: Buffer) -> None:
        """A parcel came from ``peer`` itself.

        Raises:
            Refused: it is a broadcast that ``peer`` has not signed, or ``peer`` is known to lie.
        """
        if peer not in self.proofs and (digest := await _digest(parcel)):
            said = Said(peer, tick, call, digest, signature)
            if not self._valid(said):
                raise Refused("unsigned broadcast")
            self._fresh.append(said)
            self._note(said, self.node.id)
        if peer in self.proofs:
            raise Refused("equivocation", 0.0)

    def _message(self, tick: int, call: int, digest: bytes) -> bytes:
        return self.run + _SLOT.pack(tick, call) + digest

    def _valid(self, said: Said) -> bool:
        message = self._message(said.tick, said.call, said.digest)
        return verify(said.sender, PURPOSE, message, said.signature)

    def _note(self, said: Said, teller: PeerId) -> None:
        """Compare with what is held. Hearsay is verified only where it matters."""
        box = self._held.setdefault(said.tick, {})
        slot, direct = (said.sender, said.call), teller == self.node.id
        held, before = box.get(slot, (None, ""))
        if held is None:
            if direct or len(box) < ROOM:
                box[slot] = (said, teller)
        elif held.digest == said.digest:
            if direct:
                box[slot] = (said, teller)  # this one is known to be signed
        elif not self._valid(held):
            self.node.refuse(before, "forged statement")
            box[slot] = (said, teller)
        elif not self._valid(said):
            self.node.refuse(teller, "forged statement")
        else:
            self._convict(held, said)

    def _convict(self, one: Said, other: Said) -> None:
        if one.sender not in self.proofs:
            self.proofs[one.sender] = (one, other)
            self.node.refuse(one.sender, "equivocation")

    # -- comparing -----------------------------------------------------------------------------------

    async def _compare(self) -> None:
        """Show some members what was heard, and take proofs from them."""
        while True:
            await asyncio.sleep(EVERY * self._draw.uniform(0.8, 1.2))
            others = list(self._others())
            fresh, self._fresh = tuple(self._fresh), deque(maxlen=SHOWN)
            for peer in self._draw.sample(others, min(len(others), ASKED)):
                await self._ask(peer, Heard(fresh, tuple(self.proofs)[:SHOWN]))

    async def _ask(self, peer: PeerId, heard: Heard) -> None:
        try:
            told = await self.node.call(peer, HEARD, heard, Proofs)
        except ShoalError:
            return
        seated = self._seated()
        for one, other in told.proofs:
            if one.sender in self.proofs or one.sender not in seated:
                continue
            same = (one.sender, one.tick, one.call) == (other.sender, other.tick, other.call)
            if same and one.digest != other.digest and self._valid(one) and self._valid(other):
                self._convict(one, other)
            else:
                self.node.refuse(peer, "forged proof")

    async def _on_heard(self, peer: PeerId, heard: Heard) -> Proofs:
        seated = self._seated()
        if peer not in seated:
            raise Refused("no seat in this run", 0.0)
        for said in heard.said:
            if abs(said.tick - self._tick) <= KEPT and said.sender in seated:
                self._note(said, peer)
        lacking = self.proofs.keys() - set(heard.liars)
        return Proofs(tuple(self.proofs[liar] for liar in sorted(lacking)[:16]))


async def _digest(parcel: Buffer) -> bytes | None:
    """SHA-256 of what a broadcast tells everybody; b"" where nobody speaks; None: it is none."""
    if len(parcel) < LARGE:
        return _hash(parcel)
    return await asyncio.to_thread(_hash, parcel)


def _hash(parcel: Buffer) -> bytes | None:
    try:
        held = opened(parcel).tensors
    except ValueError:
        return None  # who uses it will refuse it
    if not {"ids", "length", "frames"} <= held.keys():
        return None
    if not held["ids"].numel():
        return b""
    digest = hashlib.sha256()
    for name in ("ids", "length", "frames", "scalars"):
        if name in held:
            digest.update(f"{name} {held[name].dtype} {tuple(held[name].shape)};".encode())
            digest.update(buffer(held[name]) if held[name].numel() else b"")
    return digest.digest()
