"""Carries messages from senders to receivers: adversary, wire, links, refusals, meter and clock."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shoal.core import BadInput, Draws, Frames, Layout, Scene, Tick, Work
from shoal.wire.chain import Chain

from .flat import Packed
from .links import LinkClock
from .memory import Memory
from .meter import Meter
from .network import Network
from .parcel import Parcel, opened, sealed
from .port import Blocks, Port
from .remote import Known, Spoken, merge, pack_spoken, unpack_spoken

__all__ = ["Carrier", "Delivery"]


@dataclass(frozen=True)
class Delivery:
    """What became of one broadcast, for the edges that end in this block.

    Args:
        rows: [R, D], messages as received: the senders' in the order of their numbers, then damaged
            copies.
        row: int64 [E], the row that travelled each edge.
        origin: int64 [E], the same before damage: where ``scalars`` and ``weight`` are found.
        arrived: bool [E], it came and was believed.
        spoken: [P, D], what each honest peer's listeners now hold of it (its own value elsewhere).
        scalars: float64 [R', S], the senders' numbers that travel exactly, or None.
        weight: float64 [R'], what each sender said that it weighs, or None.
        edges: which of the edges that were given end here: int64 [E], or None for all.
        left: when the last message had left; ``inward``: their bytes (for sums formed at home).
    """

    rows: Tensor
    row: Tensor
    origin: Tensor
    arrived: Tensor
    spoken: Tensor
    scalars: Tensor | None = None
    weight: Tensor | None = None
    edges: Tensor | None = None
    left: float = 0.0
    inward: int = 0


@dataclass(frozen=True)
class _Broadcast:
    """One broadcast on its way: what is the same for all of its steps."""

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
    before: Tensor | None  # versions of the replicas that the differences are to
    replica: Tensor | None  # the replicas after it


class Carrier:
    """What lies between peers, with all that one block has to remember about it.

    Args:
        network: the configuration.
        work: the open task of the block; its ``spent`` drives simulated time, its ``layers`` the codecs
            that work layer by layer.
        hostile: bool [n].
        port: the door to the other blocks.
    """

    def __init__(self, network: Network, work: Work, hostile: Tensor, port: Port) -> None:
        n, seed = work.n, work.place.seed
        self.network, self.work, self.n, self.seed, self.hostile = network, work, n, seed, hostile
        self.port, self.blocks = port, Blocks(port)
        self.layout: Layout = getattr(work, "layers", [])
        self.chain = Chain(network.codec)
        self.meter = Meter(n + 1)
        self.memory = Memory(n + 1)
        here = slice(self.blocks.start, self.blocks.stop)
        self.clock = LinkClock(network.links, network.speed(n, seed), seed, here)
        self.refused = torch.zeros(n + 1, dtype=torch.int64)
        self.releases = torch.zeros(n, dtype=torch.int64)
        self.known = Known()
        attack = network.attack
        if attack is not None and attack.informed and not port.trusted and bool(hostile.any()):
            raise BadInput(
                "network.attack", attack.slug, "sees others' messages: only where all peers are simulated"
            )

    def sent(self, src: Tensor, dst: Tensor, size: Tensor) -> Tensor:
        """Meter messages of ``size`` bytes [E] from this block's senders; none to oneself.

        Returns:
            float64 [n + 1]: when each sender's messages have left.
        """
        away = src != dst
        self.meter.count(src[away], dst[away], size[away])
        if self.network.events:  # event clocks say themselves when things happen
            return self.clock.now
        self.clock.work(self.work.spent)
        return self.clock.leave(src[away], size[away])

    def carry(
        self,
        packed: Packed,
        src: Tensor,
        dst: Tensor,
        tick: Tick,
        hop: int,
        channel: str,
        base: Tensor | None = None,
        weight: Tensor | None = None,
        at_home: bool = False,
    ) -> Delivery:
        """One message per sender, through wire and links, along the edges ``src -> dst``.

        Args:
            src, dst: global numbers. Of other blocks' senders all that may speak; which of them did is
                learned from what came.
            base: [P, D], what both ends know already; then only the difference is encoded.
            weight: float64 [P], told along with the message.
            at_home: nothing leaves the block, and the delivery is that of the edges that start here:
                for sums that are formed where the terms are.
        """
        flat, blocks = packed.flat, self.blocks
        dim, dtype = flat.shape[1], flat.dtype
        out = None if blocks.alone else blocks.mine(src).nonzero()[:, 0]
        own_src, own_dst = (src, dst) if out is None else (src[out], dst[out])
        speaking = torch.zeros(blocks.size, dtype=torch.bool)
        speaking[own_src - blocks.start] = True
        local = speaking.nonzero()[:, 0]
        senders = local + blocks.start
        everyone = len(local) == blocks.size
        spoken = self._speak(flat, base, speaking, tick)
        message = spoken if everyone else spoken[local]

        # What both ends know already is not sent again.
        reference: Tensor | None = None
        residual: Tensor | None = None
        replica: Tensor | None = None
        before: Tensor | None = None
        if base is not None and self.network.codec:
            reference = base if everyone else base[local]
            if self.chain.incremental and self.network.error_feedback:
                residual = self.memory.rows("residual", channel, blocks.size, dim, dtype)
        elif base is None and self.chain.incremental:
            replica = self.memory.rows("replica", channel, blocks.size, dim, dtype)
            reference = replica[local]
            before = self.memory.version(channel)[senders]
        delta = message if reference is None else message - reference
        if residual is not None:
            delta = delta + residual[local]
        # Each hop of a tick is a message of its own and has its own random numbers.
        draws = Draws(self.seed, f"wire/{channel}/{hop}", senders, tick.index)
        layout = self.layout if sum(c.stop - c.start for _, c, _ in self.layout) == dim else []
        frames, decoded, sound = self.chain.roundtrip(delta, draws, layout)
        if self.chain.noisy:
            self.releases[senders] += 1
        if residual is not None:
            residual[local] = torch.where(sound[:, None], delta - decoded, torch.zeros_like(delta))
        value = decoded if reference is None else reference + decoded

        position = torch.zeros(self.n + 1, dtype=torch.int64)
        position[senders] = torch.arange(len(senders))
        size = frames.length[position[own_src]] + packed.extra
        if replica is not None:
            # Who is out of step is sent the whole new replica.
            for block in self.port.missed():
                self.memory.forget(block, (blocks.home == block).nonzero()[:, 0])
            in_step = self.memory.in_step(channel, own_src, own_dst)
            size = torch.where(in_step, size, packed.extra + dim * flat.element_size())
            assert reference is not None
            replica[local] = torch.where(sound[:, None], value, reference)
            value = torch.where(sound[:, None], value, torch.zeros_like(value))
        left = self.sent(own_src, own_dst, size)

        mine = Spoken(
            senders, frames, value, sound, reference, left[senders],
            None if packed.scalars is None else packed.scalars[local],
            None if weight is None else weight[local],
        )  # fmt: skip
        now = _Broadcast(
            tick.index, hop, channel, draws, layout, dim, dtype,
            0 if packed.scalars is None else packed.scalars.shape[1], weight is not None,
            base, before, replica,
        )  # fmt: skip
        edges: Tensor | None = None
        heard = mine
        if at_home:
            edges = out
        elif not blocks.alone:
            into = blocks.mine(dst)
            heard = merge([mine, *self._trade(mine, own_src, own_dst, src[into], now)])
            # A sender remembers who is in step, so it follows its own messages to other blocks too.
            edges = (into if replica is None else into | blocks.mine(src)).nonzero()[:, 0]
        if edges is not None:
            src, dst = src[edges], dst[edges]
        position = torch.full((self.n + 1,), -1, dtype=torch.int64)
        position[heard.ids] = torch.arange(len(heard.ids))
        row = position[src]
        came, origin = row >= 0, row.clamp(min=0)
        ends = came if blocks.alone or at_home else came & blocks.mine(dst)
        rows, row, arrived = self._faults(heard, origin, came, ends, src, dst, now)

        late, inward = 0.0, 0
        away = ends & (src != dst)
        if at_home:
            late = float(left[senders].max()) if len(senders) else 0.0
            inward = int(size[src != dst].sum())
        elif not self.network.events:
            server = away & (dst == self.n)
            if bool(server.any()):
                at = position[src[server]]
                inward = int(heard.frames.length[at].sum()) + packed.extra * len(at)
            self.clock.arrive(dst[away], heard.left[position[src[away]]], inward)
        if replica is not None:
            told = arrived if blocks.alone else arrived & blocks.mine(src)
            self.memory.spoke(channel, senders, src[told], dst[told])
            if not blocks.alone and not at_home:
                kept = blocks.mine(dst)
                assert edges is not None
                edges, row, origin, arrived = edges[kept], row[kept], origin[kept], arrived[kept]
        own = flat if reference is None and not self.network.codec and spoken is flat else None
        if own is None:
            own = flat.clone()
            keep = sound & ~blocks.rows(self.hostile)[local]
            own[local[keep]] = value[keep]
        return Delivery(rows, row, origin, arrived, own, heard.scalars, heard.weight, edges, late, inward)

    # -- inside --------------------------------------------------------------------------------------

    def _trade(
        self, mine: Spoken, src: Tensor, dst: Tensor, heard: Tensor, now: _Broadcast
    ) -> list[Spoken]:
        """Hand each block what its peers are to hear; returns what the others said.

        Args:
            src, dst: the edges that start here.
            heard: int64, the senders of the edges that end here.
        """
        blocks, out = self.blocks, {}
        for block in torch.unique(blocks.home[dst]).tolist():
            if block == blocks.here:
                continue
            which = torch.isin(mine.ids, src[blocks.home[dst] == block])
            out[block] = sealed(self._outgoing(mine, which, block, now))
        senders = torch.unique(heard)
        homes = blocks.home[senders]
        want = [b for b in torch.unique(homes).tolist() if b != blocks.here]
        found = []
        for block, data in sorted(self.port.swap(out, want).items()):
            try:
                found.append(self._incoming(opened(data), senders[homes == block], now))
            except ValueError as error:
                self.port.refuse(block, str(error))
                self.refused[(blocks.home == block).nonzero()[0, 0]] += 1
        return found

    def _outgoing(self, mine: Spoken, which: Tensor, block: int, now: _Broadcast) -> Parcel:
        told = pack_spoken(mine, which)
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
            digests = b"".join(Known.digest(row) for row in mine.reference[which])
            return Parcel(told, digests)
        return Parcel(told)

    def _incoming(self, parcel: Parcel, allowed: Tensor, now: _Broadcast) -> Spoken:
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
            version, behind, whole = t.get("version"), t.get("behind"), t.get("whole")
            if version is None or behind is None or whole is None:
                raise ValueError("no version of the replicas")
            if version.dtype != torch.int64 or behind.dtype != torch.uint8 or len(version) != len(ids):
                raise ValueError("versions of another form")
            late = behind.to(torch.bool)
            if (
                whole.dtype != now.dtype
                or whole.shape != (int(late.sum()), now.dim)
                or len(behind) != len(ids)
            ):
                raise ValueError("replicas of another form")
            copies = self.memory.copies(now.channel, ids, now.dim, now.dtype)
            at = copies.at(ids)
            reference = copies.rows[at]
            value = reference + decoded
            value[late] = whole
            known = torch.where(late, torch.isfinite(value).all(1), copies.version[at] == version)
            sound = sound & known
            copies.rows[at[sound]] = value[sound]
            copies.version[at[sound]] = version[sound] + 1
            value = torch.where(sound[:, None], value, torch.zeros_like(value))
        elif now.base is not None and self.network.codec:
            reference = t.get("base") if self.port.trusted else self._bases(parcel.data, ids, now)
            if reference is None or reference.shape != decoded.shape or reference.dtype != now.dtype:
                raise ValueError("no base for the update")
            value = reference + decoded
        else:
            value = decoded
        return Spoken(ids, frames, value, sound, reference, t["left"], t.get("scalars"), t.get("weight"))

    def _bases(self, digests: bytes, ids: Tensor, now: _Broadcast) -> Tensor:
        """The bases that strangers name by digest: own ones, or such as were now."""
        assert now.base is not None
        if len(digests) != 16 * len(ids):
            raise ValueError("an update names no base")
        for row in now.base:
            self.known.add(row)
        found = [self.known.get(digests[i : i + 16]) for i in range(0, len(digests), 16)]
        if any(row is None for row in found):
            raise ValueError("an update of a model that is not known here")
        return torch.stack([row for row in found if row is not None])

    def _speak(self, flat: Tensor, known: Tensor | None, speaking: Tensor, tick: Tick) -> Tensor:
        """What is really sent: hostile peers' rows replaced by their attack's."""
        attack, blocks = self.network.attack, self.blocks
        if attack is None or not bool(self.hostile.any()):
            return flat
        base = torch.zeros_like(flat) if known is None else known
        if blocks.alone or not attack.informed:
            hostile = blocks.rows(self.hostile)
            if not bool((hostile & speaking).any()):
                return flat
            draws = Draws(self.seed, "attack", blocks.peers, tick.index)
            return attack.message(Scene(flat, base, hostile, speaking, draws, tick.index))
        # The adversary's eyes: its blocks see what everyone is about to say.
        lairs = torch.unique(blocks.home[:-1][self.hostile]).tolist()
        seen = Parcel({"x": flat, "base": base, "speaking": speaking.to(torch.uint8)})
        out = {b: sealed(seen) for b in lairs if b != blocks.here}
        want = [b for b in range(blocks.count) if b != blocks.here] if blocks.here in lairs else []
        got = {b: opened(data).tensors for b, data in self.port.swap(out, want).items()}
        if blocks.here not in lairs:
            return flat
        got[blocks.here] = seen.tensors
        x, base, every = (torch.cat([got[b][k] for b in sorted(got)]) for k in ("x", "base", "speaking"))
        draws = Draws(self.seed, "attack", torch.arange(self.n), tick.index)
        if not bool((self.hostile & every.bool()).any()):
            return flat
        scene = Scene(x, base, self.hostile, every.to(torch.bool), draws, tick.index)
        return blocks.rows(attack.message(scene))

    def _faults(
        self,
        heard: Spoken,
        row: Tensor,
        came: Tensor,
        ends: Tensor,
        src: Tensor,
        dst: Tensor,
        now: _Broadcast,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the links lose or damage, and what is refused: (rows, row [E], arrived [E])."""
        links, seed = self.network.links, self.seed
        lost = links.lost(src, dst, seed, now.tick, now.hop, self.n + 1) & (src != dst)
        arrived = came & ~lost
        rows = heard.value
        sound = heard.sound[row] if len(heard.ids) else torch.zeros_like(came)
        refused = arrived & ~sound & ends
        arrived = arrived & sound
        damaged = links.damaged(src, dst, seed, now.tick, now.hop, self.n + 1) & came & ~lost
        if bool(damaged.any()):
            # Damaged messages are decoded as they arrive: refused, or believed if they still decode.
            hit = damaged.nonzero()[:, 0]
            at = row[hit]
            key = src[hit] * (self.n + 1) + dst[hit]
            frames = heard.frames
            data = links.damage(frames.data[at], frames.length[at], key, seed, now.tick)
            told = replace(now.draws, peers=heard.ids[at])
            broken = Frames(data, frames.length[at])
            decoded, whole = self.chain.decode(broken, now.dim, now.dtype, told, now.layout)
            if heard.reference is not None:
                decoded = decoded + heard.reference[at]
            decoded = torch.where(whole[:, None], decoded, torch.zeros_like(decoded))
            row = row.clone()
            row[hit] = torch.arange(len(hit)) + len(rows)
            arrived[hit] &= whole
            refused[hit] |= ~whole & ends[hit]
            rows = torch.cat([rows, decoded])
        if bool(refused.any()):
            self.refused.index_add_(0, src[refused], torch.ones_like(src[refused]))
        return rows, row, arrived

    # -- checkpoints -----------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, as named tensors."""
        held = {f"memory/{k}": v for k, v in self.memory.state.items()}
        held |= {f"meter/{k}": v for k, v in self.meter.state().items()}
        held |= {"now": self.clock.now, "seen": self.clock.seen}
        return held | {"refused": self.refused, "releases": self.releases}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`."""
        self.memory = Memory(self.n + 1)
        self.memory.state = {k[7:]: v for k, v in state.items() if k.startswith("memory/")}
        self.meter.restore({k[6:]: v for k, v in state.items() if k.startswith("meter/")})
        self.clock.now, self.clock.seen = state["now"], state["seen"]
        self.refused.copy_(state["refused"])
        self.releases.copy_(state["releases"])
