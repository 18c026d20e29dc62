"""112 Stages: one step of a trial carried out, watched, and taken back where the abort rule strikes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from shoal.core import Draws
from shoal.runtimes.base import Plan
from shoal.runtimes.local import Local
from shoal.trust.bandwidth_tokens import read_half
from shoal.trust.token_audit import Logs

from .fleet import Fleet
from .monitor import Crawl, Verdict, behaviour, drift, findings, judge
from .trial import Stage, Trial, chosen

__all__ = ["Outcome", "deploy", "simulate"]

Told = Callable[[str, float], None]
"""Told what runs and which share of the stage is done."""


@dataclass
class Outcome:
    """What came of a stage.

    Args:
        stage: its name.
        on: the peers that ran the new version.
        verdict: the last one.
        behaviour: see :func:`.monitor.behaviour`.
        drift: against the simulation.
        bytes: that half-blocks account for.
        stopped: whether the abort rule struck.
        restored: after a rollback, whether every old account was bit for bit what it had been; None
            where nothing was rolled back.
        findings: for the designers.
        restarts: peers killed and started again.
    """

    stage: str
    on: list[int]
    verdict: Verdict
    behaviour: dict[str, float]
    drift: dict[str, float] = field(default_factory=dict)
    bytes: int = 0
    stopped: bool = False
    restored: bool | None = None
    findings: dict[str, Any] = field(default_factory=dict)
    restarts: int = 0
    wall_s: float = 0.0


def simulate(trial: Trial, stage: Stage, plan: Plan, told: Told) -> Outcome:
    """The plan's method on the exchange, in this process, one thing at a time at every peer."""
    started = time.perf_counter()
    method = plan.method.replace(version=trial.new)
    planned = plan.replace(method=method, rounds=stage.rounds, every=stage.rounds)
    report = Local().run(planned, progress=lambda done, total, *_: told(stage.name, done / total))
    logs = {
        origin: [(origin, at, read_half(value)) for at, value in enumerate(own)]
        for origin, own in enumerate(report.output)
    }
    verdict, _ = judge(0, logs, trial)
    return Outcome(
        stage.name, list(range(plan.peers)), verdict, behaviour(logs), bytes=_bytes(logs, trial),
        stopped=verdict.stop, wall_s=time.perf_counter() - started,
    )  # fmt: skip


async def deploy(
    fleet: Fleet, stage: Stage, crawl: Crawl, simulated: dict[str, float] | None, told: Told
) -> Outcome:
    """A testbed or live stage on real processes: raise the share, watch, stop, take back."""
    trial, started, starts = fleet.trial, time.perf_counter(), sum(fleet.starts.values())
    on = chosen(trial.name, fleet.ids, stage.share if stage.kind == "live" else 1.0)
    fleet.flags |= dict.fromkeys(on, trial.new)
    fleet.working = False
    before = await fleet.tell_all()
    fleet.working = True
    await fleet.tell_all()
    faults = asyncio.create_task(_restarts(fleet, stage))
    stopped = False
    try:
        end = time.perf_counter() + stage.seconds
        while (left := end - time.perf_counter()) > 0 and not (stopped and stage.kind == "live"):
            await asyncio.sleep(min(left, trial.crawl_s))
            await fleet.crawl(crawl)
            stopped = crawl.judge().stop
            told(stage.name, 1 - max(0.0, left) / stage.seconds)
    finally:
        faults.cancel()
        with suppress(asyncio.CancelledError):
            await faults
    await fleet.start(fleet.flags.keys() - fleet.up)
    fleet.working = False
    if stopped:
        fleet.flags = dict.fromkeys(fleet.flags, trial.old)
    after = await fleet.tell_all()
    await fleet.crawl(crawl)
    last = crawl.judge()
    stopped = stopped or last.stop
    restored = None
    if stopped:
        fleet.flags = dict.fromkeys(fleet.flags, trial.old)
        after = await fleet.tell_all()
        # Whoever had been switched has the account of the old version that it had at the switch.
        restored = trial.old == "off" or all(
            before[i].digests[trial.old] == after[i].digests[trial.old] for i in on
        )
    logs = _of(trial, crawl.logs())
    now = behaviour({i: logs[i] for i in on})
    moved = {} if simulated is None else drift(now, simulated)
    return Outcome(
        stage.name, on, last, now, moved, _bytes(crawl.logs(), trial), stopped, restored,
        findings(crawl, stage.name, moved), sum(fleet.starts.values()) - starts,
        time.perf_counter() - started,
    )  # fmt: skip


async def _restarts(fleet: Fleet, stage: Stage) -> None:
    """Every ``restart_s`` a random peer is killed, and comes back after ``down_s``."""
    faults = fleet.trial.faults
    count = 0
    while faults.restart_s > 0:
        await asyncio.sleep(faults.restart_s)
        draws = Draws(fleet.seed, f"trial/restart/{stage.name}", torch.zeros(1, dtype=torch.int64), count)
        victim = int(draws.integers(fleet.trial.peers, 1)[0, 0])
        await fleet.kill(victim)
        await asyncio.sleep(faults.down_s)
        known = dict(fleet.addresses)
        await fleet.start([victim])
        await fleet.tell([victim] if known == fleet.addresses else fleet.up)
        count += 1


def _of(trial: Trial, logs: Logs) -> Logs:
    return {o: [e for e in entries if e[2].version == trial.new] for o, entries in logs.items()}


def _bytes(logs: Logs, trial: Trial) -> int:
    """Bytes that takers have proposed under the new version."""
    return sum(
        half.amount
        for entries in _of(trial, logs).values()
        for _, _, half in entries
        if half.side == "take"
    )
