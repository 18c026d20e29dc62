"""026: what sets D-SGD's mean direction apart from the gradient is average-direction SAM's term."""

from __future__ import annotations

from typing import Any, ClassVar

from shoal.catalog.arms import arm, final, opened, sharpness
from shoal.catalog.claims import Bound, Claim, Progress, claim
from shoal.core import Report
from shoal.methods.gossip.avg_sam import DSGDProbe

COMMON: dict[str, Any] = {"peers": 16, "rounds": 150, "every": 150}
TASK: dict[str, Any] = DSGDProbe.recipe["task"]
FULL: dict[str, Any] = {**TASK, "batch": 0}
CENTRAL: dict[str, Any] = {**COMMON, "lr": 0.1, "local_steps": 1}


@claim("dsgd-sam")
class DSGDSAMClaim(Claim):
    bounds = (
        Bound("|A-B|/|B|", ">=", 0.02),
        Bound("|A-B-C|/|A-B|", "<=", 0.3, "equal as the step size vanishes (Theorem 1)"),
        Bound("|A-G|/|A-B|", "<=", 0.35),
    )
    config: ClassVar[dict[str, Any]] = {
        **COMMON,
        "task": TASK,
        "graph": "ring",
        "lr": 0.1,
        "pairs": 100,
        "SAM": {"rho": 0.05},
    }
    notes = (
        "Smaller than the paper: MLP 196-24-10 (tanh) on digits; the probe's batch has 512 examples.",
        "Accuracy and sharpness against C-SGD and SAM are printed, not claimed.",
    )

    def measure(self, seed: int, progress: Progress) -> dict[str, float]:
        progress("D-SGD on a ring")
        ring = arm("dsgd-sam", seed, **COMMON, lr=0.1)
        progress("C-SGD, average-direction SAM, SAM")
        central = arm("csgd", seed, **CENTRAL, task=TASK)
        average = arm("avg-sam", seed, **CENTRAL)
        # On the complete graph all peers keep one model: centralised SAM along the gradient.
        steepest = arm(
            "dfedsam", seed, **CENTRAL, task=TASK, network={"graph": "complete"}, rho=0.05, decay=1.0,
            weight_decay=0.0,
        )  # fmt: skip
        progress("full local batches")
        full_ring = arm("dsgd-sam", seed, **COMMON, task=FULL, lr=0.1)
        full_central = arm("csgd", seed, **CENTRAL, task=FULL)
        task = opened("dsgd-sam", seed, **COMMON)

        def flat(report: Report) -> float:
            return sharpness(task, report.output.mean(0, keepdim=True), seed)

        return {
            "|A-B|/|B|": final(ring, "gap"),
            "|A-B-C|/|A-B|": final(ring, "taylor"),
            "|A-G|/|A-B|": final(ring, "smoothing"),
            "trace of Xi": final(ring, "trace"),
            "uncertainty": final(ring, "uncertainty"),
            "accuracy: D-SGD, merged": final(ring, "merged_accuracy"),
            "accuracy: C-SGD": final(central),
            "accuracy: average-direction SAM": final(average),
            "accuracy: SAM": final(steepest),
            "sharpness: D-SGD, merged": flat(ring),
            "sharpness: C-SGD": flat(central),
            "sharpness: average-direction SAM": flat(average),
            "sharpness: SAM": flat(steepest),
            "accuracy, full batch: D-SGD, merged": final(full_ring, "merged_accuracy"),
            "accuracy, full batch: C-SGD": final(full_central),
            "sharpness, full batch: D-SGD, merged": flat(full_ring),
            "sharpness, full batch: C-SGD": flat(full_central),
        }
