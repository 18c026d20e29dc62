"""Carries messages from senders to receivers: adversary, wire, links, refusals, meter and clock."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shoal.core import BadInput, Draws, Frames, Graph, Layout, Scene, Tick, Work
from shoal.wire.chain import Chain

from .flat import Packed
from .links import LinkClock
from .memory import Memory
from .meter import Meter
from .network import Network
from .parcel import Parcel, opened, sealed
from .port import Blocks, Port
from .remote import Spoken, merge
from .trade import Broadcast, Edges, Trade

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
        edges: E edges that end here (of sums formed at home: that start here).
        left: when the last message had left; ``inward``: their bytes (for sums formed at home).
    """

    rows: Tensor
    row: Tensor
    origin: Tensor
    arrived: Tensor
    spoken: Tensor
    edges: Edges
    scalars: Tensor | None = None
    weight: Tensor | None = None
    left: float = 0.0
    inward: int = 0


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
        self.trade = Trade(port, self.blocks, network, self.memory, self.refused)
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
        self.elapse()
        return self.clock.now if self.network.events else self.clock.leave(src[away], size[away])

    def elapse(self) -> None:
        """Let the time of this block's local work pass, before anything is sent or awaited."""
        if not self.network.events:  # event clocks say themselves when things happen
            self.clock.work(self.work.spent)

    def carry(
        self,
        packed: Packed,
        edges: Edges,
        tick: Tick,
        hop: int,
        channel: str,
        base: Tensor | None = None,
        weight: Tensor | None = None,
        mute: Tensor | None = None,
        among: Graph | None = None,
        at_home: bool = False,
    ) -> Delivery:
        """One message per sender, through wire and links, along the edges.

        Args:
            edges: of other blocks' senders all along which they may speak; along which they did is
                learned from what came.
            base: [P, D], what both ends know already; then only the difference is encoded.
            weight: float64 [P], told along with the message.
            mute: bool [P], who says nothing although it has edges; others cannot know that.
            among: the edges are what this block knows of its own peers, and others may have more that
                end here, along the edges of this graph.
            at_home: nothing leaves the block, and the delivery is that of the edges that start here:
                for sums that are formed where the terms are.
        """
        blocks = self.blocks
        to, heard_of = self._routes(edges, among)
        if mute is not None:
            silent = blocks.mine(edges.src)
            silent[silent.clone()] = mute[edges.src[silent] - blocks.start]
            edges = edges.take(~silent)
        own = edges if blocks.alone else edges.take(blocks.mine(edges.src))
        mine, now, size, spoken = self._speak(
            packed, own, tick, hop, channel, base, weight, among is not None
        )

        heard = mine
        if at_home:
            edges = own
        elif not blocks.alone:
            said, told = self.trade.swap(mine, own, to, heard_of, now)
            heard = merge([mine, *said], frames=self.network.links.corruption > 0)
            # A sender remembers who is in step, so it follows its own messages to other blocks too.
            ends = blocks.mine(edges.dst)
            edges = edges.take(ends if now.replica is None else ends | blocks.mine(edges.src))
            if told:
                every = [edges, *told]
                both = Edges(torch.cat([e.src for e in every]), torch.cat([e.dst for e in every]))
                edges = both.sorted(self.n + 1)
        position = torch.full((self.n + 1,), -1, dtype=torch.int64)
        position[heard.ids] = torch.arange(len(heard.ids))
        row = position[edges.src]
        came, origin = row >= 0, row.clamp(min=0)
        ends = came if blocks.alone or at_home else came & blocks.mine(edges.dst)
        rows, row, arrived = self._faults(heard, origin, came, ends, edges, now)

        away = ends & (edges.src != edges.dst)
        late, inward = 0.0, 0
        if at_home:
            leaving = mine.left[origin[away]]
            late = float(leaving.max()) if len(leaving) else 0.0
            inward = int(size[own.src != own.dst].sum())
        elif not self.network.events:
            inward = int(heard.cost[origin[away & (edges.dst == self.n)]].sum())
            self.clock.arrive(edges.dst[away], heard.left[origin[away]], inward)
        if now.replica is not None:
            mark = arrived if blocks.alone else arrived & blocks.mine(edges.src)
            self.memory.spoke(channel, mine.ids, edges.src[mark], edges.dst[mark])
            if not blocks.alone and not at_home:
                kept = blocks.mine(edges.dst)
                edges, row, origin, arrived = edges.take(kept), row[kept], origin[kept], arrived[kept]
        return Delivery(
            rows, row, origin, arrived, spoken, edges, heard.scalars, heard.weight, late, inward
        )

    # -- speaking ------------------------------------------------------------------------------------

    def _routes(self, edges: Edges, among: Graph | None) -> tuple[Tensor, Tensor]:
        """The blocks that wait for a parcel from here, and the senders elsewhere that may send one."""
        blocks = self.blocks
        if blocks.alone:
            return edges.src[:0], edges.src[:0]
        src, dst = edges.src, edges.dst
        if among is not None:
            src, dst = torch.cat([src, among.src]), torch.cat([dst, among.dst])
        to = torch.unique(blocks.home[dst[blocks.mine(src)]])
        heard = torch.unique(src[blocks.mine(dst) & ~blocks.mine(src)])
        return to, heard

    def _speak(
        self,
        packed: Packed,
        own: Edges,
        tick: Tick,
        hop: int,
        channel: str,
        base: Tensor | None,
        weight: Tensor | None,
        told: bool,
    ) -> tuple[Spoken, Broadcast, Tensor, Tensor]:
        """This block's messages, encoded, metered and remembered.

        Returns:
            (the messages, the broadcast, the bytes of each edge, what listeners hold [P, D]).
        """
        flat, blocks = packed.flat, self.blocks
        dim, dtype = flat.shape[1], flat.dtype
        speaking = torch.zeros(blocks.size, dtype=torch.bool)
        speaking[own.src - blocks.start] = True
        local = speaking.nonzero()[:, 0]
        senders = local + blocks.start
        everyone = len(local) == blocks.size
        uttered = self._utter(flat, base, speaking, tick)
        message = uttered if everyone else uttered[local]

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
        sound = self.network.bounded(value, sound)

        position = torch.zeros(self.n + 1, dtype=torch.int64)
        position[senders] = torch.arange(len(senders))
        size = frames.length[position[own.src]] + packed.extra
        if replica is not None:
            # Who is out of step is sent the whole new replica.
            for block in self.port.missed():
                self.memory.forget(block, (blocks.home == block).nonzero()[:, 0])
            in_step = self.memory.in_step(channel, own.src, own.dst)
            size = torch.where(in_step, size, packed.extra + dim * flat.element_size())
            assert reference is not None
            replica[local] = torch.where(sound[:, None], value, reference)
        if replica is not None or self.network.norm is not None:
            value = torch.where(sound[:, None], value, torch.zeros_like(value))
        left = self.sent(own.src, own.dst, size)

        scalars = None if packed.scalars is None else packed.scalars[local]
        cost = torch.zeros(len(senders), dtype=torch.int64)
        up = own.dst == self.n
        cost[position[own.src[up]]] = size[up]
        mine = Spoken(
            senders, frames, value, sound, reference, left[senders], cost, scalars,
            None if weight is None else weight[local],
        )  # fmt: skip
        now = Broadcast(
            tick.index, hop, channel, draws, layout, dim, dtype, 0 if scalars is None else scalars.shape[1],
            weight is not None, base, before, replica, told,
        )  # fmt: skip
        spoken = flat
        if reference is not None or self.network.codec or uttered is not flat:
            spoken = flat.clone()
            keep = sound & ~blocks.rows(self.hostile)[local]
            spoken[local[keep]] = value[keep]
        return mine, now, size, spoken

    def _utter(self, flat: Tensor, known: Tensor | None, speaking: Tensor, tick: Tick) -> Tensor:
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

    # -- links ---------------------------------------------------------------------------------------

    def _faults(
        self, heard: Spoken, row: Tensor, came: Tensor, ends: Tensor, edges: Edges, now: Broadcast
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the links lose or damage, and what is refused: (rows, row [E], arrived [E])."""
        links, seed, src, dst = self.network.links, self.seed, edges.src, edges.dst
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
            assert frames is not None
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
        self.memory = self.trade.memory = Memory(self.n + 1)
        self.memory.state = {k[7:]: v for k, v in state.items() if k.startswith("memory/")}
        self.meter.restore({k[6:]: v for k, v in state.items() if k.startswith("meter/")})
        self.clock.now, self.clock.seen = state["now"], state["seen"]
        self.refused.copy_(state["refused"])
        self.releases.copy_(state["releases"])
