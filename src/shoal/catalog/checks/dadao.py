"""045: gradients grow as the square root of the condition number, messages stay below tracking's."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from shoal.catalog.arms import arm
from shoal.catalog.claims import Bound, Claim, Progress, claim
from shoal.core import Report
from shoal.network.clocks.poisson import PoissonPair
from shoal.network.network import Network

# Relative to the start: the squared distance of all peers to the optimum falls to 1e-6.
TARGET = 1e-3
COMMON: dict[str, Any] = {"peers": 10, "dtype": "float64", "every": 50}
# Ticks (groups of events) that reach the target with room to spare.
TICKS = {10: 3_500, 100: 10_000, 1000: 30_000}
# Tracking's step times L, the quickest on seeds 100, 101, 102 of 0.1, 0.2, ..., 1, 1.2, 1.5, 2, 2.5,
# 3, 4, 5, 6, 8 at kappa = 1000; from 2 on it diverges.
KAPPA, STEP, ROUNDS = 1000, 1.5, 6_000
# Bytes of five float64 each way.
BOTH_WAYS = 80


def quadratic(kappa: int) -> dict[str, Any]:
    """d = 5, mu = 1, L = kappa, one eigenbasis for all peers."""
    return {"name": "quadratic", "dim": 5, "kappa": float(kappa)}


def until(report: Report, column: str) -> float:
    """What had been spent of ``column`` when the target was reached; infinity: never."""
    reached = (row[column] for row in report.rows if row["relative_error"] <= TARGET)
    return next(reached, math.inf)


@claim("dadao")
class DadaoClaim(Claim):
    bounds = (
        Bound("slope of gradients over kappa", ">=", 0.38, "O(n sqrt(L/mu)) gradients"),
        Bound("slope of gradients over kappa (upper)", "<=", 0.62, "O(n sqrt(L/mu)) gradients"),
        Bound("communications / tracking's", "<=", 0.7, "O(n sqrt(chi1 chi2) sqrt(L/mu)) communications"),
        Bound("uniform rate / optimal rate", ">=", 2.5, "rates by semidefinite programming"),
    )
    config: ClassVar[dict[str, Any]] = {
        **COMMON,
        "graph": "ring",
        "ticks": {str(k): v for k, v in TICKS.items()},
        "tracking": {"kappa": KAPPA, "lr": f"{STEP}/L", "rounds": ROUNDS},
    }
    notes = (
        "A communication is one vector each way over one edge: one for an edge event of DADAO, two an "
        "edge and round for tracking, which mixes x and then y.",
    )

    def measure(self, seed: int, progress: Progress) -> dict[str, float]:
        gradients: dict[int, float] = {}
        sent = math.inf
        done, whole = 0, sum(TICKS.values()) + ROUNDS
        for kappa, ticks in TICKS.items():
            progress(f"kappa {kappa}", done / whole)
            done += ticks
            report = arm(
                "dadao",
                seed,
                **COMMON,
                task=quadratic(kappa),
                network={"graph": "ring", "clock": "poisson-pair"},
                rounds=ticks,
            )
            gradients[kappa] = until(report, "spent")
            sent = until(report, "bytes") / BOTH_WAYS
        progress("tracking", done / whole)
        tuned = arm(
            "gradient-tracking",
            seed,
            **COMMON,
            task=quadratic(KAPPA),
            network={"graph": "ring"},
            rounds=ROUNDS,
            lr=STEP / KAPPA,
        )
        # Where tracking does not get there, what it had sent in vain is what counts.
        tracked = min(until(tuned, "bytes"), tuned.bytes_sent) / BOTH_WAYS
        slope = math.nan
        if all(math.isfinite(v) for v in gradients.values()):
            slope = float(np.polyfit(np.log(list(gradients)), np.log(list(gradients.values())), 1)[0])
        barbell = Network.make(graph="barbell").graph_at(16, seed, 0)
        uniform = PoissonPair().total_rate(barbell)
        optimal = PoissonPair(rates="optimal").total_rate(barbell)
        return {
            "slope of gradients over kappa": slope,
            "slope of gradients over kappa (upper)": slope,
            "communications / tracking's": sent / tracked,
            "uniform rate / optimal rate": uniform / optimal,
            **{f"gradients, kappa {k}": v for k, v in gradients.items()},
            "communications, dadao": sent,
            "communications, tracking": tracked,
            "communications / tracking's, its two mixes as one": 2 * sent / tracked,
            "gradients, tracking": until(tuned, "spent"),
            "rate, uniform": uniform,
            "rate, optimal": optimal,
        }
