"""121: prune, cluster and entropy-code: tens to hundreds of times fewer bytes."""

from __future__ import annotations

from typing import Any, ClassVar

from shoal.catalog.arms import arm, final
from shoal.catalog.claims import Bound, Claim, Progress, claim

COMMON: dict[str, Any] = {"peers": 20, "rounds": 30, "every": 30, "epochs": 1, "batch": 10, "lr": 0.1}
DOWN = "the up-link alone is compressed and counted"


@claim("fedzip")
class FedZipClaim(Claim):
    bounds = (
        Bound("ratio at z = 10 %", ">=", 45, "up to 1085x"),
        Bound("accuracy loss at z = 10 %", "<=", 0.05),
        Bound("ratio at z = 1 %", ">=", 180),
        Bound("loss with error feedback / without at z = 1 %", "<=", 0.5),
        Bound("ratio grows as z falls", "==", 1.0),
    )
    config: ClassVar[dict[str, Any]] = {**COMMON, "data": "mnist14", "partition": "dirichlet(0.5)"}
    notes = (DOWN,)

    def measure(self, seed: int, progress: Progress) -> dict[str, float]:
        def go(codec: Any, feedback: bool = False) -> tuple[float, float]:
            progress(f"{codec}, error feedback {feedback}")
            report = arm("fedzip", seed, **COMMON, network={"codec": codec, "error_feedback": feedback})
            src, _, size = report.links
            return final(report), float(size[src < COMMON["peers"]].sum())

        top, raw = go([])
        kept = {z: go(f"fedzip(z={z})") for z in (0.1, 0.01, 0.002)}
        fed, _ = go("fedzip(z=0.01)", True)
        ratio = {z: raw / size for z, (_, size) in kept.items()}
        loss = {z: top - accuracy for z, (accuracy, _) in kept.items()}
        return {
            "ratio at z = 10 %": ratio[0.1],
            "accuracy loss at z = 10 %": loss[0.1],
            "ratio at z = 1 %": ratio[0.01],
            "loss with error feedback / without at z = 1 %": (top - fed) / loss[0.01],
            "ratio grows as z falls": float(ratio[0.1] < ratio[0.01] < ratio[0.002]),
            "loss at z = 1 %": loss[0.01],
            "ratio at z = 0.2 %": ratio[0.002],
            "loss at z = 0.2 %": loss[0.002],
            "uncompressed accuracy": top,
        }
