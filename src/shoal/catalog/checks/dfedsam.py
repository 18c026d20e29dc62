"""013: several gossip steps help accuracy and consistency, SAM flattens."""

from __future__ import annotations

from typing import Any, ClassVar

from shoal.catalog.arms import arm, final, opened, sharpness
from shoal.catalog.claims import Bound, Claim, Progress, claim

COMMON: dict[str, Any] = {"peers": 20, "rounds": 60, "every": 60}
# The entry's: rate 0.1, decay 0.998 a round, weight decay 5e-4, for every arm.
METHOD: dict[str, Any] = {"lr": 0.1, "decay": 0.998, "weight_decay": 5e-4, "local_steps": 10}
RHO = 0.2
EVERYONE = {"graph": "complete"}
ARMS: dict[str, dict[str, Any]] = {
    "DFedAvg": {"rho": 0.0},
    "DFedSAM": {"rho": RHO},
    "MGS": {"rho": RHO, "gossip_steps": 4},
    # Printed alone.
    "DFedAvg (Q = 4)": {"rho": 0.0, "gossip_steps": 4},
    "DFedAvgM": {"rho": 0.0, "momentum": 0.9, "lr": 0.01},
    "D-PSGD": {"rho": 0.0, "local_steps": 1},
    "FedAvg": {"rho": 0.0, "network": EVERYONE},
    "FedSAM": {"rho": RHO, "network": EVERYONE},
}


@claim("dfedsam")
class DFedSAMClaim(Claim):
    bounds = (
        Bound("MGS (Q = 4) - DFedAvg", ">=", 0.08, "above all baselines (CIFAR-10/100)"),
        Bound("merged: DFedSAM - DFedAvg", ">=", 0.01),
        Bound("sharpness ratio DFedSAM / DFedAvg", "<=", 0.8),
        Bound("consensus distance Q = 4 / Q = 1", "<=", 0.35),
    )
    config: ClassVar[dict[str, Any]] = {
        **COMMON,
        **METHOD,
        "rho": RHO,
        "graph": "ring",
        "partition": "dirichlet(0.1), 50 examples",
        "arms": ARMS,
    }
    notes = (
        "Smaller than the paper: MLP 196-48-10, 20 peers on a ring, 50 digits each.",
        "Consensus distance is the paper's mean squared one, (1/m) sum |x_i - mean|^2; the ratio of its "
        "roots (what reports show as consensus) is printed beside it.",
        "DFedAvgM (rate 0.01, momentum 0.9), D-PSGD, FedAvg and FedSAM are printed, not tuned or claimed.",
    )

    def measure(self, seed: int, progress: Progress) -> dict[str, float]:
        runs = {}
        for name, fields in ARMS.items():
            progress(name)
            runs[name] = arm("dfedsam", seed, **{**COMMON, **METHOD, **fields})
        task = opened("dfedsam", seed, **COMMON)
        flat = {
            name: sharpness(task, runs[name].output.mean(0, keepdim=True), seed)
            for name in ("DFedAvg", "DFedSAM", "MGS")
        }
        accuracy = {name: final(report) for name, report in runs.items()}
        merged = {name: final(report, "merged_accuracy") for name, report in runs.items()}
        apart = {name: final(report, "consensus") for name, report in runs.items()}
        return {
            "MGS (Q = 4) - DFedAvg": accuracy["MGS"] - accuracy["DFedAvg"],
            "merged: DFedSAM - DFedAvg": merged["DFedSAM"] - merged["DFedAvg"],
            "sharpness ratio DFedSAM / DFedAvg": flat["DFedSAM"] / flat["DFedAvg"],
            "consensus distance Q = 4 / Q = 1": (apart["MGS"] / apart["DFedSAM"]) ** 2,
            "root of consensus distance Q = 4 / Q = 1": apart["MGS"] / apart["DFedSAM"],
            "consensus distance DFedSAM / DFedAvg": (apart["DFedSAM"] / apart["DFedAvg"]) ** 2,
            "sharpness ratio MGS / DFedAvg": flat["MGS"] / flat["DFedAvg"],
            **{f"accuracy {name}": value for name, value in accuracy.items()},
        }
