"""A run in progress, of one block of peers: its state, its exchange, its record."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from shoal.core import (
    BadInput,
    Context,
    Differentiable,
    Graph,
    Place,
    Report,
    RunFailed,
    Tick,
    Work,
    tree,
)
from shoal.network.exchange import Exchange
from shoal.network.port import Alone, Port

from .base import Plan
from .energy import counters, joules
from .parts import share_of

__all__ = ["Session"]


class Session:
    """One block of a run: the method's state, the open task, the exchange.

    Args:
        plan: the configuration.
        work: the open task of the block.
        net: the exchange.
        graph: before the first tick.
        report: what is known of the run so far; complete only where one block holds all peers.

    Attributes:
        energy: the processor's counters when the run began; empty where that is not known.
        present: makes of a tick what it is for those who are there; a runtime may replace it.
    """

    def __init__(self, plan: Plan, work: Work, net: Exchange, graph: Graph, report: Report) -> None:
        self.plan, self.work, self.net, self.report = plan, work, net, report
        self.context: Context[Any] = Context(work, net, plan.seed, plan.rounds, graph, plan.network.clock)
        self.state = plan.method.init(self.context)
        self.clocks: Any = None
        self.done = 0
        self.now = 0.0
        self.present: Callable[[Tick], Tick] = lambda tick: tick
        self.before = 0.0
        self.started = time.perf_counter()
        self.energy = counters()

    @staticmethod
    def open(plan: Plan, port: Port | None = None) -> Session:
        """Load, check and initialise; nothing has run yet.

        Args:
            port: the door to the other blocks; default: one block holds all peers.
        """
        method, network, n = plan.method, plan.network, plan.peers
        port = port or Alone(n)
        graph = network.open(n, plan.seed, plan.rounds, type(method))
        hostile = network.hostiles(n, plan.seed)
        start = sum(port.sizes[: port.here])
        place = Place(
            n,
            torch.arange(start, start + port.sizes[port.here]),
            plan.seed,
            getattr(torch, plan.dtype),
            network.attack if bool(hostile.any()) else None,
            hostile,
        )
        try:
            work = plan.task.open(place)
        except BadInput as error:
            raise error.under("task") from None
        if not isinstance(work, method.work):
            raise BadInput(
                "task", plan.task.slug, f"{method.slug} needs a task of kind {method.work.__name__}"
            )
        report = Report(
            system=method.slug,
            config=plan.spec(),
            graph=graph,
            hostile=hostile,
            layers=list(getattr(work, "layers", [])),
        )
        return Session(plan, work, Exchange(network, work, hostile, port), graph, report)

    def ticks(self, absent: Callable[[int], bool] | None = None) -> Iterator[Tick]:
        """Run from the first tick not yet done to the last; yields each when it is done.

        Args:
            absent: whether this block is not there at a tick (it was down, or is late): nothing is done
                then and nothing yielded.
        """
        plan = self.plan
        for tick, clocks in plan.network.ticks(plan.peers, plan.seed, plan.rounds, self.done, self.clocks):
            here = absent is None or not absent(tick.index)
            if here:
                tick = self.present(tick)
                self.net.port.begin(tick.index)
                self.net.meter.start_tick()
                self.state = plan.method.step(self.state, tick, self.context)
                self.now = self.net.settle(tick)
            self.clocks, self.done = clocks, tick.index + 1
            if here:
                yield tick

    def finish(self) -> Session:
        """All ticks that are left, with nothing measured on the way."""
        for _ in self.ticks():
            pass
        return self

    def lose(self, peers: Tensor, since: int) -> None:
        """From tick ``since`` on the ``peers`` (bool [n]) are gone: they neither act nor count."""
        before = self.present

        def present(tick: Tick) -> Tick:
            tick = before(tick)
            if tick.index < since:
                return tick
            alive = ~peers if tick.alive is None else tick.alive & ~peers
            graph = tick.graph.keep(alive[tick.graph.src] & alive[tick.graph.dst])
            return tick.replace(active=tick.active & alive, alive=alive, graph=graph)

        self.present = present

    def due(self, tick: Tick) -> bool:
        """Whether the plan wants a measurement after this tick."""
        return tick.last or self.done % self.plan.every == 0

    def close(self) -> Report:
        """The report of what has been done so far."""
        report, net = self.report, self.net
        if report.rows[-1]["tick"] != self.done:
            self.row(self.done - 1, net.clock.latest)
        report.output = self.plan.method.output(self.state)
        report.links = net.meter.links()
        report.final |= self.work.final(report.output)
        report.final["refused_messages"] = int(net.carrier.refused.sum())
        report.final["messages"] = net.meter.messages
        report.final |= self.plan.network.spent_privacy(net.carrier.releases)
        report.notes += self.work.notes() + self.plan.method.notes(self.context)
        if net.fallbacks:
            report.notes.append(
                f"The rule {self.plan.network.rule.slug} had too few messages {net.fallbacks} times; "
                "the receiver then kept its own model. More neighbours, or a smaller f, would help."
            )
        used = joules(self.energy, counters())
        report.final["energy_j"] = "not measured" if used is None else used
        report.wall_s = self.wall
        return report

    def saved(self) -> dict[str, Any]:
        """Everything that a resumed run needs: of a block its part (see :mod:`shoal.runtimes.parts`)."""
        return {
            "method": self.state,
            "net": self.net.state(),
            "clocks": self.clocks,
            "work": self.work.state(),
            "run": {
                "done": self.done,
                "rows": self.report.rows,
                "wall": self.wall,
                "plan": json.dumps(self.report.config, sort_keys=True),
            },
        }

    def restore(self, values: Mapping[str, Any], part: bool = False) -> None:
        """Continue where :meth:`saved` of all peers was, in whatever blocks. The run may be longer.

        Args:
            part: the values are what this block alone has saved.

        Raises:
            BadInput: the checkpoint is of another configuration.
        """
        before, now = json.loads(values["run.plan"]), self.report.config
        for name in now:
            longer = name == "rounds" and now[name] >= before.get(name, 0)
            if before.get(name) != now[name] and not longer:
                raise BadInput(name, now[name], f"the run to resume has {before.get(name)}")
        if not part:
            values = share_of(values, self.net.blocks, type(self.work))
        self.state = tree.load(self.state, values, "method")
        under = {
            part: {k[len(part) + 1 :]: v for k, v in values.items() if k.startswith(part + ".")}
            for part in ("net", "clocks", "work", "run")
        }
        self.net.restore(under["net"], part)
        self.work.restore(under["work"])
        plan = self.plan
        base = plan.network.graph_at(plan.peers, plan.seed, 0)
        like = tuple(c.start(plan.peers, plan.seed, plan.rounds, base) for c in plan.network.clock)
        self.clocks = tree.load(like, values, "clocks")
        self.done, self.report.rows = under["run"]["done"], under["run"]["rows"]
        self.before, self.now = under["run"]["wall"], self.net.clock.latest
        self.energy = {}  # of what went before nobody knows

    @property
    def wall(self) -> float:
        """Seconds that the run has taken, interruptions left out."""
        return self.before + time.perf_counter() - self.started

    def row(self, index: int, now: float, tick: Tick | None = None) -> dict[str, Any]:
        """Measure and record; the figures are those of this block's peers.

        Raises:
            RunFailed: an honest peer's model is not finite.
        """
        plan, net, work = self.plan, self.net, self.work
        output = plan.method.output(self.state)
        row: dict[str, Any] = {
            "tick": index + 1,
            "time": now,
            "wall_s": self.wall,
            "bytes": net.meter.total,
            "spent": float(work.spent.sum()),
        }
        honest = net.blocks.rows(~net.hostile)
        if tick is not None and tick.alive is not None:
            honest = honest & net.blocks.rows(tick.alive)
        figures = work.measure(output, index)
        if tick is not None:
            figures |= plan.method.measure(self.state, tick, self.context)
        if isinstance(work, Differentiable) and isinstance(output, Tensor):
            models = output[honest]
            finite = torch.isfinite(models).all(1)
            if not bool(finite.all()):
                raise RunFailed(
                    f"diverged: {int((~finite).sum())} of {len(models)} honest models are not finite "
                    f"after tick {index + 1}; try a smaller learning rate"
                )
            # Centred on one of the models: identical models then disagree by exactly 0.
            gap = models - models[:1]
            gap = gap - gap.mean(0)
            figures["consensus"] = float(gap.pow(2).sum(1).mean().sqrt())
        for name, value in figures.items():
            if isinstance(value, Tensor) and value.ndim == 1:
                self.report.peers[name] = value.detach().clone()
                told = value[honest].to(torch.float64)
                told = told[~torch.isnan(told)]
                row[name] = float(told.mean()) if len(told) else None
                row[f"{name}_min"] = float(told.min()) if len(told) else None
                row[f"{name}_p10"] = float(torch.quantile(told, 0.1)) if len(told) else None
                row[f"{name}_std"] = float(told.std(correction=0)) if len(told) else None
            else:
                row[name] = float(value)
        self.report.rows.append(row)
        return row
