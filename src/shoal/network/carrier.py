"""Carries messages from senders to receivers: adversary, wire, links, refusals, meter and clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from torch import Tensor

from shoal.core import Draws, Layout, Scene, Tick, Work
from shoal.wire.chain import Chain

from .flat import Packed
from .links import LinkClock
from .memory import Memory
from .meter import Meter
from .network import Network

__all__ = ["Carrier", "Delivery"]

MESSAGE_LIMIT = 1 << 24


@dataclass(frozen=True)
class Delivery:
    """What became of one broadcast.

    Args:
        rows: [R, D], messages as received: the senders' in their order, then damaged copies.
        row: int64 [E], the row that travelled each edge.
        arrived: bool [E], it came and was believed.
        spoken: [n, D], what each honest peer's listeners now hold of it (its own value elsewhere).
    """

    rows: Tensor
    row: Tensor
    arrived: Tensor
    spoken: Tensor


class Carrier:
    """What lies between peers, with all that has to be remembered about it.

    Args:
        network: the configuration.
        work: the open task; its ``spent`` drives simulated time, its ``layers`` the codecs that work
            layer by layer.
        hostile: bool [n].
    """

    def __init__(self, network: Network, work: Work, hostile: Tensor) -> None:
        n, seed = work.n, work.place.seed
        self.network, self.work, self.n, self.seed, self.hostile = network, work, n, seed, hostile
        self.layout: Layout = getattr(work, "layers", [])
        self.chain = Chain(network.codec)
        self.meter = Meter(n + 1)
        self.memory = Memory(n + 1)
        self.clock = LinkClock(network.links, network.speed(n, seed), seed)
        self.refused = torch.zeros(n + 1, dtype=torch.int64)
        self.releases = torch.zeros(n, dtype=torch.int64)
        self._turn = (-1, 0)

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, as named tensors."""
        held = {f"memory/{k}": v for k, v in self.memory.state.items()}
        held |= {f"meter/{k}": v for k, v in self.meter.state().items()}
        held |= {"now": self.clock.now, "seen": self.clock.seen}
        return held | {"refused": self.refused, "releases": self.releases}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.memory.state = {k[7:]: v for k, v in state.items() if k.startswith("memory/")}
        self.meter.restore({k[6:]: v for k, v in state.items() if k.startswith("meter/")})
        self.clock.now, self.clock.seen = state["now"], state["seen"]
        self.refused.copy_(state["refused"])
        self.releases.copy_(state["releases"])

    def count(self, src: Tensor, dst: Tensor, size: Tensor) -> None:
        """Meter messages of ``size`` bytes [E] and let them take their time; none to oneself."""
        away = src != dst
        self.meter.count(src[away], dst[away], size[away])
        if not self.network.events:  # event clocks say themselves when things happen
            self.clock.work(self.work.spent)
            self.clock.messages(src[away], dst[away], size[away])

    def carry(
        self,
        packed: Packed,
        src: Tensor,
        dst: Tensor,
        tick: Tick,
        hop: int,
        channel: str,
        base: Tensor | None = None,
    ) -> Delivery:
        """One message per sender, through wire and links, along the edges ``src -> dst``."""
        flat = packed.flat
        network, links, chain = self.network, self.network.links, self.chain
        speaking = torch.zeros(self.n, dtype=torch.bool)
        speaking[src] = True
        senders = speaking.nonzero()[:, 0]
        everyone = len(senders) == self.n
        spoken = self._speak(flat, base, speaking, tick)
        message = spoken if everyone else spoken[senders]
        dim, dtype = flat.shape[1], flat.dtype

        # What both ends know already is not sent again.
        reference: Tensor | None = None
        residual: Tensor | None = None
        pooled = base is not None
        if chain.incremental or (pooled and bool(network.codec)):
            if pooled:
                assert base is not None
                reference = base if everyone else base[senders]
                if chain.incremental and network.error_feedback:
                    residual = self.memory.rows("residual", channel, self.n, dim, dtype)
            else:
                replica = self.memory.rows("replica", channel, self.n, dim, dtype)
                reference = replica if everyone else replica[senders]
        delta = message if reference is None else message - reference
        if residual is not None:
            delta = delta + residual[senders]
        # Each hop of a tick is a message of its own and has its own random numbers.
        draws = Draws(self.seed, f"wire/{channel}/{hop}", senders, tick.index)
        layout = self.layout if sum(c.stop - c.start for _, c, _ in self.layout) == dim else []
        frames, decoded, sound = chain.roundtrip(delta, draws, layout)
        if chain.noisy:
            self.releases[senders] += 1
        if residual is not None:
            left = torch.where(sound[:, None], delta - decoded, torch.zeros_like(delta))
            residual[senders] = left
        value = decoded if reference is None else reference + decoded

        position = torch.zeros(self.n, dtype=torch.int64)
        position[senders] = torch.arange(len(senders))
        row = position[src]
        size = frames.length[row] + packed.extra
        remembered = reference is not None and not pooled
        if remembered:
            # Who is out of step is sent the whole new replica.
            in_step = self.memory.in_step(channel, src, dst)
            size = torch.where(in_step, size, packed.extra + dim * flat.element_size())
            replica = self.memory.rows("replica", channel, self.n, dim, dtype)
            replica[senders] = torch.where(sound[:, None], value, replica[senders])
            value = torch.where(sound[:, None], value, torch.zeros_like(value))
        self.count(src, dst, size)

        lost = links.lost(src, dst, self.seed, tick.index, hop, self.n + 1) & (src != dst)
        arrived = sound[row] & ~lost
        damaged = links.damaged(src, dst, self.seed, tick.index, hop, self.n + 1) & ~lost
        if bool(damaged.any()):
            value, row, arrived = self._damage(
                frames, value, row, arrived, damaged, src, dst, draws, reference, layout, tick
            )
        if remembered:
            self.memory.spoke(channel, senders, src[arrived], dst[arrived])
        refused = ~sound[position[src]] & ~lost
        if bool(refused.any()):
            self.refused.index_add_(0, src[refused], torch.ones_like(src[refused]))
        own = flat if reference is None and not network.codec and spoken is flat else None
        if own is None:
            own = flat.clone()
            keep = sound & ~self.hostile[senders]
            own[senders[keep]] = value[: len(senders)][keep]
        return Delivery(value, row, arrived, own)

    def objects(self, outbox: Sequence[Mapping[int, Any]], tick: Tick) -> list[dict[int, Any]]:
        """Messages that are not tensors; see :meth:`shoal.core.Net.share`."""
        links = self.network.links
        graph = tick.graph
        up = set(zip(graph.src.tolist(), graph.dst.tolist(), strict=True))
        said = [(s, d, msgspec.msgpack.encode(m)) for s, box in enumerate(outbox) for d, m in box.items()]
        for s, d, _ in said:
            if (s, d) not in up:
                raise ValueError(f"peer {s} has no edge to {d} at tick {tick.index}")
        heard: list[dict[int, Any]] = [{} for _ in range(self.n)]
        if not said:
            return heard
        src = torch.tensor([s for s, _, _ in said])
        dst = torch.tensor([d for _, d, _ in said])
        size = torch.tensor([len(b) for _, _, b in said])
        self.count(src, dst, size)
        # Questions and answers of one tick meet their own luck: everyone makes the same calls in order.
        turn = self._turn[1] + 1 if self._turn[0] == tick.index else 0
        self._turn = (tick.index, turn)
        lost = links.lost(src, dst, self.seed, tick.index, turn, self.n + 1)
        bad = links.damaged(src, dst, self.seed, tick.index, turn, self.n + 1)
        order = torch.argsort(dst * self.n + src).tolist()
        for e in order:
            s, d, data = said[e]
            if lost[e]:
                continue
            if bad[e]:
                frame = torch.frombuffer(bytearray(data), dtype=torch.uint8)[None]
                key = torch.tensor([s * (self.n + 1) + d])
                data = links.damage(frame, size[e : e + 1], key, self.seed, tick.index)[0]
                data = bytes(data.tolist())
            try:
                if len(data) > MESSAGE_LIMIT:
                    raise msgspec.DecodeError("too long")
                heard[d][s] = msgspec.msgpack.decode(data)
            except (msgspec.DecodeError, UnicodeDecodeError):
                self.refused[s] += 1
        return heard

    def _speak(self, flat: Tensor, known: Tensor | None, speaking: Tensor, tick: Tick) -> Tensor:
        """What is really sent: hostile peers' rows replaced by their attack's."""
        attack = self.network.attack
        if attack is None or not bool((self.hostile & speaking).any()):
            return flat
        everyone = torch.arange(self.n)
        base = torch.zeros_like(flat) if known is None else known
        draws = Draws(self.seed, "attack", everyone, tick.index)
        return attack.message(Scene(flat, base, self.hostile, speaking, draws, tick.index))

    def _damage(
        self,
        frames: Any,
        value: Tensor,
        row: Tensor,
        arrived: Tensor,
        damaged: Tensor,
        src: Tensor,
        dst: Tensor,
        draws: Draws,
        reference: Tensor | None,
        layout: Any,
        tick: Tick,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Damaged messages are decoded as they arrive: refused, or believed if they still decode."""
        hit = damaged.nonzero()[:, 0]
        at = row[hit]
        key = src[hit] * (self.n + 1) + dst[hit]
        data = self.network.links.damage(frames.data[at], frames.length[at], key, self.seed, tick.index)
        told = Draws(draws.seed, draws.purpose, draws.peers[at], draws.tick)
        broken = type(frames)(data, frames.length[at])
        decoded, sound = self.chain.decode(broken, value.shape[1], value.dtype, told, layout)
        if reference is not None:
            decoded = decoded + reference[at]
        decoded = torch.where(sound[:, None], decoded, torch.zeros_like(decoded))
        self.refused.index_add_(0, src[hit[~sound]], torch.ones_like(hit[~sound]))
        row, arrived = row.clone(), arrived.clone()
        row[hit] = torch.arange(len(hit)) + len(value)
        arrived[hit] &= sound
        return torch.cat([value, decoded]), row, arrived
