"""The exchange: the verbs, for a block of peers, all of them or one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from shoal.core import Graph, Inbox, Rule, Tick, Work

from .carrier import Carrier, Delivery
from .flat import pack, unpack
from .network import Network
from .objects import Objects
from .pooling import Asked, Pooling
from .port import Alone, Port
from .snapshot import joined, parted
from .trade import Edges

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
        self.pooling = Pooling(self.carrier)
        self.objects = Objects(self.carrier)
        self.blocks, self.meter, self.clock = self.carrier.blocks, self.carrier.meter, self.carrier.clock
        self.fallbacks = 0
        self._matrices: dict[int, tuple[Graph, Tensor, Tensor]] = {}
        self._views: tuple[Graph, Graph] | None = None

    # -- the verbs ---------------------------------------------------------------------------------

    def mix(self, x: Tree, tick: Tick, *, hop: int = 0, channel: str = "x") -> Tree:
        packed = pack(x)
        graph = tick.graph
        sent = self.carrier.carry(packed, Edges(graph.src, graph.dst), tick, hop, channel)
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
        sent = self.carrier.carry(pack(x), Edges(graph.src, graph.dst), tick, 0, channel)
        return self._inbox(sent, self._view(graph), x)

    def send(self, x: Tensor, tick: Tick, src: Tensor, dst: Tensor, *, channel: str = "x") -> Inbox:
        edges = Edges(src, dst).sorted(self.n + 1)
        sent = self.carrier.carry(pack(x), edges, tick, 0, channel, among=tick.graph)
        one = torch.ones(len(sent.edges.src), dtype=torch.float64)
        nothing = torch.zeros(self.blocks.size, dtype=torch.float64)
        start = self.blocks.start
        view = Graph(self.blocks.size, sent.edges.src, sent.edges.dst - start, one, nothing)
        return self._inbox(sent, view, x)

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
        told = Asked(tick, rule or self.network.rule, weight, to == "all", channel)
        return self.pooling.pool(x, told, base, held)

    def collect(self, x: Tensor, tick: Tick, *, held: Tensor, channel: str = "x") -> Tensor:
        return self.pooling.collect(x, tick, held, channel)

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
        to = tick.active if to is None else to
        return self.pooling.cast(value if self.hosts_server else None, tick, to, like, self.n, pick)

    def share(self, outbox: Sequence[Mapping[int, Any]], tick: Tick) -> list[dict[int, Any]]:
        return self.objects.share(outbox, tick)

    @property
    def hosts_server(self) -> bool:
        return self.blocks.hosts_server

    # -- what the runtime needs ----------------------------------------------------------------------

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


def _csr(view: Graph, row: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """The weights of the view's edges as a matrix [P, rows], edge e in column row_e."""
    return torch.sparse_coo_tensor(
        torch.stack([view.dst, row]), view.weight.to(dtype), (view.n, rows), check_invariants=False
    ).to_sparse_csr()
