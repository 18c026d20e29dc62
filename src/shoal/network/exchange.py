"""The exchange of one process: all peers' messages pass here, wire, link, meter and all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import torch
from torch import Tensor

from shoal.core import Draws, Graph, Inbox, Layout, Rule, RunFailed, Scene, Tick, Work
from shoal.wire.chain import Chain

from .flat import Packed, pack, unpack
from .links import LinkClock
from .memory import Memory
from .meter import Meter
from .network import Network

__all__ = ["LocalExchange"]

Tree = TypeVar("Tree")
MESSAGE_LIMIT = 1 << 24


@dataclass(frozen=True)
class _Delivery:
    """What became of one broadcast: rows as received, and for each edge its row and whether it came."""

    rows: Tensor
    row: Tensor
    arrived: Tensor
    spoken: Tensor


class LocalExchange:
    """Implements :class:`shoal.core.Net` for one block that holds all n peers.

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
        self.fallbacks = 0
        self._matrices: dict[int, tuple[Graph, Tensor, Tensor]] = {}

    # -- the verbs ---------------------------------------------------------------------------------

    def mix(self, x: Tree, tick: Tick, *, hop: int = 0, channel: str = "x") -> Tree:
        packed = pack(x)
        graph = tick.graph
        sent = self._transmit(packed, graph.src, graph.dst, tick, hop, channel)
        gamma = self.network.step_size
        if self.network.rule.plain:
            graph = graph.keep(sent.arrived)
            flat = self._average(packed.flat, sent, graph, gamma)
        else:
            inbox = self._inbox(sent, graph, packed.flat)
            received = inbox.mask.sum(1)
            short = ~self.network.rule.enough(received + 1, received) & (received > 0)
            self.fallbacks += int(short.sum())
            flat = self.network.rule(inbox)
            if gamma != 1:
                flat = packed.flat + gamma * (flat - packed.flat)
            graph = graph.keep(sent.arrived)
        scalars = packed.scalars
        if scalars is not None:
            scalars = torch.sparse.mm(self._matrix(graph)[1], scalars)
        return unpack(x, packed, flat, scalars)

    def gather(self, x: Tensor, tick: Tick, *, channel: str = "x") -> Inbox:
        graph = tick.graph
        sent = self._transmit(pack(x), graph.src, graph.dst, tick, 0, channel)
        return self._inbox(sent, graph, x)

    def send(self, x: Tensor, tick: Tick, src: Tensor, dst: Tensor, *, channel: str = "x") -> Inbox:
        one = torch.ones(len(src), dtype=torch.float64)
        graph = Graph.of(self.n, src, dst, one, torch.zeros(self.n, dtype=torch.float64))
        sent = self._transmit(pack(x), graph.src, graph.dst, tick, 0, channel)
        return self._inbox(sent, graph, x)

    def pool(
        self,
        x: Tree,
        tick: Tick,
        *,
        weight: Tensor | None = None,
        to: str = "server",
        base: Tree | None = None,
        held: Tree | None = None,
        rule: Rule | None = None,
        channel: str = "x",
    ) -> Tree:
        rule = rule or self.network.rule
        src = tick.active.nonzero()[:, 0]
        if weight is not None:
            src = src[weight[src] > 0]
        packed = pack(x)
        known = None if base is None else pack(base).flat
        before = None if held is None else pack(held)
        at = self.aggregator(tick) if to == "all" else self.n
        dst = torch.full_like(src, at)
        sent = self._transmit(packed, src, dst, tick, 0, channel, base=known)
        share = torch.ones(len(src)) if weight is None else weight[src]
        share = torch.where(sent.arrived, share.to(torch.float64), 0.0)
        total = share.sum()
        share = share / total if total > 0 else share
        inbox = Inbox(
            rows=sent.rows,
            index=sent.row[None],
            sender=src[None],
            mask=sent.arrived[None],
            weight=share[None].to(packed.flat.dtype),
            centre=None if before is None else before.flat,
        )
        if not total > 0:  # nobody was heard
            return x if to == "all" else self._unheard(held)
        flat = rule(inbox)
        scalars = None
        if packed.scalars is not None:
            scalars = share[None].to(packed.scalars.dtype) @ packed.scalars[src]
        result = unpack(x, packed, flat, scalars)
        return self._cast(result, tick, tick.active, x, at) if to == "all" else result

    def collect(self, x: Tensor, tick: Tick, *, held: Tensor, channel: str = "x") -> Tensor:
        src = tick.active.nonzero()[:, 0]
        sent = self._transmit(pack(x), src, torch.full_like(src, self.n), tick, 0, channel)
        table = held.clone()
        table[0, src[sent.arrived]] = sent.rows[sent.row[sent.arrived]]
        return table

    def cast(
        self,
        x: Tree,
        tick: Tick,
        *,
        to: Tensor | None = None,
        like: Tree,
        pick: Tensor | None = None,
    ) -> Tree:
        if pick is not None:
            assert isinstance(x, Tensor)
            x = x[0][pick]  # type: ignore[assignment]
        return self._cast(x, tick, tick.active if to is None else to, like, self.n)

    def share(self, outbox: Sequence[Mapping[int, Any]], tick: Tick) -> list[dict[int, Any]]:
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
        self._count(src, dst, size)
        lost = links.lost(src, dst, self.seed, tick.index, 0, self.n + 1)
        bad = links.damaged(src, dst, self.seed, tick.index, 0, self.n + 1)
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

    @property
    def hosts_server(self) -> bool:
        return True

    # -- what the runtime needs ----------------------------------------------------------------------

    def aggregator(self, tick: Tick) -> int:
        """The active peer that aggregates at this tick: everyone can tell from (seed, tick)."""
        active = tick.active.nonzero()[:, 0]
        if not len(active):
            return self.n
        draw = Draws(self.seed, "shared/aggregator", torch.zeros(1, dtype=torch.int64), tick.index)
        return int(active[draw.integers(len(active), 1)[0, 0]])

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, as named tensors."""
        held = {f"memory/{k}": v for k, v in self.memory.state.items()}
        held |= {f"meter/{k}": v for k, v in self.meter.state().items()}
        held |= {"now": self.clock.now, "seen": self.clock.seen}
        held |= {"fallbacks": torch.tensor(self.fallbacks)}
        return held | {"refused": self.refused, "releases": self.releases}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.memory.state = {k[7:]: v for k, v in state.items() if k.startswith("memory/")}
        self.meter.restore({k[6:]: v for k, v in state.items() if k.startswith("meter/")})
        self.clock.now, self.clock.seen = state["now"], state["seen"]
        self.refused, self.releases = state["refused"], state["releases"]
        self.fallbacks = int(state["fallbacks"])

    def settle(self, tick: Tick) -> float:
        """Close a tick; returns the simulated time at which its last peer was done, in seconds."""
        now = self.clock.now
        if self.network.events:
            now[:-1] = torch.maximum(now[:-1], tick.time)
        else:
            self.clock.work(self.work.spent)
        return float(now[:-1].max())

    # -- inside --------------------------------------------------------------------------------------

    @staticmethod
    def _unheard(held: Any) -> Any:
        if held is None:
            raise RunFailed("no message reached the aggregator, which holds nothing to go on with")
        return held

    def _count(self, src: Tensor, dst: Tensor, size: Tensor) -> None:
        self.clock.work(self.work.spent)
        away = src != dst
        self.meter.count(src[away], dst[away], size[away])
        self.clock.messages(src[away], dst[away], size[away])

    def _speak(self, flat: Tensor, known: Tensor | None, speaking: Tensor, tick: Tick) -> Tensor:
        """What is really sent: hostile peers' rows replaced by their attack's."""
        attack = self.network.attack
        if attack is None or not bool((self.hostile & speaking).any()):
            return flat
        everyone = torch.arange(self.n)
        base = torch.zeros_like(flat) if known is None else known
        draws = Draws(self.seed, "attack", everyone, tick.index)
        return attack.message(Scene(flat, base, self.hostile, speaking, draws, tick.index))

    def _transmit(
        self,
        packed: Packed,
        src: Tensor,
        dst: Tensor,
        tick: Tick,
        hop: int,
        channel: str,
        base: Tensor | None = None,
    ) -> _Delivery:
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
        self._count(src, dst, size)

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
        return _Delivery(value, row, arrived, own)

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

    def _inbox(self, sent: _Delivery, graph: Graph, own: Tensor) -> Inbox:
        edge, mask = graph.neighbours()
        if edge.shape[1] == 0:
            empty = edge.to(torch.bool)
            return Inbox(sent.rows, edge, edge, empty, edge.to(own.dtype), own,
                         torch.ones(self.n, dtype=own.dtype))  # fmt: skip
        mask = mask & sent.arrived[edge]
        weight = torch.where(mask, graph.weight[edge], 0.0)
        return Inbox(
            rows=sent.rows,
            index=torch.where(mask, sent.row[edge], 0),
            sender=torch.where(mask, graph.src[edge], -1),
            mask=mask,
            weight=weight.to(own.dtype),
            own=own,
            own_weight=graph.keep(sent.arrived).self_weight.to(own.dtype),
        )

    def _matrix(self, graph: Graph, rows: Tensor | None = None, width: int = 0) -> tuple[Graph, Tensor]:
        """W with its diagonal as CSR, kept for graphs that come again."""
        held = self._matrices.get(id(graph))
        if held is None or held[0] is not graph:
            self._matrices.clear()
            eye = torch.arange(graph.n)
            index = torch.stack([torch.cat([graph.dst, eye]), torch.cat([graph.src, eye])])
            values = torch.cat([graph.weight, graph.self_weight])
            full = torch.sparse_coo_tensor(index, values, (graph.n, graph.n), check_invariants=False)
            csr = full.coalesce().to_sparse_csr()
            held = self._matrices[id(graph)] = (graph, csr, csr.to(torch.float32))
        return graph, held[1]

    def _average(self, x: Tensor, sent: _Delivery, graph: Graph, gamma: float) -> Tensor:
        """x_i + gamma sum_j w_ij (m_j - m_i): keeps the mean of x whatever the codec does."""
        if sent.rows is x and gamma == 1:
            self._matrix(graph)
            matrix = self._matrices[id(graph)][1 if x.dtype == torch.float64 else 2]
            return torch.sparse.mm(matrix, x)
        receiver, row = graph.dst, sent.row[sent.arrived]
        weight = graph.weight.to(x.dtype)
        matrix = torch.sparse_coo_tensor(
            torch.stack([receiver, row]), weight, (self.n, len(sent.rows)), check_invariants=False
        ).to_sparse_csr()
        heard = torch.zeros(self.n, dtype=x.dtype).index_add_(0, receiver, weight)
        pull = torch.sparse.mm(matrix, sent.rows).addcmul_(sent.spoken, -heard[:, None])
        return pull.mul_(gamma).add_(x)

    def _cast(self, x: Tree, tick: Tick, to: Tensor, like: Tree, origin: int) -> Tree:
        """Down-messages travel uncompressed: one sender, and every peer starts from the same model."""
        value, own = pack(x), pack(like)
        dst = to.nonzero()[:, 0]
        src = torch.full_like(dst, origin)
        size = torch.full_like(dst, value.flat.shape[1] * value.flat.element_size() + value.extra)
        self._count(src, dst, size)
        lost = self.network.links.lost(src, dst, self.seed, tick.index, 1, self.n + 1) & (src != dst)
        reached = to.clone()
        reached[dst[lost]] = False
        flat = torch.where(reached[:, None], value.flat, own.flat)
        scalars = None
        if value.scalars is not None and own.scalars is not None:
            scalars = torch.where(reached[:, None], value.scalars, own.scalars)
        return unpack(like, own, flat, scalars)
