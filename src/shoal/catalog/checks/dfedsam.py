"""013: several gossip steps help accuracy and consistency, SAM flattens."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from shoal.catalog.arms import arm, final
from shoal.catalog.claims import Bound, Claim, Progress, claim
from shoal.core import Draws, Place, Report
from shoal.experiment import plan_of

COMMON: dict[str, Any] = {"peers": 20, "rounds": 60, "every": 60}
RHO = 0.2


def sharpness(report: Report, plan: Any, directions: int = 10, radius: float = 0.1) -> float:
    """Mean rise of the merged model's test loss over random directions of length radius |x|."""
    task: Any = plan.task.open(Place.whole(plan.peers, plan.seed))
    x = report.output.mean(0, keepdim=True)
    z = Draws(plan.seed, "sharpness", torch.arange(directions)).normal(x.shape[1], dtype=x.dtype)
    points = x + radius * x.norm() * z / z.norm(dim=1, keepdim=True)
    at = task.model.score(torch.cat([x, points]), task.test_x, task.test_y)["loss"]
    return float(at[1:].mean() - at[0])


@claim("dfedsam")
class DFedSAMClaim(Claim):
    bounds = (
        Bound("MGS (Q = 4) - DFedAvg", ">=", 0.08, "above all baselines (CIFAR-10/100)"),
        Bound("merged: DFedSAM - DFedAvg", ">=", 0.01),
        Bound("sharpness ratio", "<=", 0.8),
        Bound("consensus ratio Q = 4 / Q = 1", "<=", 0.35),
    )
    config: ClassVar[dict[str, Any]] = {**COMMON, "rho": RHO, "partition": "dirichlet(0.1), 50 examples"}
    notes = ("Smaller than the paper: MLP 196-48-10, 20 peers on a ring, 50 digits each.",)

    def measure(self, seed: int, progress: Progress) -> dict[str, float]:
        runs = {}
        for name, rho, hops in (("avg", 0.0, 1), ("sam", RHO, 1), ("mgs", RHO, 4)):
            progress(name)
            runs[name] = arm("dfedsam", seed, **COMMON, rho=rho, gossip_steps=hops)
        plan = plan_of("dfedsam", seed=seed, **COMMON)
        flat = {name: sharpness(report, plan) for name, report in runs.items()}
        return {
            "MGS (Q = 4) - DFedAvg": final(runs["mgs"]) - final(runs["avg"]),
            "merged: DFedSAM - DFedAvg": final(runs["sam"], "merged_accuracy")
            - final(runs["avg"], "merged_accuracy"),
            "sharpness ratio": flat["sam"] / flat["avg"],
            "consensus ratio Q = 4 / Q = 1": final(runs["mgs"], "consensus")
            / final(runs["sam"], "consensus"),
            "consensus of SAM / of DFedAvg": final(runs["sam"], "consensus")
            / final(runs["avg"], "consensus"),
            "DFedAvg": final(runs["avg"]),
            "MGS": final(runs["mgs"]),
        }
