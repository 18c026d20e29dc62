"""One broadcast between blocks: what each hands to the others, and what it makes of theirs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shoal.core import Draws, Frames, Layout
from shoal.wire.chain import Chain

from .memory import Memory
from .network import Network
from .parcel import Parcel, opened, sealed
from .port import Blocks, Port
from .remote import Known, Spoken, pack_spoken, unpack_spoken

__all__ = ["Broadcast", "Edges", "Trade"]


@dataclass(frozen=True)
class Edges:
    """Who speaks to whom, as this block knows it: global numbers, int64 [E] each."""

    src: Tensor
    dst: Tensor

    def take(self, which: Tensor) -> Edges:
        return Edges(self.src[which], self.dst[which])

    def sorted(self, nodes: int) -> Edges:
        """Each once, by receiver, then by sender."""
        key = torch.unique(self.dst * nodes + self.src)
        return Edges(key % nodes, key // nodes)


@dataclass(frozen=True)
class Broadcast:
    """One broadcast on its way: what is the same for all of its steps.

    Args:
        tick, hop, channel: which it is.
        draws: the random numbers of its codecs; ``peers`` are this block's senders.
        layout, dim, dtype: of a message.
        scalars: numbers that travel exactly beside it.
        weighted: whether a weight travels too.
        base: [P, D], what both ends know, or None.
        before: versions of the replicas that the differences are to, or None.
        replica: [P, D], the replicas after it.
        told: the edges travel too, because receivers may not know them.
    """

    tick: int
    hop: int
    channel: str
    draws: Draws
    layout: Layout
    dim: int
    dtype: torch.dtype
    scalars: int
    weighted: bool
    base: Tensor | None
    before: Tensor | None
    replica: Tensor | None
    told: bool


class Trade:
    """Swaps the messages of a broadcast with the other blocks.

    Args:
        port: the door to them.
        blocks: who lives where.
        network: whose wire it is, and what is too long to be believed.
        memory: replicas, and copies of others' replicas.
        refused: int64 [n + 1], counts what cannot be used.
    """

    def __init__(
        self, port: Port, blocks: Blocks, network: Network, memory: Memory, refused: Tensor
    ) -> None:
        self.port, self.blocks, self.network, self.memory = port, blocks, network, memory
        self.chain, self.refused = Chain(network.codec), refused
        self.known = Known()

    def swap(
        self, mine: Spoken, own: Edges, to: Tensor, heard: Tensor, now: Broadcast
    ) -> tuple[list[Spoken], list[Edges]]:
        """Hand each block what its peers are to hear.

        Args:
            own: the edges that start here.
            to: int64, the blocks that wait for a parcel from here, maybe an empty one.
            heard: int64, the senders elsewhere that may speak to peers here.

        Returns:
            What the others said, and along which edges where those travel.
        """
        here, home = self.blocks.here, self.blocks.home
        out = {}
        lives = home[own.dst]
        for block in to.tolist():
            if block != here:
                out[block] = sealed(self._outgoing(mine, own.take(lives == block), block, now))
        homes = home[heard]
        want = [b for b in torch.unique(homes).tolist() if b != here]
        said, edges = [], []
        for block, data in sorted(self.port.swap(out, want).items()):
            try:
                parcel = opened(data)
                allowed = (home == block).nonzero()[:, 0] if now.told else heard[homes == block]
                found = self._incoming(parcel, allowed, now)
                if now.told:
                    edges.append(self._edges(parcel, found.ids))
                said.append(found)
            except ValueError as error:
                self.port.refuse(block, str(error))
                self.refused[(home == block).nonzero()[0, 0]] += 1
        return said, edges

    def _outgoing(self, mine: Spoken, along: Edges, block: int, now: Broadcast) -> Parcel:
        which = torch.isin(mine.ids, along.src)
        told = pack_spoken(mine, which)
        if now.told:
            told |= {"src": along.src, "dst": along.dst}
        if now.before is not None:
            assert now.replica is not None
            local = mine.ids[which] - self.blocks.start
            shipped = self.memory.shipped(now.channel, self.blocks.count, self.blocks.size)[block]
            behind = (shipped[local] != now.before[which]) & mine.sound[which]
            told |= {"version": now.before[which], "behind": behind.to(torch.uint8)}
            told["whole"] = now.replica[local[behind]]
            shipped[local] = torch.where(mine.sound[which], now.before[which] + 1, -1)
        elif mine.reference is not None and self.port.trusted:
            told["base"] = mine.reference[which]
        elif mine.reference is not None:
            return Parcel(told, b"".join(Known.digest(row) for row in mine.reference[which]))
        return Parcel(told)

    def _edges(self, parcel: Parcel, ids: Tensor) -> Edges:
        src, dst = parcel.tensors.get("src"), parcel.tensors.get("dst")
        if src is None or dst is None or src.dtype != torch.int64 or dst.dtype != torch.int64:
            raise ValueError("no edges")
        if src.shape != dst.shape or src.ndim != 1 or not bool(torch.isin(src, ids).all()):
            raise ValueError("edges of senders that say nothing")
        if len(dst) and not (int(dst.min()) >= 0 and int(dst.max()) <= self.blocks.n):
            raise ValueError("edges to nobody")
        if not bool(self.blocks.mine(dst).all()):
            raise ValueError("edges that end elsewhere")
        return Edges(src, dst)

    def _incoming(self, parcel: Parcel, allowed: Tensor, now: Broadcast) -> Spoken:
        """What another block's senders said.

        Raises:
            ValueError: it is not what it should be.
        """
        limit = self.chain.most(now.dim, now.dtype.itemsize, now.layout)
        t = unpack_spoken(parcel, allowed, now.scalars, now.weighted, limit)
        ids, frames = t["ids"], Frames(t["frames"], t["length"])
        draws = replace(now.draws, peers=ids)
        decoded, sound = self.chain.decode(frames, now.dim, now.dtype, draws, now.layout)
        reference: Tensor | None = None
        if now.before is not None:
            value, sound, reference = self._replicas(t, ids, decoded, sound, now)
        elif now.base is not None and self.chain.links:
            reference = t.get("base") if self.port.trusted else self._bases(parcel.data, ids, now)
            if reference is None or reference.shape != decoded.shape or reference.dtype != now.dtype:
                raise ValueError("no base for the update")
            value = reference + decoded
        else:
            value = decoded
        if self.network.norm is not None:
            sound = self.network.bounded(value, sound)
            value = torch.where(sound[:, None], value, torch.zeros_like(value))
        told = t["left"], t["cost"], t.get("scalars"), t.get("weight")
        return Spoken(ids, frames, value, sound, reference, *told)

    def _replicas(
        self, t: dict[str, Tensor], ids: Tensor, decoded: Tensor, sound: Tensor, now: Broadcast
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The senders' replicas after what they said: (value, sound, the replicas before)."""
        version, behind, whole = t.get("version"), t.get("behind"), t.get("whole")
        if version is None or behind is None or whole is None:
            raise ValueError("no version of the replicas")
        if version.dtype != torch.int64 or behind.dtype != torch.uint8:
            raise ValueError("versions of another form")
        if version.shape != ids.shape or behind.shape != ids.shape:
            raise ValueError("versions of other senders")
        late = behind.to(torch.bool)
        if whole.dtype != now.dtype or whole.shape != (int(late.sum()), now.dim):
            raise ValueError("replicas of another form")
        copies = self.memory.copies(now.channel, ids, now.dim, now.dtype)
        at = copies.at(ids)
        reference = copies.rows[at]
        value = reference + decoded
        value[late] = whole
        known = torch.where(late, torch.isfinite(value).all(1), copies.version[at] == version)
        sound = self.network.bounded(value, sound & known)
        copies.rows[at[sound]] = value[sound]
        copies.version[at[sound]] = version[sound] + 1
        return torch.where(sound[:, None], value, torch.zeros_like(value)), sound, reference

    def _bases(self, digests: bytes, ids: Tensor, now: Broadcast) -> Tensor:
        """The bases that strangers name by digest: own ones, or such as were cast."""
        assert now.base is not None
        if len(digests) != 16 * len(ids):
            raise ValueError("an update names no base")
        for row in now.base:
            self.known.add(row)
        found = [self.known.get(digests[i : i + 16]) for i in range(0, len(digests), 16)]
        if any(row is None for row in found):
            raise ValueError("an update of a model that is not known here")
        return torch.stack([row for row in found if row is not None]) if found else now.base[:0]
