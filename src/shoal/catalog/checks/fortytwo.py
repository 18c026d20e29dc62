"""012: ranking each other's answers beats counting them, and reputation keeps colluders small."""

from __future__ import annotations

from typing import Any, ClassVar

from shoal.catalog.arms import arm
from shoal.catalog.claims import Bound, Claim, Progress, claim

SWARM: dict[str, Any] = {
    "name": "population", "low": 0.35, "high": 0.75, "judge": 0.72, "lure": 0.6
}  # fmt: skip
COMMON: dict[str, Any] = {"peers": 7, "rounds": 300, "every": 300}
ARMS: dict[str, dict[str, Any]] = {
    "honest": {},
    "two colluders": {"colluders": 2},
    "three colluders": {"colluders": 3},
    "coin judges": {"judge": 0.5},
}


@claim("fortytwo")
class FortytwoClaim(Claim):
    bounds = (
        Bound("accuracy - majority", ">=", 0.08, "GPQA Diamond: 85.90 against 68.69 %"),
        Bound("two colluders: weighted - unweighted", ">=", 0.15),
        Bound("coin judges: accuracy - majority", "<=", 0.0),
    )
    config: ClassVar[dict[str, Any]] = {**COMMON, "task": SWARM, "arms": ARMS, "memory": 0.9}
    notes = (
        "SIMULATED responders: answers and judgements are drawn, no model was asked.",
        "Reputation counts the verdicts that a judge gave in both orders of a pair. Counting every "
        "verdict failed on the seeds 10, 11, 12 (two colluders: 0.127, 0.117, 0.077); the reading was "
        "changed on the seeds 100-107 and is judged on 20, 21, 22, not looked at before.",
        "No hyper-parameter is tuned. Colluders know the answers and always vote for the wrong one.",
    )

    def measure(self, seed: int, progress: Progress) -> dict[str, float]:
        figures: dict[str, dict[str, float]] = {}
        for number, (name, changes) in enumerate(ARMS.items()):
            progress(name, number / len(ARMS))
            figures[name] = arm("fortytwo", seed, **COMMON, task={**SWARM, **changes}).metrics
        key = "simulated_accuracy"
        out: dict[str, float] = {}
        for name, found in figures.items():
            lead = "" if name == "honest" else f"{name}: "
            out[f"{lead}accuracy - majority"] = found[key] - found[f"{key}_majority"]
            out[f"{lead}weighted - unweighted"] = found[key] - found[f"{key}_unweighted"]
            out[f"{lead}accuracy"] = found[key]
        best = figures["honest"][f"{key}_best_node"]
        return out | {"accuracy - best node": figures["honest"][key] - best}
