"""The verbs that lead through one peer: many messages up to whoever aggregates, one model down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from shoal.core import Draws, Inbox, Rule, RunFailed, Tick, tree

from .carrier import Carrier, Delivery
from .flat import Packed, pack, unpack
from .parcel import Parcel, opened, sealed
from .trade import Edges

__all__ = ["Asked", "Pooling"]

Tree = TypeVar("Tree")
_Result = tuple[Tensor, Tensor | None] | None
"""The aggregate [1, D] and its single numbers, or None: nobody was heard, or it is made elsewhere."""


@dataclass(frozen=True)
class Asked:
    """One call of ``pool``; see :meth:`shoal.core.Net.pool`."""

    tick: Tick
    rule: Rule
    weight: Tensor | None
    everyone: bool
    channel: str


class Pooling:
    """``pool``, ``collect`` and ``cast`` for one block of peers.

    Args:
        carrier: carries the messages.
    """

    def __init__(self, carrier: Carrier) -> None:
        self.carrier, self.network = carrier, carrier.network
        self.blocks, self.port, self.clock = carrier.blocks, carrier.port, carrier.clock
        self.n, self.seed = carrier.n, carrier.seed

    def aggregator(self, tick: Tick) -> int:
        """The active peer that aggregates at this tick: everyone can tell from (seed, tick)."""
        active = tick.active.nonzero()[:, 0]
        if not len(active):
            return self.n
        draw = Draws(self.seed, "shared/aggregator", torch.zeros(1, dtype=torch.int64), tick.index)
        return int(active[draw.integers(len(active), 1)[0, 0]])

    # -- up --------------------------------------------------------------------------------------------

    def pool(self, x: Tree, asked: Asked, base: Tree | None, held: Tree | None) -> Tree:
        """The aggregate: with leading axis A at the server, or at every active peer."""
        packed, weight, tick = pack(x), asked.weight, asked.tick
        known = None if base is None else pack(base).flat
        at = self.aggregator(tick) if asked.everyone else self.n
        src = tick.active.nonzero()[:, 0]
        # One program may add up where the terms are; strangers' messages go to whom they are for.
        apart = asked.rule.plain and self.port.trusted and not self.blocks.alone
        sent = self.carrier.carry(
            packed,
            Edges(src, torch.full_like(src, at)),
            tick,
            0,
            asked.channel,
            base=known,
            weight=None if weight is None else weight.to(torch.float64),
            mute=None if weight is None else ~(weight > 0),
            at_home=apart,
        )
        here = bool(self.blocks.mine(torch.tensor([at]))[0])
        result: _Result = None
        if apart:
            result = self._reduced(packed, sent, at)
        elif here:
            result = self._aggregated(packed, sent, asked.rule, None if held is None else pack(held).flat)
        if asked.everyone:
            value = None if result is None else unpack(x, packed, *result)
            return self.cast(value, tick, tick.active, x, at)
        if result is not None:
            return unpack(x, packed, *result)
        if not here:
            return tree.take(x, slice(0, 0))
        if held is None:
            raise RunFailed("no message reached the aggregator, which holds nothing to go on with")
        return held

    def collect(self, x: Tensor, tick: Tick, held: Tensor, channel: str) -> Tensor:
        """The server's table with the rows of those who were heard replaced."""
        src = tick.active.nonzero()[:, 0]
        sent = self.carrier.carry(pack(x), Edges(src, torch.full_like(src, self.n)), tick, 0, channel)
        table = held.clone()
        if len(table):
            table[0, sent.edges.src[sent.arrived]] = sent.rows[sent.row[sent.arrived]]
        return table

    @staticmethod
    def _shares(sent: Delivery) -> Tensor:
        """The relative weight of each message that came: float64 [E]."""
        told = torch.ones(len(sent.row), dtype=torch.float64)
        if sent.weight is not None:
            told = sent.weight[sent.origin] if len(sent.weight) else torch.zeros_like(told)
        return torch.where(sent.arrived, told, 0.0)

    def _aggregated(self, packed: Packed, sent: Delivery, rule: Rule, centre: Tensor | None) -> _Result:
        share = self._shares(sent)
        total = share.sum()
        if not total > 0:
            return None
        share = share / total
        inbox = Inbox(
            rows=sent.rows,
            index=sent.row[None],
            sender=sent.edges.src[None],
            mask=sent.arrived[None],
            weight=share[None].to(packed.flat.dtype),
            centre=centre,
        )
        scalars = None if sent.scalars is None else share[None] @ sent.scalars[sent.origin]
        return rule(inbox), scalars

    def _reduced(self, packed: Packed, sent: Delivery, at: int) -> _Result:
        """The weighted mean over all blocks, at the block of the node ``at``; None elsewhere."""
        share = self._shares(sent)
        flat = torch.zeros(1, packed.flat.shape[1], dtype=packed.flat.dtype)
        if len(sent.row):
            rows = sent.rows[sent.row] * share[:, None].to(packed.flat.dtype)
            flat.index_add_(0, torch.zeros_like(sent.row), rows)
        parts = {
            "flat": flat,
            "total": share.sum()[None],
            "left": torch.tensor([sent.left], dtype=torch.float64),
            "inward": torch.tensor([sent.inward]),
        }
        if sent.scalars is not None:
            parts["scalars"] = share[None] @ sent.scalars[sent.origin]
        home, here = int(self.blocks.home[at]), self.blocks.here
        if here != home:
            self.port.swap({home: sealed(Parcel(parts))}, [])
            return None
        others = [b for b in range(self.blocks.count) if b != here]
        got = {b: opened(data).tensors for b, data in self.port.swap({}, others).items()}
        got[here] = parts
        terms = [got[b] for b in sorted(got)]
        inward = sum(int(t["inward"]) for t in terms)
        if inward and not self.network.events:
            late = torch.stack([t["left"] for t in terms]).max()
            self.clock.arrive(torch.tensor([at]), late[None], inward if at == self.n else 0)
        total = torch.stack([t["total"] for t in terms]).sum()
        if not total > 0:
            return None
        scalars = None
        if packed.scalars is not None:
            scalars = torch.stack([t["scalars"] for t in terms]).sum(0) / total
        return torch.stack([t["flat"] for t in terms]).sum(0).div_(total), scalars

    # -- down ------------------------------------------------------------------------------------------

    def cast(
        self, x: Any, tick: Tick, to: Tensor, like: Tree, origin: int, pick: Tensor | None = None
    ) -> Tree:
        """Down-messages travel uncompressed: one sender, and every peer starts from the same model.

        Args:
            x: at the block of ``origin`` the value [1, ...], or with ``pick`` the versions [V, D]; None:
                there is nothing to say, or it is said elsewhere.
            to: bool [n].
            like: [P, ...], what the peers hold.
            origin: the node that speaks.
            pick: int64 [n], the version that each peer gets.
        """
        blocks, own = self.blocks, pack(like)
        value = None if x is None else pack(x)
        dst = to.nonzero()[:, 0]
        which = torch.zeros_like(dst) if pick is None else pick[dst]
        self.carrier.elapse()
        left = self.clock.now[origin]
        if value is not None:
            src = torch.full_like(dst, origin)
            size = torch.full_like(dst, value.flat.shape[1] * value.flat.element_size() + value.extra)
            left = self.carrier.sent(src, dst, size)[origin]
        if not blocks.alone:
            home = int(blocks.home[origin])
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
                if block != home:
                    out[block] = sealed(_versions(told, torch.unique(which[lives == block])))
            self.port.swap(out, [])
            if told is not None:
                self._know(told[0].flat)
            return None if told is None else (told[0], told[1], mine)
        got = self.port.swap({}, [home] if len(mine) else [])
        versions, number = torch.unique(mine, return_inverse=True)
        for block, data in got.items():
            try:
                value = _received(opened(data), own, len(versions))
            except ValueError as error:
                self.port.refuse(block, str(error))
                return None
            if value is None:
                return None
            self._know(value[0].flat)
            return *value, number
        return None

    def _know(self, rows: Tensor) -> None:
        """Later updates may name these rows as what they are to."""
        if not self.port.trusted:
            for row in rows:
                self.carrier.trade.known.add(row)


