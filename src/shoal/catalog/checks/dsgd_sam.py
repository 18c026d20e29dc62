"""026: what sets D-SGD's mean direction apart from the gradient is average-direction SAM's term."""

from __future__ import annotations

from typing import Any, ClassVar

from shoal.catalog.arms import arm, final
from shoal.catalog.claims import Bound, Claim, Progress, claim
from shoal.methods.gossip.avg_sam import DSGDProbe

COMMON: dict[str, Any] = {"peers": 16, "rounds": 150, "every": 150}


@claim("dsgd-sam")
class DSGDSAMClaim(Claim):
    bounds = (
        Bound("|A-B|/|B|", ">=", 0.02),
        Bound("|A-B-C|/|A-B|", "<=", 0.3, "equal as the step size vanishes (Theorem 1)"),
        Bound("|A-G|/|A-B|", "<=", 0.35),
    )
    config: ClassVar[dict[str, Any]] = {**COMMON, "lr": 0.1, "batch": 64, "graph": "ring", "pairs": 100}
    notes = ("Smaller than the paper: MLP 196-24-10 (tanh) on digits; the probe's batch has 512 examples.",)

    def measure(self, seed: int, progress: Progress) -> dict[str, float]:
        progress("D-SGD on a ring")
        ring = arm("dsgd-sam", seed, **COMMON, lr=0.1)
        progress("C-SGD")
        central = arm("csgd", seed, **COMMON, task=DSGDProbe.recipe["task"], lr=0.1, local_steps=1)
        return {
            "|A-B|/|B|": final(ring, "gap"),
            "|A-B-C|/|A-B|": final(ring, "taylor"),
            "|A-G|/|A-B|": final(ring, "smoothing"),
            "trace of Xi": final(ring, "trace"),
            "uncertainty": final(ring, "uncertainty"),
            "accuracy of the merged model": final(ring, "merged_accuracy"),
            "accuracy of C-SGD": final(central),
        }
