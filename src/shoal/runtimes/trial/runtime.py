"""112 ``shoal run deployment-trial --runtime trial``: a mechanism from simulation to all peers.

The plan's method is the simulated stage; the stages behind it are real processes on this machine,
which talk over Noise-secured TCP, are killed and come back, and answer late. Kept in the run's folder:
``trial/crawl-*.jsonl`` (every signed record as it was pulled, and every verdict) and
``trial/findings.json``.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from shoal.core import BadInput, Report
from shoal.runtimes.base import Plan, Progress, Runtime, runtimes
from shoal.trust.token_audit import INVARIANTS

from .fleet import Fleet
from .monitor import Crawl
from .stage import Outcome, Told, deploy, simulate
from .trial import Deployed, Trial

__all__ = ["TrialRuntime", "run_trial"]


def run_trial(trial: Trial, plan: Plan, folder: Path, told: Told | None = None) -> list[Outcome]:
    """Every stage in turn until one is stopped.

    Args:
        trial: what is tried.
        plan: the simulated stage, and the seed of all stages.
        folder: for crawls, findings and (while they run) the peers' homes.

    Raises:
        BadInput: the plan's method is no mechanism with versions, or has another number of peers.
        RunFailed: processes do not start or answer.
    """
    if "version" not in plan.method.known():
        raise BadInput("method", plan.method.slug, "a mechanism with versions: deployment-trial")
    if plan.peers != trial.peers:
        raise BadInput("peers", plan.peers, f"the trial has {trial.peers}")
    folder.mkdir(parents=True, exist_ok=True)
    return asyncio.run(_stages(trial, plan, folder, told or (lambda *_: None)))


async def _stages(trial: Trial, plan: Plan, folder: Path, told: Told) -> list[Outcome]:
    outcomes: list[Outcome] = []
    simulated: dict[str, float] | None = None
    live: tuple[Fleet, Crawl] | None = None
    homes = Path(tempfile.mkdtemp(prefix="shoal-trial-"))
    try:
        for at, stage in enumerate(trial.stages):
            if stage.kind == "simulation":
                outcome = simulate(trial, stage, plan, told)
                simulated = outcome.behaviour
            elif stage.kind == "testbed":
                fleet = await Fleet.launch(trial, homes / f"testbed-{at}", plan.seed)
                try:
                    crawl = Crawl(trial, fleet.ids, _fresh(folder / f"crawl-{at}-testbed.jsonl"))
                    outcome = await deploy(fleet, stage, crawl, simulated, told)
                finally:
                    await fleet.close()
            else:
                if live is None:
                    fleet = await Fleet.launch(trial, homes / "live", plan.seed)
                    live = fleet, Crawl(trial, fleet.ids, _fresh(folder / f"crawl-{at}-live.jsonl"))
                    await _warm(fleet)
                outcome = await deploy(live[0], stage, live[1], simulated, told)
            outcomes.append(outcome)
            if outcome.stopped:
                break
    finally:
        if live is not None:
            await live[0].close()
        shutil.rmtree(homes, ignore_errors=True)
    text = json.dumps([asdict(o) for o in outcomes], indent=1)
    (folder / "findings.json").write_text(text, encoding="utf-8")
    return outcomes


async def _warm(fleet: Fleet) -> None:
    """The old version at work, before anything is tried."""
    if fleet.trial.warm_s:
        fleet.working = True
        await fleet.tell_all()
        await asyncio.sleep(fleet.trial.warm_s)


def _fresh(path: Path) -> Path:
    path.unlink(missing_ok=True)
    return path


@runtimes.register("trial")
@dataclass(frozen=True)
class TrialRuntime(Runtime):
    """Takes a mechanism through the stages of a trial.

    Args:
        file: a trial file, instead of the fields below.
        abort: violations per proposal at which a stage is stopped and rolled back.
        old: the version before.
        invariants: what must hold.
        seconds: of each deployed stage.
        shares: of the live stages, rising.
    """

    file: str = ""
    abort: Annotated[float, Meta(ge=0, le=1)] = 0.0
    old: Deployed = "off"
    invariants: tuple[str, ...] = tuple(INVARIANTS)
    seconds: Annotated[float, Meta(gt=0)] = 6.0
    shares: tuple[float, ...] = (0.25, 1.0)

    def of(self, plan: Plan) -> Trial:
        """The trial of a plan: the file's, or the plan's peers and version through all four stages."""
        if self.file:
            return Trial.read(self.file)
        live = [{"kind": "live", "share": s, "seconds": self.seconds} for s in self.shares]
        return Trial.of({
            "new": plan.method.spec().get("version"), "old": self.old, "peers": plan.peers,
            "abort": {"rate": self.abort}, "invariants": self.invariants,
            "stages": [{"kind": "simulation", "rounds": plan.rounds},
                       {"kind": "testbed", "seconds": self.seconds}, *live],
        })  # fmt: skip

    def run(
        self,
        plan: Plan,
        *,
        progress: Progress | None = None,
        checkpoint: Path | None = None,
        resume: bool = False,
    ) -> Report:
        if resume:
            raise BadInput("resume", True, "a trial on real processes starts anew")
        started = time.perf_counter()
        trial = self.of(plan)
        report = Report(system=plan.method.slug, config=plan.spec())
        steps = [s.name for s in trial.stages]

        def told(stage: str, share: float) -> None:
            if progress is not None:
                progress(int(100 * (steps.index(stage) + min(1.0, share))), 100 * len(steps), None, 0)

        with ExitStack() as stack:
            home = (
                stack.enter_context(tempfile.TemporaryDirectory(prefix="shoal-trial-"))
                if checkpoint is None
                else checkpoint.parent
            )
            outcomes = run_trial(trial, plan, Path(home) / "trial", told)
        report.rows = _rows(outcomes, trial)
        report.final = {"stages": [asdict(o) for o in outcomes], "passed": not outcomes[-1].stopped}
        if outcomes[-1].stopped:
            report.notes.append(
                f"{trial.new} was stopped at the stage {outcomes[-1].stage} and rolled back to {trial.old}."
            )
        report.notes.append(
            "Deployed peers serve in order of arrival; what tokens buy is measured in simulation."
        )
        report.wall_s = time.perf_counter() - started
        return report


def _rows(outcomes: Sequence[Outcome], trial: Trial) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    sent, now = 0, 0.0
    for at, outcome in enumerate(outcomes):
        sent, now = sent + outcome.bytes, now + outcome.wall_s
        verdict = outcome.verdict
        rows.append({
            "tick": at + 1, "time": now, "wall_s": now, "bytes": sent, "spent": float(verdict.proposals),
            "violations": float(verdict.total),
            **{name: float(count) for name, count in verdict.violations.items()},
            "harmed": len(verdict.harmed) / trial.peers,
            **{f"drift_{name}": value for name, value in outcome.drift.items()},
        })  # fmt: skip
    return rows
