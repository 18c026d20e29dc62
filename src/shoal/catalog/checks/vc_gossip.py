"""023: averaging models of different origin stalls; putting the variance right does not."""

from __future__ import annotations

from typing import Any, ClassVar

from shoal.catalog.arms import arm, final, opened
from shoal.catalog.claims import Bound, Claim, Progress, claim
from shoal.core import Report
from shoal.methods.gossip.variance_corrected import VarianceCorrected, weight_variances

COMMON: dict[str, Any] = {"peers": 20, "rounds": 40, "every": 40}
# The entry gives no rate: each arm's best of 0.05, 0.1, 0.2, 0.4, 0.8 on seeds 100 and 101.
ARMS: dict[str, dict[str, Any]] = {
    "plain": {"target": "none", "lr": 0.4},
    "corrected": {"lr": 0.2},
    "same start": {"target": "none", "same_start": True, "lr": 0.4},
}
# Printed alone; rates from the same grid.
BASELINES: dict[str, tuple[str, dict[str, Any]]] = {
    "partitioned gossip learning": (
        "gossip-learning",
        {"lr": 0.2, "same_start": False, "network": VarianceCorrected.recipe["network"]},
    ),
    "local": ("local", {"lr": 0.2, "same_start": False}),
    "FedAvg (all peers, same start)": ("csgd", {"lr": 0.8}),
}
DEEP = {"model": {"name": "mlp", "hidden": [32] * 5, "init": "xavier"}}


def first_layer(x: Any, layers: Any) -> float:
    """Mean variance of the first layer's weights over the peers."""
    return float(weight_variances(x, layers)[:, 0].mean())


@claim("vc-gossip")
class VarianceClaim(Claim):
    bounds = (
        Bound("corrected - plain", ">=", 0.3, "convergence comparable to federated learning"),
        Bound("|corrected - same start|", "<=", 0.06),
        Bound("|plain variance ratio - 0.3125|", "<=", 0.03),
        Bound("corrected variance ratio", ">=", 0.95),
        Bound("corrected variance ratio (upper)", "<=", 1.05),
    )
    config: ClassVar[dict[str, Any]] = {
        **COMMON,
        "arms": ARMS,
        "baselines": BASELINES,
        "task": VarianceCorrected.recipe["task"],
        "batch": 32,
        "graph": "random 4-regular",
    }
    notes = (
        "MLP 196-32-32-10 on 4,000 digits, 20 peers. Plain averaging only stalls for a while, and the "
        "shorter the higher its rate: printed at rate 0.1 for all arms too.",
        "Five hidden layers, printed at rate 0.4 for all arms: each shrunken layer shrinks the signal.",
    )

    def measure(self, seed: int, progress: Progress) -> dict[str, float]:
        def go(name: str, **more: Any) -> Report:
            progress(f"{name} {more}")
            return arm("vc-gossip", seed, **{**COMMON, **ARMS[name], **more})

        accuracy = {name: final(go(name)) for name in ARMS}
        low = {name: final(go(name, lr=0.1)) for name in ARMS}
        deep = {name: final(go(name, lr=0.4, task=DEEP)) for name in ARMS}
        shared: dict[str, Any] = {**COMMON, "task": VarianceCorrected.recipe["task"], "local_steps": 2}
        others = {
            name: final(arm(system, seed, **shared, **fields))
            for name, (system, fields) in BASELINES.items()
        }
        task = opened("vc-gossip", seed, **COMMON)
        start = first_layer(task.init(same=False), task.layers)
        ratio = {
            name: first_layer(go(name, rounds=1).output, task.layers) / start
            for name in ("plain", "corrected")
        }
        return {
            "corrected - plain": accuracy["corrected"] - accuracy["plain"],
            "|corrected - same start|": abs(accuracy["corrected"] - accuracy["same start"]),
            "|plain variance ratio - 0.3125|": abs(ratio["plain"] - 0.3125),
            "corrected variance ratio": ratio["corrected"],
            "corrected variance ratio (upper)": ratio["corrected"],
            **accuracy,
            **others,
            **{f"{name} (rate 0.1)": value for name, value in low.items()},
            **{f"{name} (five hidden layers)": value for name, value in deep.items()},
        }