def _versions(told: tuple[Packed, Tensor] | None, versions: Tensor) -> Parcel:
    if told is None:
        return Parcel({})
    value, left = told
    parts = {"flat": value.flat[versions], "left": left[None]}
    if value.scalars is not None:
        parts["scalars"] = value.scalars[versions]
    return Parcel(parts)


def _received(parcel: Parcel, own: Packed, versions: int) -> tuple[Packed, Tensor] | None:
    """The models in a parcel that came down; None where the sender had nothing to say.

    Raises:
        ValueError: they are of another form, or not finite.
    """
    t = parcel.tensors
    if not t:
        return None
    flat, left, scalars = t.get("flat"), t.get("left"), t.get("scalars")
    if flat is None or flat.shape != (versions, own.flat.shape[1]) or flat.dtype != own.flat.dtype:
        raise ValueError("a model of another form")
    if left is None or left.shape != (1,) or left.dtype != torch.float64:
        raise ValueError("a model of another form")
    if not bool(torch.isfinite(flat).all()):
        raise ValueError("a model that is not finite")
    if own.scalars is not None:
        if scalars is None or scalars.shape != (versions, own.scalars.shape[1]):
            raise ValueError("numbers of another form")
        if scalars.dtype != torch.float64 or not bool(torch.isfinite(scalars).all()):
            raise ValueError("numbers of another form")
    return Packed(flat, scalars, own.extra), left[0]
