"""004: one merge at the end recovers most of what constant averaging gives."""

from __future__ import annotations

from typing import Any, ClassVar

from shoal.catalog.arms import arm, final
from shoal.catalog.claims import Bound, Claim, Progress, claim

COMMON: dict[str, Any] = {"peers": 16, "rounds": 150, "every": 10}
METHOD: dict[str, Any] = {"lr": 0.05, "local_steps": 5}


@claim("single-merge")
class SingleMergeClaim(Claim):
    bounds = (
        Bound("merged - mean local", ">=", 0.15, "near federated accuracy (TinyImageNet, 32 agents)"),
        Bound("merged (R = 0.2) - merged (never)", ">=", 0.35),
        Bound("late window - early window", ">=", 0.15),
        Bound("always - merged", "<=", 0.12, "about 0"),
        Bound("bytes / bytes of always", "<=", 0.2),
    )
    config: ClassVar[dict[str, Any]] = {
        **COMMON,
        **METHOD,
        "data": "mnist14",
        "partition": "dirichlet(0.1)",
    }
    notes = ("Smaller than the paper: MLP 196-48-10 on 4,000 digits, 16 peers.",)

    def measure(self, seed: int, progress: Progress) -> dict[str, float]:
        def go(schedule: str, graph: str = "random-peer(p=0.2)", **more: Any) -> Any:
            progress(f"{schedule} {graph} {more}")
            return arm(
                "single-merge",
                seed,
                **COMMON,
                **METHOD,
                schedule=schedule,
                network={"graph": graph},
                **more,
            )

        once = go("final")
        # Before the last tick the models are those of the run that never merges.
        before = once.rows[-2]
        never = go("never", "components(parts=16)")
        always = go("always", "components(parts=16)")
        early = go("window", "random-peer(p=0.2)", start=0, length=10)
        late = go("window", "random-peer(p=0.2)", start=140, length=10)
        merged = final(once)
        return {
            "merged - mean local": merged - before["accuracy"],
            "merged (R = 0.2) - merged (never)": merged - final(never, "merged_accuracy"),
            "late window - early window": final(late) - final(early),
            "always - merged": final(always) - merged,
            "bytes / bytes of always": once.bytes_sent / always.bytes_sent,
            "merged": merged,
            "always": final(always),
        }
