"""023: averaging models of different origin stalls; putting the variance right does not."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from shoal.catalog.arms import arm, final
from shoal.catalog.claims import Bound, Claim, Progress, claim
from shoal.core import Place
from shoal.experiment import plan_of
from shoal.methods.gossip.variance_corrected import weight_variances

COMMON: dict[str, Any] = {"peers": 20, "rounds": 40, "every": 40}


def first_layer(x: torch.Tensor, plan: Any) -> float:
    """Mean variance of the first layer's weights over the peers."""
    task: Any = plan.task.open(Place.whole(plan.peers, plan.seed))
    return float(weight_variances(x, task.layers)[:, 0].mean())


@claim("vc-gossip")
class VarianceClaim(Claim):
    bounds = (
        Bound("corrected - plain", ">=", 0.3, "convergence comparable to federated learning"),
        Bound("|corrected - same start|", "<=", 0.06),
        Bound("|plain variance ratio - 0.3125|", "<=", 0.03),
        Bound("corrected variance ratio", ">=", 0.95),
        Bound("corrected variance ratio (upper)", "<=", 1.05),
    )
    config: ClassVar[dict[str, Any]] = {**COMMON, "graph": "random 4-regular", "partition": "iid"}

    def measure(self, seed: int, progress: Progress) -> dict[str, float]:
        arms: dict[str, dict[str, Any]] = {
            "plain": {"target": "none"},
            "corrected": {},
            "same": {"target": "none", "same_start": True},
        }
        accuracy, ratio = {}, {}
        for name, more in arms.items():
            progress(name)
            accuracy[name] = final(arm("vc-gossip", seed, **COMMON, **more))
            if name != "same":
                # The variance of what averaging alone does: one round with a vanishing step.
                one = {**COMMON, "rounds": 1, "lr": 1e-9}
                plan = plan_of("vc-gossip", seed=seed, **{k: v for k, v in one.items() if k != "lr"})
                task: Any = plan.task.open(Place.whole(plan.peers, plan.seed))
                after = arm("vc-gossip", seed, **one, **more).output
                ratio[name] = first_layer(after, plan) / first_layer(task.init(same=False), plan)
        return {
            "corrected - plain": accuracy["corrected"] - accuracy["plain"],
            "|corrected - same start|": abs(accuracy["corrected"] - accuracy["same"]),
            "|plain variance ratio - 0.3125|": abs(ratio["plain"] - 0.3125),
            "corrected variance ratio": ratio["corrected"],
            "corrected variance ratio (upper)": ratio["corrected"],
            "plain": accuracy["plain"],
            "corrected": accuracy["corrected"],
            "same start": accuracy["same"],
        }
