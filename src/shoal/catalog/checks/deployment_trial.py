"""112 Deployment first: what simulation does not show, a few live peers do, and the next version mends."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from shoal.catalog.claims import Bound, Claim, Progress, claim
from shoal.experiment import plan_of, run
from shoal.runtimes.trial.runtime import run_trial
from shoal.runtimes.trial.stage import Outcome
from shoal.runtimes.trial.trial import Trial

PEERS, SECONDS, ROUNDS = 12, 6.0, 60
LIVE: dict[str, Any] = {"kind": "live", "seconds": SECONDS}
CANARY, ALL = {**LIVE, "share": 0.25}, {**LIVE, "share": 1.0}
SIMULATION = {"kind": "simulation", "rounds": ROUNDS}
TESTBED = {"kind": "testbed", "seconds": 8.0}

CROWD: dict[str, Any] = {"peers": 24, "rounds": 300, "every": 300, "signed": False, "epoch_ticks": 30}
COLLUSION: dict[str, Any] = {"name": "file-sharing", "chunk": 64, "uplinks": 0.1, "pairs": 1}
MINTED = 1000


@claim("deployment-trial")
class DeploymentTrialClaim(Claim):
    """v1 meets simulation, a testbed, a canary, and everyone at once; v2 goes through all stages."""

    bounds = (
        Bound("v1_simulated_violations", "==", 0.0),
        Bound("v1_double_counts", ">=", 1.0, "found in deployment only, by Tribler's trial"),
        Bound("v1_canary_harmed", "<=", 0.25),
        Bound("v1_harm_beyond_canary", ">=", 1 / PEERS, "all at once harms more"),
        Bound("v2_violations", "==", 0.0),
        Bound("v2_stages", "==", 4.0, "the same trial"),
        Bound("v2_colluders_gain", "<=", 1.2),
        Bound("v1_colluders_gain", ">=", 3.0),
    )
    config: ClassVar[dict[str, Any]] = {
        "peers": PEERS, "seconds": SECONDS, "rounds": ROUNDS, "canary": 0.25, "abort_rate": 0.0,
        "collusion": {**CROWD, **COLLUSION, "minted": MINTED},
    }  # fmt: skip
    notes = (
        "12 processes on one machine over loopback TCP; delays, late answers and SIGKILL are injected",
        "the colluders' gain is measured in simulation: deployed peers serve in order of arrival",
    )

    def measure(self, seed: int, progress: Progress) -> dict[str, float]:
        trials: dict[str, tuple[str, Sequence[dict[str, Any]]]] = {
            "v1_tested": ("v1", [SIMULATION, TESTBED]),
            "v1_canary": ("v1", [CANARY]),
            "v1_at_once": ("v1", [ALL]),
            "v2": ("v2", [SIMULATION, TESTBED, CANARY, ALL]),
        }
        out = {}
        for at, (name, (version, stages)) in enumerate(trials.items()):
            progress(name, at / 6)
            out[name] = _deployed(version, stages, seed)
        tested, canary, at_once, v2 = (out[name] for name in trials)
        figures = {
            "v1_simulated_violations": float(tested[0].verdict.total),
            "v1_double_counts": float(tested[1].verdict.violations["no_double_count"]),
            "v1_canary_harmed": _harmed(canary[-1]),
            "v1_harm_beyond_canary": _harmed(at_once[-1]) - _harmed(canary[-1]),
            "v2_violations": float(sum(o.verdict.total for o in v2)),
            "v2_stages": float(sum(not o.stopped for o in v2)),
        }
        for at, version in enumerate(("v1", "v2")):
            progress(f"colluders under {version}", (4 + at) / 6)
            figures[f"{version}_colluders_gain"] = _service(version, seed, MINTED) / _service(
                version, seed, 0
            )
        for name, outcomes in out.items():
            for o in outcomes:
                figures[f"{name} {o.stage} proposals"] = float(o.verdict.proposals)
                figures[f"{name} {o.stage} violations"] = float(o.verdict.total)
                figures[f"{name} {o.stage} restarts"] = float(o.restarts)
        return figures


def _deployed(version: str, stages: Sequence[dict[str, Any]], seed: int) -> list[Outcome]:
    trial = Trial.of({"new": version, "peers": PEERS, "stages": list(stages), "abort": {"rate": 0.0}})
    plan = plan_of("deployment-trial", peers=PEERS, rounds=ROUNDS, seed=seed, method={"version": version})
    with tempfile.TemporaryDirectory(prefix="shoal-trial-") as folder:
        return run_trial(trial, plan, Path(folder))


def _harmed(outcome: Outcome) -> float:
    return len(outcome.verdict.harmed) / PEERS


def _service(version: str, seed: int, minted: int) -> float:
    """Chunks that a colluder gets on average."""
    task = {**COLLUSION, "minted": minted}
    return run("deployment-trial", version=version, task=task, seed=seed, **CROWD).metrics[
        "service_colluders"
    ]
