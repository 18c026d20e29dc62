"""070: agents that gossip estimated losses find the arm best on average, which none can see alone."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from shoal.catalog.arms import arm
from shoal.catalog.claims import Bound, Claim, Progress, claim
from shoal.core import Report

COMMON: dict[str, Any] = {
    "task": "adversarial-losses(arms=10, source='fixed', active=0.5)",
    "peers": 36,
    "rounds": 3000,
    "every": 100,
}
GRID = {"graph": "grid", "weights": "laplacian"}
ARMS: dict[str, dict[str, Any]] = {
    "fedexp3": {"system": "fedexp3", "network": GRID},
    "isolated": {"system": "exp3", "network": GRID},
    "complete": {"system": "fedexp3", "network": {"graph": "complete", "weights": "laplacian"}},
    # An exploration rate above T^(1/3) is uniform play.
    "uniform": {"system": "exp3", "network": GRID, "explore": 1e3},
    "fedhedge": {"system": "fedhedge", "network": GRID},
}


def slope(report: Report, first: int = 500) -> float:
    """Exponent of the mean regret in the number of rounds, from round ``first`` on."""
    rounds, regret = (np.array(v) for v in report.curve("regret"))
    late = rounds >= first
    return float(np.polyfit(np.log(rounds[late]), np.log(np.maximum(regret[late], 1e-9)), 1)[0])


@claim("fedexp3")
class FedExp3Claim(Claim):
    bounds = (
        Bound("worst regret / isolated", "<=", 0.25, "neighbours' estimates replace own losses"),
        Bound("slope of mean regret", "<=", 0.6, "about T^(2/3)"),
        Bound("isolated slope", ">=", 0.85, "linear: half of the agents see nothing"),
    )
    config: ClassVar[dict[str, Any]] = {**COMMON, "eta": 0.1, "explore": 0.5, "graph": "6 x 6 grid"}
    notes = ("36 agents and 3000 rounds; the paper goes to 1600 agents.",)

    def measure(self, seed: int, progress: Progress) -> dict[str, float]:
        reports: dict[str, Report] = {}
        for number, (name, fields) in enumerate(ARMS.items()):
            progress(name, number / len(ARMS))
            more = {k: v for k, v in fields.items() if k != "system"}
            reports[name] = arm(fields["system"], seed, **COMMON, **more)
        worst = {name: report.metrics["worst_regret"] for name, report in reports.items()}
        return {
            "worst regret / isolated": worst["fedexp3"] / worst["isolated"],
            "slope of mean regret": slope(reports["fedexp3"]),
            "isolated slope": slope(reports["isolated"]),
            **{f"worst regret, {name}": value for name, value in worst.items()},
        }
