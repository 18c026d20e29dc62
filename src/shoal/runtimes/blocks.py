"""A run split into blocks of peers that take turns: the seam that other placements build on.

Each block has its own task, state and context and runs the method by itself; the verbs are where
blocks meet. Here they meet in one process, one block computing at a time in a given order, so that a
test can show that neither the split nor the order changes a result.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from shoal.core import Context, Inbox, Place, Rule, Tick, tree
from shoal.network.exchange import LocalExchange

from .base import Plan

__all__ = ["run_blocks"]

Tree = TypeVar("Tree")


class _Stopped(Exception):
    """Another block failed."""


class Meeting:
    """Where blocks hand in their part of a verb and take away their part of the result.

    Args:
        order: the blocks' numbers, in the order in which they compute between two meetings.
    """

    def __init__(self, order: Sequence[int]) -> None:
        self.order = list(order)
        self.changed = threading.Condition()
        self.parts: dict[int, Any] = {}
        self.turn = 0
        self.round = 0
        self.result: Any = None
        self.error: BaseException | None = None

    def begin(self, block: int) -> None:
        """Wait for this block's turn to compute."""
        with self.changed:
            self._wait(lambda: self.order[self.turn] == block)

    def meet(self, block: int, part: Any, together: Callable[[list[Any]], Any]) -> Any:
        """Hand in ``part``; the last one computes ``together(parts)``, which everyone gets."""
        with self.changed:
            self.parts[block] = part
            now = self.round
            self.turn += 1
            if self.turn == len(self.order):
                self.result = together([self.parts[b] for b in sorted(self.parts)])
                self.turn, self.round, self.parts = 0, self.round + 1, {}
            self.changed.notify_all()
            self._wait(lambda: self.round != now)
            result = self.result
            self._wait(lambda: self.order[self.turn] == block)
            return result

    def leave(self, error: BaseException | None) -> None:
        """The block is done."""
        with self.changed:
            self.error = self.error or error
            self.turn = min(self.turn + 1, len(self.order) - 1)
            self.changed.notify_all()

    def _wait(self, ready: Callable[[], bool]) -> None:
        self.changed.wait_for(lambda: self.error is not None or ready())
        if self.error is not None:
            raise _Stopped


class BlockNet:
    """The verbs for one block: the same calls on one exchange, with everybody's rows together."""

    def __init__(self, meeting: Meeting, block: int, rows: list[Tensor], exchange: LocalExchange) -> None:
        self.meeting, self.block, self.rows, self.exchange = meeting, block, rows, exchange
        self.hosts_server = block == 0

    def _all(self, part: Any, verb: Callable[[Any], Any]) -> Any:
        return self.meeting.meet(self.block, part, lambda parts: verb(tree.concat(parts)))

    def _mine(self, values: Any) -> Any:
        return tree.take(values, self.rows[self.block])

    def _served(self, values: Any) -> Any:
        return values if self.hosts_server else tree.take(values, slice(0, 0))

    def _inbox(self, inbox: Inbox) -> Inbox:
        mine = self.rows[self.block]
        picked = {
            name: getattr(inbox, name)[mine]
            for name in ("index", "sender", "mask", "weight", "own", "own_weight", "centre")
            if getattr(inbox, name) is not None
        }
        return replace(inbox, **picked)

    def mix(self, x: Tree, tick: Tick, *, hop: int = 0, channel: str = "x") -> Tree:
        verb = lambda v: self.exchange.mix(v, tick, hop=hop, channel=channel)  # noqa: E731
        return self._mine(self._all(x, verb))

    def gather(self, x: Tensor, tick: Tick, *, channel: str = "x") -> Inbox:
        return self._inbox(self._all(x, lambda v: self.exchange.gather(v, tick, channel=channel)))

    def send(self, x: Tensor, tick: Tick, src: Tensor, dst: Tensor, *, channel: str = "x") -> Inbox:
        verb = lambda v: self.exchange.send(v, tick, src, dst, channel=channel)  # noqa: E731
        return self._inbox(self._all(x, verb))

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
        part: dict[str, Any] = {"x": x} | ({} if base is None else {"base": base})
        part |= {} if held is None else {"held": held}
        part |= {} if weight is None else {"weight": weight}

        def verb(v: dict[str, Any]) -> Any:
            x = v.pop("x")
            return self.exchange.pool(x, tick, to=to, rule=rule, channel=channel, **v)

        result = self._all(part, verb)
        return self._mine(result) if to == "all" else self._served(result)

    def collect(self, x: Tensor, tick: Tick, *, held: Tensor, channel: str = "x") -> Tensor:
        def verb(v: dict[str, Any]) -> Any:
            return self.exchange.collect(v["x"], tick, held=v["held"], channel=channel)

        return self._served(self._all({"x": x, "held": held}, verb))

    def cast(
        self,
        x: Tree,
        tick: Tick,
        *,
        to: Tensor | None = None,
        like: Tree,
        pick: Tensor | None = None,
    ) -> Tree:
        verb = lambda v: self.exchange.cast(v["x"], tick, to=to, like=v["like"], pick=pick)  # noqa: E731
        return self._mine(self._all({"x": x, "like": like}, verb))

    def share(self, outbox: Sequence[Mapping[int, Any]], tick: Tick) -> list[dict[int, Any]]:
        return self._mine(self._all(list(outbox), lambda v: self.exchange.share(v, tick)))


def run_blocks(plan: Plan, blocks: int, order: Sequence[int] | None = None) -> tuple[Any, LocalExchange]:
    """Run a plan in blocks of peers that compute one at a time.

    Args:
        plan: the run.
        blocks: how many; ``plan.peers`` of them hold one peer each.
        order: in which they take turns (default 0, 1, 2, ...).

    Returns:
        (the final state of all peers, joined in their order; the exchange).
    """
    n, network, method = plan.peers, plan.network, plan.method
    graph = network.open(n, plan.seed, plan.rounds, type(method))
    hostile = network.hostiles(n, plan.seed)
    rows = [r for r in torch.arange(n).tensor_split(blocks) if len(r)]
    attack = network.attack if bool(hostile.any()) else None
    dtype = getattr(torch, plan.dtype)
    places = [Place(n, r, plan.seed, dtype, attack, hostile) for r in [torch.arange(n), *rows]]
    exchange = LocalExchange(network, plan.task.open(places[0]), hostile)
    meeting = Meeting(order if order is not None else range(len(rows)))
    states: list[Any] = [None] * len(rows)

    def block(number: int) -> None:
        error: BaseException | None = None
        try:
            meeting.begin(number)
            net = BlockNet(meeting, number, rows, exchange)
            work = plan.task.open(places[number + 1])
            ctx: Context[Any] = Context(work, net, plan.seed, plan.rounds, graph, network.clock)
            state = method.init(ctx)
            for tick, _ in network.ticks(n, plan.seed, plan.rounds, 0, None):
                state = method.step(state, tick, ctx)
            states[number] = state
        except _Stopped:
            pass
        except BaseException as raised:
            error = raised
        meeting.leave(error)

    threads = [threading.Thread(target=block, args=(i,), daemon=True) for i in range(len(rows))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if meeting.error is not None:
        raise meeting.error
    return tree.concat(states), exchange
