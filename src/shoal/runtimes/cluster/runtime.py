"""``--runtime cluster``: blocks of peers as Ray actors that exchange by torch.distributed.

The driver is the collector: it asks the blocks to run to the next tick of interest, joins what they
saved and measures it as one block of all peers would, so a run's rows, report and checkpoint are those
of ``local``. A block that dies takes the run back to the last checkpoint, in a new process group; since
every number of the run is a function of (configuration, seed, tick), the run then ends as if nothing
had happened.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from msgspec import Meta

from shoal.core import BadInput, Report, RunFailed, tree
from shoal.runtimes.base import Plan, Progress, Runtime, runtimes
from shoal.runtimes.collector import Collector

from .connect import connected
from .group import Group, Loss

__all__ = ["Cluster"]

PACE = 0.3
"""Seconds between two lines of progress, about."""
ATTEMPTS = 3
"""How often the same stretch between two checkpoints is tried again."""


@runtimes.register("cluster")
@dataclass(frozen=True)
class Cluster(Runtime):
    """Blocks of peers in processes of their own, on this machine or on a Ray cluster.

    Args:
        address: of the cluster: ``"host:port"``, ``"ray://host:port"``, or ``"auto"``: any that Ray finds
            on this machine, another program's too; "": one that is started here for this run. A cluster
            that asks for a token takes it from Ray's own settings (``RAY_AUTH_MODE``).
        blocks: how many (at most one for each peer).
        on_loss: what happens when a block's process or machine is lost. ``restart``: it is started
            again, elsewhere if need be, and all go on from the last checkpoint. ``churn``: its peers
            are gone from the last checkpoint on. ``fail``: the run fails.
        backend: gloo, or nccl with a GPU for each block.
        checkpoint_every: ticks between checkpoints, kept in memory and in the run's folder (0: none, a
            loss then takes the run back to its start).
        threads: of torch, in each block; 0: the machine's cores shared out.
        patience: seconds to wait for a place for every block.
        timeout: seconds until a block that does not answer counts as lost, where neither its
            connection breaks nor Ray notices; longer than a block computes between two exchanges.
    """

    address: str = ""
    blocks: Annotated[int, Meta(ge=1)] = 2
    on_loss: Literal["restart", "churn", "fail"] = "restart"
    backend: Literal["gloo", "nccl"] = "gloo"
    checkpoint_every: Annotated[int, Meta(ge=0)] = 10
    threads: Annotated[int, Meta(ge=0)] = 0
    patience: Annotated[float, Meta(gt=0)] = 60.0
    timeout: Annotated[float, Meta(gt=0)] = 1800.0

    def run(
        self,
        plan: Plan,
        *,
        progress: Progress | None = None,
        checkpoint: Path | None = None,
        resume: bool = False,
    ) -> Report:
        if self.blocks > plan.peers:
            raise BadInput("runtime.blocks", self.blocks, f"at most one for each of the {plan.peers} peers")
        if resume and checkpoint is None:
            raise BadInput("resume", True, "needs the folder of the run to resume")
        run = Run(self, plan, progress, checkpoint)
        if resume:
            assert checkpoint is not None
            run.take_up(tree.read(checkpoint))
        with connected(self.address, self.blocks) as ray:
            if checkpoint is not None:
                checkpoint.parent.mkdir(parents=True, exist_ok=True)
            group = Group(
                ray,
                plan,
                self.blocks,
                threads=self.threads or max(1, (os.cpu_count() or 1) // self.blocks),
                patience=self.patience,
                gpus=int(self.backend == "nccl"),
                apart=bool(self.address),
            )
            try:
                return run.go(group)
            finally:
                group.close()


class Run:
    """A run on a cluster as the driver sees it.

    Args:
        where: the runtime's settings.
        plan: the run.
        progress: called after every tick that is waited for.
        checkpoint: file.
    """

    def __init__(
        self, where: Cluster, plan: Plan, progress: Progress | None, checkpoint: Path | None
    ) -> None:
        self.where, self.plan, self.progress, self.checkpoint = where, plan, progress, checkpoint
        self.sizes = shares(plan.peers, where.blocks)
        self.collector = Collector(plan, self.sizes)
        self.session = self.collector.session
        self.start: dict[str, Any] | None = None
        self.rows: list[dict[str, Any]] = []
        self.gone: list[tuple[int, torch.Tensor]] = []
        self.done = self.failures = self.carried = 0

    def take_up(self, values: Mapping[str, Any]) -> None:
        """Go on from a checkpoint of all peers."""
        self.session.restore(values)
        self.start, self.done = dict(values), self.session.done
        self.rows = list(self.session.report.rows)

    def go(self, group: Group) -> Report:
        """To the last tick, whoever is lost on the way."""
        if not self.rows:
            self.session.row(-1, 0.0)
            self.rows = list(self.session.report.rows)
        absent = group.place()
        if absent:
            raise RunFailed(
                f"there is no place for {len(absent)} of {self.where.blocks} blocks on the cluster; "
                "take fewer blocks or more patience"
            )
        self._sit(group)
        while self.done < self.plan.rounds:
            try:
                if not self._stretch(group):
                    break
            except Loss as loss:
                self._recover(group, loss)
        report = self.collector.close()
        report.final["transport_bytes"] = self.carried
        return report

    def _stretch(self, group: Group) -> bool:
        """Some ticks; False where the user has had enough."""
        plan, began, stop = self.plan, time.perf_counter(), False
        until = self._next()
        measure, save = until == plan.rounds or until % plan.every == 0, self._saves(until)
        asked = group.advance(until, measure or save)
        try:
            said = group.gather(asked)
        except KeyboardInterrupt:
            stop, said = True, group.gather(asked)
        self.pace = (time.perf_counter() - began) / (until - self.done)
        row = None
        if stop and not (measure or save):
            said = group.gather(group.advance(until, True))
        if measure or save or stop:
            values = self.collector.join([s.saved or {} for s in said])
            if measure or stop:
                row = self.collector.measure(values)
            values["run.rows"] = list(self.session.report.rows)
            if save:
                self._keep(values)
        self.done = until
        if self.progress is not None:
            self.progress(until, plan.rounds, row, sum(s.metered for s in said))
        if until == plan.rounds or stop:
            self.carried += sum(s.carried for s in said)
        if stop:
            self.session.report.status = "stopped"
        return not stop

    pace = PACE

    def _next(self) -> int:
        """The next tick at which something is to be told."""
        plan, kept = self.plan, self.where.checkpoint_every
        until = min(plan.rounds, (self.done // plan.every + 1) * plan.every)
        if kept:
            until = min(until, (self.done // kept + 1) * kept)
        return min(until, self.done + max(1, int(PACE / self.pace)))

    def _saves(self, done: int) -> bool:
        kept = self.where.checkpoint_every
        return bool(kept) and (done % kept == 0 or done == self.plan.rounds)

    def _keep(self, values: dict[str, Any]) -> None:
        self.start, self.rows, self.failures = values, values["run.rows"], 0
        if self.checkpoint is not None:
            tree.save(values, self.checkpoint)

    def _sit(self, group: Group) -> None:
        """All blocks at the last checkpoint."""
        while True:
            try:
                group.sit(self.sizes, self.where.backend, self.where.timeout, self.gone, self.start)
                return
            except Loss as loss:
                self._repair(group, loss)

    def _recover(self, group: Group, loss: Loss) -> None:
        self._repair(group, loss)
        self._sit(group)

    def _repair(self, group: Group, loss: Loss) -> None:
        """Replace or give up what is lost, and go back to the last checkpoint."""
        back = 0 if self.start is None else int(self.start["run.done"])
        lost = ", ".join(self._peers(i) for i in loss.dead) or "no block, but its connections"
        told = f"block of peers {lost} lost after tick {self.done} ({loss.why})"
        self.failures += 1
        if self.where.on_loss == "fail":
            raise RunFailed(f"{told}; on_loss = restart or churn would have gone on")
        if self.failures > ATTEMPTS:
            raise RunFailed(f"{told}, the {self.failures}th time since tick {back}")
        dead = loss.dead
        if self.where.on_loss == "restart":
            dead = group.place()
            if dead:
                raise RunFailed(f"{told}, and the cluster has no place for it; on_loss = churn goes on")
            what = "restarted"
        else:
            self._let_go(group, dead, back)
            what = "gone"
        self.session.report.notes.append(f"The {told}; {what} from tick {back}.")
        self._rewind(back)

    def _let_go(self, group: Group, dead: list[int], back: int) -> None:
        """The peers of dead blocks are gone; the blocks that are left share their rows."""
        mask = torch.zeros(self.plan.peers, dtype=torch.bool)
        for i in dead:
            first = sum(self.sizes[:i])
            mask[first : first + self.sizes[i]] = True
        group.drop(dead)
        if not group.actors:
            raise RunFailed("all blocks are lost")
        if dead:
            self.gone.append((back, mask))
            self.session.lose(mask, back)
            self.sizes = shares(self.plan.peers, len(group.actors))
            self.collector.sizes = self.sizes

    def _rewind(self, back: int) -> None:
        plan, collector = self.plan, self.collector
        self.done = back
        self.session.report.rows = list(self.rows)
        collector.tick = None
        collector.ticks = plan.network.ticks(plan.peers, plan.seed, plan.rounds, 0, None)

    def _peers(self, block: int) -> str:
        first = sum(self.sizes[:block])
        return f"{first} to {first + self.sizes[block] - 1}"


def shares(peers: int, blocks: int) -> list[int]:
    """How many peers each block holds: as even as can be."""
    return [peers // blocks + (i < peers % blocks) for i in range(blocks)]
