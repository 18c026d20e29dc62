"""062: several local epochs save rounds; averaging works from a shared start only."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from shoal.catalog.arms import arm, rounds_to
from shoal.catalog.claims import Bound, Claim, Progress, claim
from shoal.core import Place
from shoal.experiment import plan_of

TARGET = 0.88
CLOCK = {"clock": "participation(fraction=0.1)"}
TASK: dict[str, Any] = {
    "name": "supervised",
    "data": "mnist",
    "partition": "iid",
    "model": {"name": "mlp", "hidden": [64]},
}
COMMON: dict[str, Any] = {"peers": 40, "every": 1, "network": CLOCK}
RATES = (0.1, 0.3, 0.6)
FEDSGD_ROUNDS = 300


@claim("fedavg")
class FedAvgClaim(Claim):
    bounds = (
        Bound(
            "rounds FedSGD / rounds FedAvg (iid)", ">=", 4.0, "10 to 100 times fewer rounds (CNN, iid: 35)"
        ),
        Bound("rounds FedAvg (two shards)", "<=", 160),
        Bound("shared start: better parent's loss - merged loss", ">=", 0.0),
        Bound("own starts: merged loss - worse parent's loss", ">=", 0.0),
    )
    config: ClassVar[dict[str, Any]] = {**COMMON, "target": TARGET, "task": TASK, "rates": RATES}
    notes = ("Smaller than the paper: MLP 784-64-10, 4,000 digits, 40 peers.",)

    def measure(self, seed: int, progress: Progress) -> dict[str, float]:
        # Every arm takes its best rate of the same grid.
        def best(system: str, rounds: int, task: dict[str, Any], **fields: Any) -> float:
            found = []
            for lr in RATES:
                progress(f"{system}, {task['partition']}, lr {lr}")
                report = arm(system, seed, **COMMON, task=task, rounds=rounds, lr=lr, **fields)
                found.append(rounds_to(report, TARGET))
            return min(found)

        many = best("fedavg", 40, TASK, epochs=5, batch=10)
        single = min(best("fedsgd", FEDSGD_ROUNDS, TASK), FEDSGD_ROUNDS + 1)
        skewed = best("fedavg", 160, {**TASK, "partition": "shards(per_peer=2)"}, epochs=5, batch=10)
        return {
            "rounds FedSGD / rounds FedAvg (iid)": single / many,
            "rounds FedAvg (two shards)": skewed,
            "shared start: better parent's loss - merged loss": -parents(seed, True)[0],
            "own starts: merged loss - worse parent's loss": parents(seed, False)[1],
            "rounds FedAvg (iid)": many,
            "rounds FedSGD (iid)": single,
        }


def parents(seed: int, same: bool) -> tuple[float, float]:
    """Two models trained apart on 600 digits each and averaged: (merged - better parent's, merged -
    worse parent's) loss on all training data, as in the paper's Figure 1."""
    task = {**TASK, "partition": "iid(size=600)", "batch": 50}
    plan = plan_of("local", task=task, peers=2, rounds=1, seed=seed)
    work: Any = plan.task.open(Place.whole(2, seed))
    report = arm("local", seed, task=task, peers=2, rounds=1, lr=0.1, local_steps=240, same_start=same)
    x = report.output
    models = torch.cat([x, x.mean(0, keepdim=True)])
    one, two, merged = work.model.score(models, work.x, work.y)["loss"].tolist()
    return merged - min(one, two), merged - max(one, two)
