"""045: gradients grow as the square root of the condition number, messages stay below tracking's."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch

from shoal.catalog.arms import arm, rounds_to
from shoal.catalog.claims import Bound, Claim, Progress, claim
from shoal.core import Report
from shoal.methods.asynchronous.dadao import DADAO

# Relative to the start: the squared distance of all peers to the optimum falls to 1e-6.
TARGET = 1e-3
COMMON: dict[str, Any] = {"peers": 10, "dtype": "float64"}
# Ticks (groups of events) that reach the target with room to spare.
TICKS = {10: 4_000, 100: 11_000, 1000: 32_000}
# Tuned on seeds 100 and 101 over 0.1, 0.2, ..., 1.0 times 1/L: the largest factor that converges at
# every kappa is not always the quickest, so each kappa has its own.
TRACKING = {1000: {"lr": 0.4, "rounds": 20_000}}
EDGES = 10


def quadratic(kappa: int) -> dict[str, Any]:
    """d = 5, mu = 1, L = kappa, one eigenbasis for all peers."""
    return {"name": "quadratic", "dim": 5, "kappa": float(kappa)}


def until(report: Report, column: str) -> float:
    """What had been spent of ``column`` when the target was reached; infinity: never."""
    tick = rounds_to(report, TARGET, "relative_error")
    return next((row[column] for row in report.rows if row["tick"] == tick), math.inf)


@claim("dadao")
class DadaoClaim(Claim):
    bounds = (
        Bound("slope of gradients over kappa", ">=", 0.38, "O(n sqrt(L/mu)) gradients"),
        Bound("slope of gradients over kappa (upper)", "<=", 0.62, "O(n sqrt(L/mu)) gradients"),
        Bound("exchanges / tracking's", "<=", 0.7, "O(n sqrt(chi1 chi2) sqrt(L/mu)) communications"),
        Bound("uniform rate / optimal rate", ">=", 2.5, "rates by semidefinite programming"),
    )
    config: ClassVar[dict[str, Any]] = {
        **COMMON,
        "graph": "ring",
        "ticks": {str(k): v for k, v in TICKS.items()},
        "tracking": {str(k): v for k, v in TRACKING.items()},
    }
    notes = (
        "A round of tracking counts as one exchange an edge, though it carries two vectors each way; "
        "one of DADAO's carries one.",
    )

    def measure(self, seed: int, progress: Progress) -> dict[str, float]:
        gradients: dict[int, float] = {}
        exchanges = vectors = math.inf
        done, whole = 0, sum(TICKS.values()) + sum(v["rounds"] for v in TRACKING.values())
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
                every=100,
            )
            gradients[kappa] = until(report, "spent")
            # Both ends of an edge send 5 float64.
            exchanges, vectors = until(report, "bytes") / 80, until(report, "bytes") / 40
        kappa = max(TRACKING)
        progress("tracking", done / whole)
        tuned = arm(
            "gradient-tracking",
            seed,
            **COMMON,
            task=quadratic(kappa),
            network={"graph": "ring"},
            rounds=TRACKING[kappa]["rounds"],
            lr=TRACKING[kappa]["lr"] / kappa,
            every=100,
        )
        rounds = rounds_to(tuned, TARGET, "relative_error")
        known = [k for k, v in gradients.items() if math.isfinite(v)]
        slope = math.nan
        if len(known) == len(gradients):
            values = [gradients[k] for k in known]
            slope = float(np.polyfit(np.log(known), np.log(values), 1)[0])
        barbell = {"graph": "barbell", "rates": "optimal"}
        uniform = DADAO(graph="barbell").gossip(16, seed)[1]
        optimal = DADAO(**barbell).gossip(16, seed)[1]
        return {
            "slope of gradients over kappa": slope,
            "slope of gradients over kappa (upper)": slope,
            "exchanges / tracking's": exchanges / (EDGES * rounds),
            "uniform rate / optimal rate": uniform / optimal,
            **{f"gradients, kappa {k}": v for k, v in gradients.items()},
            "exchanges, dadao": exchanges,
            "exchanges, tracking": EDGES * rounds,
            "vectors, dadao / tracking": vectors / until(tuned, "bytes") * 40,
            "rate, uniform": uniform,
            "rate, optimal": optimal,
        }
