"""The exchange: the verbs, for a block of peers, all of them or one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from shoal.core import Draws, Graph, Inbox, Rule, RunFailed, Tick, Work, tree

from .carrier import Carrier, Delivery
from .flat import Packed, pack, unpack
from .network import Network
from .objects import Objects
from .parcel import Parcel, opened, sealed
from .port import Alone, Port
from .snapshot import joined, parted

__all__ = ["Exchange"]

Tree = TypeVar("Tree")


class Exchange:
    """Implements :class:`shoal.core.Net` for one block of peers.

    Args:
        network: the configuration.
        work: the open task; its ``spent`` drives simulated time, its ``layers`` the codecs that work
            layer by layer.
        hostile: bool [n].
        port: the door to the other blocks; default: this block holds all peers.
    """

    def __init__(self, network: Network, work: Work, hostile: Tensor, port: Port | None = None) -> None:
        self.network, self.work, self.n, self.seed = network, work, work.n, work.place.seed
        self.hostile = hostile
        self.port = port or Alone(work.n)
        self.carrier = Carrier(network, work, hostile, self.port)
        self.objects = Objects(self.carrier)
        self.blocks, self.meter, self.clock = self.carrier.blocks, self.carrier.meter, self.carrier.clock
        self.fallbacks = 0
        self._matrices: dict[int, tuple[Graph, Tensor, Tensor]] = {}
        self._views: tuple[Graph, Graph] | None = None

    # -- the verbs ---------------------------------------------------------------------------------

    def mix(self, x: Tree, tick: Tick, *, hop: int = 0, channel: str = "x") -> Tree:
        packed = pack(x)
        graph = tick.graph
        sent = self.carrier.carry(packed, graph.src, graph.dst, tick, hop, channel)
        view = self._view(graph)
        gamma = self.network.step_size
        if self.network.rule.plain:
            flat = self._average(packed.flat, sent, view, gamma)
        else:
            inbox = self._inbox(sent, view, packed.flat)
            received = inbox.mask.sum(1)
            short = ~self.network.rule.enough(received + 1, received) & (received > 0)
            self.fallbacks += int(short.sum())
            flat = self.network.rule(inbox)
            if gamma != 1:
                flat = packed.flat + gamma * (flat - packed.flat)
        scalars = packed.scalars
        if scalars is not None:
            assert sent.scalars is not None
            kept = view.keep(sent.arrived)
            if self.blocks.alone:
                scalars = torch.sparse.mm(self._matrix(kept, scalars.dtype), scalars)
            else:
                told = _csr(kept, sent.origin[sent.arrived], len(sent.scalars), scalars.dtype)
                scalars = torch.sparse.mm(told, sent.scalars).addcmul_(scalars, kept.self_weight[:, None])
        return unpack(x, packed, flat, scalars)

    def gather(self, x: Tensor, tick: Tick, *, channel: str = "x") -> Inbox:
        graph = tick.graph
        sent = self.carrier.carry(pack(x), graph.src, graph.dst, tick, 0, channel)
        return self._inbox(sent, self._view(graph), x)

    def send(self, x: Tensor, tick: Tick, src: Tensor, dst: Tensor, *, channel: str = "x") -> Inbox:
        one = torch.ones(len(src), dtype=torch.float64)
        graph = Graph.of(self.n, src, dst, one, torch.zeros(self.n, dtype=torch.float64))
        sent = self.carrier.carry(pack(x), graph.src, graph.dst, tick, 0, channel)
        return self._inbox(sent, self._view(graph), x)

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
        packed = pack(x)
        known = None if base is None else pack(base).flat
        at = self.aggregator(tick) if to == "all" else self.n
        src = self._speakers(tick, weight)
        dst = torch.full_like(src, at)
        told = None if weight is None else weight.to(torch.float64)
        # One program may add up where the terms are; strangers' messages go to whom they are for.
        apart = rule.plain and self.port.trusted and not self.blocks.alone
        sent = self.carrier.carry(packed, src, dst, tick, 0, channel, known, told, at_home=apart)
        share = torch.ones(len(sent.row)) if told is None else self._told(sent)
        share = torch.where(sent.arrived, share.to(torch.float64), 0.0)
        here = bool(self.blocks.mine(torch.tensor([at]))[0])
        if apart:
            result = self._reduced(packed, sent, share, at)
        elif here:
            total = share.sum()
            share = share / total if total > 0 else share
            senders = src if sent.edges is None else src[sent.edges]
            centre = None if held is None else pack(held).flat
            result = None
            if total > 0:
                inbox = Inbox(
                    rows=sent.rows,
                    index=sent.row[None],
                    sender=senders[None],
                    mask=sent.arrived[None],
                    weight=share[None].to(packed.flat.dtype),
                    centre=centre,
                )
                scalars = sent.scalars
                if scalars is not None:
                    scalars = share[None] @ scalars[sent.origin]
                result = rule(inbox), scalars
        else:
            result = None
        if to == "all":
            value = None if result is None else unpack(x, packed, *result)
            return self._cast(value, tick, tick.active, x, at)
        if result is not None:
            return unpack(x, packed, *result)
        return self._unheard(held) if here else tree.take(x, slice(0, 0))

    def collect(self, x: Tensor, tick: Tick, *, held: Tensor, channel: str = "x") -> Tensor:
        src = tick.active.nonzero()[:, 0]
        sent = self.carrier.carry(pack(x), src, torch.full_like(src, self.n), tick, 0, channel)
        table = held.clone()
        if len(table):
            senders = src if sent.edges is None else src[sent.edges]
            table[0, senders[sent.arrived]] = sent.rows[sent.row[sent.arrived]]
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
        value: Any = x
        if pick is not None and self.hosts_server:
            assert isinstance(x, Tensor)
            value = x[0]
        return self._cast(
            value if self.hosts_server else None,
            tick,
            tick.active if to is None else to,
            like,
            self.n,
            pick,
        )

    def share(self, outbox: Sequence[Mapping[int, Any]], tick: Tick) -> list[dict[int, Any]]:
        return self.objects.share(outbox, tick)

    @property
    def hosts_server(self) -> bool:
        return self.blocks.hosts_server

    # -- what the runtime needs ----------------------------------------------------------------------

    def aggregator(self, tick: Tick) -> int:
        """The active peer that aggregates at this tick: everyone can tell from (seed, tick)."""
        active = tick.active.nonzero()[:, 0]
        if not len(active):
            return self.n
        draw = Draws(self.seed, "shared/aggregator", torch.zeros(1, dtype=torch.int64), tick.index)
        return int(active[draw.integers(len(active), 1)[0, 0]])

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, as named tensors: this block's part of it."""
        return {**self.carrier.state(), "fallbacks": torch.tensor(self.fallbacks)}

    @staticmethod
    def joined(states: Sequence[dict[str, Tensor]], starts: Sequence[int]) -> dict[str, Tensor]:
        """The blocks' parts as the state of one block of all peers."""
        return joined(states, starts)

    def restore(self, state: dict[str, Tensor], part: bool = False) -> None:
        """Go on from the state of a block of all peers, or from this block's ``part`` of it."""
        if not part:
            state = parted(state, self.blocks)
        self.carrier.restore(state)
        self.fallbacks = int(state["fallbacks"])

    def settle(self, tick: Tick) -> float:
        """Close a tick; returns the simulated time at which the block's last peer was done, in s."""
        if self.network.events:
            now, here = self.clock.now, self.clock.peers
            now[here] = torch.maximum(now[here], self.blocks.rows(tick.time))
        else:
            self.clock.work(self.work.spent)
        return self.clock.latest

    # -- inside --------------------------------------------------------------------------------------

    def _speakers(self, tick: Tick, weight: Tensor | None) -> Tensor:
        """Who may speak: the active peers, of this block's only those that weigh anything."""
        src = tick.active.nonzero()[:, 0]
        if weight is None:
            return src
        own = self.blocks.mine(src)
        heavy = torch.zeros_like(own)
        heavy[own] = weight[src[own] - self.blocks.start] > 0
        return src[~own | heavy]

    @staticmethod
    def _told(sent: Delivery) -> Tensor:
        assert sent.weight is not None
        if not len(sent.weight):
            return torch.zeros(len(sent.row), dtype=torch.float64)
        return sent.weight[sent.origin]

    def _reduced(
        self, packed: Packed, sent: Delivery, share: Tensor, at: int
    ) -> tuple[Tensor, Tensor | None] | None:
        """The weighted mean over all blocks, at the block of the node ``at``; None elsewhere."""
        total = share.sum()[None]
        flat = torch.zeros(1, packed.flat.shape[1], dtype=packed.flat.dtype)
        if len(sent.row):
            flat.index_add_(0, torch.zeros_like(sent.row), _scaled(sent.rows[sent.row], share))
        parts = {"flat": flat, "total": total}
        if packed.scalars is not None:
            assert sent.scalars is not None
            parts["scalars"] = share[None] @ sent.scalars[sent.origin]
        parts["left"] = torch.tensor([sent.left], dtype=torch.float64)
        parts["inward"] = torch.tensor([sent.inward])
        home, here = int(self.blocks.home[at]), self.blocks.here
        if here != home:
            self.port.swap({home: sealed(Parcel(parts))}, [])
            return None
        others = [b for b in range(self.blocks.count) if b != here]
        got = {b: opened(data).tensors for b, data in self.port.swap({}, others).items()}
        got[here] = parts
        terms = [got[b] for b in sorted(got)]
        inward = sum(int(t["inward"]) for t in terms)
        late = torch.stack([t["left"] for t in terms]).max()
        if inward and not self.network.events:
            self.clock.arrive(torch.tensor([at]), late[None], inward if at == self.n else 0)
        total = torch.stack([t["total"] for t in terms]).sum()
        if not total > 0:
            return None
        flat = torch.stack([t["flat"] for t in terms]).sum(0).div_(total)
        scalars = None
        if packed.scalars is not None:
            scalars = torch.stack([t["scalars"] for t in terms]).sum(0) / total
        return flat, scalars

    @staticmethod
    def _unheard(held: Any) -> Any:
        if held is None:
            raise RunFailed("no message reached the aggregator, which holds nothing to go on with")
        return held

    def _view(self, graph: Graph) -> Graph:
        """The edges that end in this block: senders by number, receivers by row."""
        if self.blocks.alone:
            return graph
        if self._views is None or self._views[0] is not graph:
            into = self.blocks.mine(graph.dst)
            view = Graph(
                self.blocks.size,
                graph.src[into],
                graph.dst[into] - self.blocks.start,
                graph.weight[into],
                self.blocks.rows(graph.self_weight),
            )
            self._views = (graph, view)
        return self._views[1]

    def _inbox(self, sent: Delivery, view: Graph, own: Tensor) -> Inbox:
        edge, mask = view.neighbours()
        if edge.shape[1] == 0:
            empty = edge.to(torch.bool)
            return Inbox(sent.rows, edge, edge, empty, edge.to(own.dtype), own,
                         torch.ones(self.blocks.size, dtype=own.dtype))  # fmt: skip
        mask = mask & sent.arrived[edge]
        weight = torch.where(mask, view.weight[edge], 0.0)
        return Inbox(
            rows=sent.rows,
            index=torch.where(mask, sent.row[edge], 0),
            sender=torch.where(mask, view.src[edge], -1),
            mask=mask,
            weight=weight.to(own.dtype),
            own=own,
            own_weight=view.keep(sent.arrived).self_weight.to(own.dtype),
        )

    def _matrix(self, graph: Graph, dtype: torch.dtype) -> Tensor:
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
        return held[1] if dtype == torch.float64 else held[2]

    def _average(self, x: Tensor, sent: Delivery, view: Graph, gamma: float) -> Tensor:
        """x_i + gamma sum_j w_ij (m_j - m_i): keeps the mean of x whatever the codec does."""
        kept = view.keep(sent.arrived)
        if self.blocks.alone and sent.rows is x and gamma == 1:
            return torch.sparse.mm(self._matrix(kept, x.dtype), x)
        matrix = _csr(kept, sent.row[sent.arrived], len(sent.rows), x.dtype)
        weight = kept.weight.to(x.dtype)
        heard = torch.zeros(self.blocks.size, dtype=x.dtype).index_add_(0, kept.dst, weight)
        pull = torch.sparse.mm(matrix, sent.rows).addcmul_(sent.spoken, -heard[:, None])
        return pull.mul_(gamma).add_(x)

    def _cast(
        self, x: Any, tick: Tick, to: Tensor, like: Tree, origin: int, pick: Tensor | None = None
    ) -> Tree:
        """Down-messages travel uncompressed: one sender, and every peer starts from the same model.

        Args:
            x: at the block of ``origin`` the value [1, ...], or with ``pick`` the versions [V, D]; None:
                there is nothing to say, or it is said elsewhere.
        """
        blocks, own = self.blocks, pack(like)
        home = int(blocks.home[origin])
        value = None if x is None else pack(x)
        dst = to.nonzero()[:, 0]
        which = torch.zeros_like(dst) if pick is None else pick[dst]
        left = self.clock.now[origin]
        if value is not None:
            src = torch.full_like(dst, origin)
            size = torch.full_like(dst, value.flat.shape[1] * value.flat.element_size() + value.extra)
            left = self.carrier.sent(src, dst, size)[origin]
        if not blocks.alone:
            told = None if value is None else (value, left)
            received = self._hand_down(told, home, dst, which, own)
            if received is None:
                return like
            value, left, which = received
            dst = dst[blocks.mine(dst)]
        if value is None or not len(dst):
            return like
        src = torch.full_like(dst, origin)
        away = src != dst
        if not self.network.events:
            self.clock.arrive(dst[away], left.expand(int(away.sum())), 0)
        lost = self.network.links.lost(src, dst, self.seed, tick.index, 1, self.n + 1) & away
        at = dst[~lost] - blocks.start
        flat, rows = own.flat.clone(), which[~lost]
        flat[at] = value.flat[rows]
        scalars = own.scalars
        if value.scalars is not None and scalars is not None:
            scalars = scalars.clone()
            scalars[at] = value.scalars[rows]
        return unpack(like, own, flat, scalars)

    def _hand_down(
        self, told: tuple[Packed, Tensor] | None, home: int, dst: Tensor, which: Tensor, own: Packed
    ) -> tuple[Packed, Tensor, Tensor] | None:
        """Each block gets the versions that its peers ``dst`` pick: (value, left, which of them)."""
        blocks = self.blocks
        lives = blocks.home[dst]
        mine = which[lives == blocks.here]
        if blocks.here == home:
            out = {}
            for block in torch.unique(lives).tolist():
                if block == home:
                    continue
                parcel = Parcel({})
                if told is not None:
                    versions = torch.unique(which[lives == block])
                    parts = {"flat": told[0].flat[versions], "left": told[1][None]}
                    if told[0].scalars is not None:
                        parts["scalars"] = told[0].scalars[versions]
                    parcel = Parcel(parts)
                out[block] = sealed(parcel)
            self.port.swap(out, [])
            if told is not None and not self.port.trusted:
                for row in told[0].flat:
                    self.carrier.known.add(row)
            return None if told is None else (told[0], told[1], mine)
        got = self.port.swap({}, [home] if len(mine) else [])
        versions, number = torch.unique(mine, return_inverse=True)
        for block, data in got.items():
            try:
                t = opened(data).tensors
                if not t:
                    return None
                flat, left, scalars = t.get("flat"), t.get("left"), t.get("scalars")
                shape = (len(versions), own.flat.shape[1])
                if flat is None or flat.shape != shape or flat.dtype != own.flat.dtype or left is None:
                    raise ValueError("a model of another form")
                if not bool(torch.isfinite(flat).all()):
                    raise ValueError("a model that is not finite")
                wanted = None if own.scalars is None else (len(versions), own.scalars.shape[1])
                if wanted is not None and (scalars is None or scalars.shape != wanted):
                    raise ValueError("numbers of another form")
            except ValueError as error:
                self.port.refuse(block, str(error))
                return None
            if not self.port.trusted:
                for row in flat:
                    self.carrier.known.add(row)
            return Packed(flat, scalars, own.extra), left[0], number
        return None


def _csr(view: Graph, row: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """The weights of the view's edges as a matrix [P, rows], edge e in column row_e."""
    return torch.sparse_coo_tensor(
        torch.stack([view.dst, row]), view.weight.to(dtype), (view.n, rows), check_invariants=False
    ).to_sparse_csr()


def _scaled(rows: Tensor, share: Tensor) -> Tensor:
    return rows * share[:, None].to(rows.dtype)
