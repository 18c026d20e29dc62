"""All peers in this process, stacked: one block that holds everyone."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta
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
from shoal.network.exchange import LocalExchange

from .base import Plan, Progress, Runtime, runtimes

__all__ = ["Local"]


@runtimes.register("local")
@dataclass(frozen=True)
class Local(Runtime):
    """All n peers as one block of batched tensors.

    Args:
        checkpoint_every: ticks between checkpoints (0: none).
        threads: of torch; 0 leaves them as they are.
    """

    checkpoint_every: Annotated[int, Meta(ge=0)] = 10
    threads: Annotated[int, Meta(ge=0)] = 0

    def run(
        self,
        plan: Plan,
        *,
        progress: Progress | None = None,
        checkpoint: Path | None = None,
        resume: bool = False,
    ) -> Report:
        if self.threads:
            torch.set_num_threads(self.threads)
        session = Session.open(plan)
        if resume:
            if checkpoint is None:
                raise BadInput("resume", True, "needs the folder of the run to resume")
            session.restore(tree.read(checkpoint))
        if checkpoint is not None:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
        # A checkpoint is only worth its time where there is somewhere to keep it.
        every = self.checkpoint_every if checkpoint is not None else 0
        save: Callable[[], None] = lambda: tree.save(session.saved(), checkpoint)  # type: ignore[arg-type]  # noqa: E731
        try:
            session.go(progress, every, save)
        except KeyboardInterrupt:
            session.report.status = "stopped"
        return session.close()


class Session:
    """One run in progress: its state, its exchange, its record.

    Args:
        plan: the configuration.
        work: the open task.
        net: the exchange.
        graph: before the first tick.
        report: what is known of it so far.
    """

    def __init__(self, plan: Plan, work: Work, net: LocalExchange, graph: Graph, report: Report) -> None:
        self.plan, self.work, self.net, self.report = plan, work, net, report
        self.context: Context[Any] = Context(work, net, plan.seed, plan.rounds, graph, plan.network.clock)
        self.state = plan.method.init(self.context)
        self.clocks: Any = None
        self.done = 0
        self.before = 0.0
        self.started = time.perf_counter()

    @staticmethod
    def open(plan: Plan) -> Session:
        """Load, check and initialise; nothing has run yet."""
        method, network, n = plan.method, plan.network, plan.peers
        graph = network.open(n, plan.seed, plan.rounds, type(method))
        hostile = network.hostiles(n, plan.seed)
        place = Place(
            n,
            torch.arange(n),
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
        return Session(plan, work, LocalExchange(network, work, hostile), graph, report)

    def go(self, progress: Progress | None, save_every: int, save: Callable[[], None]) -> None:
        """From the first tick not yet done to the last."""
        plan = self.plan
        ticks = plan.network.ticks(plan.peers, plan.seed, plan.rounds, self.done, self.clocks)
        if self.done == 0 and not self.report.rows:
            self._row(-1, 0.0)
        for tick, clocks in ticks:
            self.net.meter.start_tick()
            self.state = plan.method.step(self.state, tick, self.context)
            now = self.net.settle(tick)
            self.clocks, self.done = clocks, tick.index + 1
            row = None
            if tick.last or self.done % plan.every == 0:
                row = self._row(tick.index, now, tick)
            if save_every and (self.done % save_every == 0 or tick.last):
                save()
            if progress is not None:
                progress(self.done, plan.rounds, row, self.net.meter.total)

    def close(self) -> Report:
        """The report of what has been done so far."""
        report, net = self.report, self.net
        if report.rows[-1]["tick"] != self.done:
            self._row(self.done - 1, float(net.clock.now[:-1].max()))
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
        report.wall_s = self._wall()
        return report

    def saved(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {
            "method": self.state,
            "net": self.net.state(),
            "clocks": self.clocks,
            "work": self.work.state(),
            "run": {
                "done": self.done,
                "rows": self.report.rows,
                "wall": self._wall(),
                "plan": json.dumps(self.report.config, sort_keys=True),
            },
        }

    def restore(self, values: dict[str, Any]) -> None:
        """Continue where :meth:`saved` was. The run may have become longer.

        Raises:
            BadInput: the checkpoint is of another configuration.
        """
        before, now = json.loads(values["run.plan"]), self.report.config
        for name in now:
            longer = name == "rounds" and now[name] >= before.get(name, 0)
            if before.get(name) != now[name] and not longer:
                raise BadInput(name, now[name], f"the run to resume has {before.get(name)}")
        self.state = tree.load(self.state, values, "method")
        under = {
            part: {k[len(part) + 1 :]: v for k, v in values.items() if k.startswith(part + ".")}
            for part in ("net", "clocks", "work", "run")
        }
        self.net.restore(under["net"])
        self.work.restore(under["work"])
        plan = self.plan
        base = plan.network.graph_at(plan.peers, plan.seed, 0)
        like = tuple(c.start(plan.peers, plan.seed, plan.rounds, base) for c in plan.network.clock)
        self.clocks = tree.load(like, values, "clocks")
        self.done, self.report.rows = under["run"]["done"], under["run"]["rows"]
        self.before = under["run"]["wall"]

    def _wall(self) -> float:
        return self.before + time.perf_counter() - self.started

    def _row(self, index: int, now: float, tick: Tick | None = None) -> dict[str, Any]:
        plan, net, work = self.plan, self.net, self.work
        output = plan.method.output(self.state)
        row: dict[str, Any] = {
            "tick": index + 1,
            "time": now,
            "wall_s": self._wall(),
            "bytes": net.meter.total,
            "spent": float(work.spent.sum()),
        }
        honest = ~net.hostile
        if tick is not None and tick.alive is not None:
            honest = honest & tick.alive
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
