"""025: open-loop Frank-Wolfe steps, taken unless F rises, converge on losses that are not smooth."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from shoal.catalog.arms import arm
from shoal.catalog.claims import Bound, Claim, Progress, claim
from shoal.core import Report

COMMON: dict[str, Any] = {"peers": 8, "rounds": 3000, "every": 1, "dtype": "float64"}
PROBLEMS: dict[str, dict[str, Any]] = {
    "logistic": {"task": "logistic", "region": "l1(radius=5)"},
    "portfolio": {"task": "log-portfolio(assets=200)", "region": "simplex"},
    "d-optimal": {"task": "d-optimal(points=60, regressors=8)", "region": "simplex"},
}


def slope(report: Report, first: int = 20) -> float:
    """Exponent of the smallest gap so far in t, over points spread evenly in log t."""
    ticks, gaps = (np.array(v) for v in report.curve("best_gap"))
    wanted = np.geomspace(first, ticks[-1], 30)
    rows = np.unique([int(np.abs(ticks - t).argmin()) for t in wanted])
    return float(np.polyfit(np.log(ticks[rows]), np.log(gaps[rows]), 1)[0])


def rises(report: Report) -> float:
    """Rounds after which F stands above its value before, beyond rounding."""
    _, loss = report.curve("loss")
    return float(sum(not b <= a + 1e-12 * abs(a) for a, b in pairwise(loss)))


@claim("m-fw")
class MonotonousClaim(Claim):
    bounds = (
        *(Bound(f"slope, {name}", "<=", -0.85, "O(1/t) in the Frank-Wolfe gap") for name in PROBLEMS),
        Bound("rises of F", "==", 0.0, "monotone by construction"),
        Bound("rises of plain FW, d-optimal", ">=", 1.0, "plain steps leave the domain"),
        Bound("Hessian and Lipschitz calls", "==", 0.0, "first-order and domain oracles only"),
    )
    config: ClassVar[dict[str, Any]] = {**COMMON, **PROBLEMS}
    notes = (
        "Breast-cancer, 200 simulated assets and 60 design points on 8 peers; "
        "the paper has problems of up to 10^4 variables.",
    )

    def measure(self, seed: int, progress: Progress) -> dict[str, float]:
        out: dict[str, float] = {"rises of F": 0.0, "Hessian and Lipschitz calls": 0.0}
        for number, (name, problem) in enumerate(PROBLEMS.items()):
            progress(name, number / len(PROBLEMS))
            report = arm("m-fw", seed, **COMMON, **problem)
            out[f"slope, {name}"] = slope(report)
            out["rises of F"] += rises(report)
            calls = report.final["calls"]
            out["Hessian and Lipschitz calls"] += calls["hessian"] + calls["lipschitz"]
            out[f"gap, {name}"] = report.metrics["best_gap"]
            for other, fields in (
                ("halve", {"system": "m-fw", "rule": "halve"}),
                ("plain", {"system": "frank-wolfe"}),
                ("backtracking", {"system": "backtracking-fw"}),
            ):
                # The baselines are shown at a third of the rounds.
                shorter = {**COMMON, "rounds": COMMON["rounds"] // 3}
                more = {k: v for k, v in fields.items() if k != "system"}
                told = arm(fields["system"], seed, **shorter, **problem, **more)
                out[f"gap at a third, {name}, {other}"] = told.metrics["best_gap"]
                if other == "plain" and name == "d-optimal":
                    out["rises of plain FW, d-optimal"] = rises(told)
        return out
