"""The exchange of one process: the verbs, for a block that holds all peers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from shoal.core import Draws, Graph, Inbox, Rule, RunFailed, Tick, Work

from .carrier import Carrier, Delivery
from .flat import pack, unpack
from .network import Network

__all__ = ["LocalExchange"]

Tree = TypeVar("Tree")


class LocalExchange:
    """Implements :class:`shoal.core.Net` for one block that holds all n peers.

    Args:
        network: the configuration.
        work: the open task; its ``spent`` drives simulated time, its ``layers`` the codecs that work
            layer by layer.
        hostile: bool [n].
    """

    def __init__(self, network: Network, work: Work, hostile: Tensor) -> None:
        self.network, self.work, self.n, self.seed = network, work, work.n, work.place.seed
        self.hostile = hostile
        self.carrier = Carrier(network, work, hostile)
        self.meter, self.clock = self.carrier.meter, self.carrier.clock
        self.fallbacks = 0
        self._matrices: dict[int, tuple[Graph, Tensor, Tensor]] = {}

    # -- the verbs ---------------------------------------------------------------------------------

    def mix(self, x: Tree, tick: Tick, *, hop: int = 0, channel: str = "x") -> Tree:
        packed = pack(x)
        graph = tick.graph
        sent = self.carrier.carry(packed, graph.src, graph.dst, tick, hop, channel)
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
            scalars = torch.sparse.mm(self._matrix(graph, scalars.dtype), scalars)
        return unpack(x, packed, flat, scalars)

    def gather(self, x: Tensor, tick: Tick, *, channel: str = "x") -> Inbox:
        graph = tick.graph
        sent = self.carrier.carry(pack(x), graph.src, graph.dst, tick, 0, channel)
        return self._inbox(sent, graph, x)

    def send(self, x: Tensor, tick: Tick, src: Tensor, dst: Tensor, *, channel: str = "x") -> Inbox:
        one = torch.ones(len(src), dtype=torch.float64)
        graph = Graph.of(self.n, src, dst, one, torch.zeros(self.n, dtype=torch.float64))
        sent = self.carrier.carry(pack(x), graph.src, graph.dst, tick, 0, channel)
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
        sent = self.carrier.carry(packed, src, dst, tick, 0, channel, base=known)
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
        sent = self.carrier.carry(pack(x), src, torch.full_like(src, self.n), tick, 0, channel)
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
        return self.carrier.objects(outbox, tick)

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
        return {**self.carrier.state(), "fallbacks": torch.tensor(self.fallbacks)}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.carrier.restore(state)
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

    def _inbox(self, sent: Delivery, graph: Graph, own: Tensor) -> Inbox:
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

    def _average(self, x: Tensor, sent: Delivery, graph: Graph, gamma: float) -> Tensor:
        """x_i + gamma sum_j w_ij (m_j - m_i): keeps the mean of x whatever the codec does."""
        if sent.rows is x and gamma == 1:
            return torch.sparse.mm(self._matrix(graph, x.dtype), x)
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
        self.carrier.count(src, dst, size)
        lost = self.network.links.lost(src, dst, self.seed, tick.index, 1, self.n + 1) & (src != dst)
        reached = to.clone()
        reached[dst[lost]] = False
        flat = torch.where(reached[:, None], value.flat, own.flat)
        scalars = None
        if value.scalars is not None and own.scalars is not None:
            scalars = torch.where(reached[:, None], value.scalars, own.scalars)
        return unpack(like, own, flat, scalars)
