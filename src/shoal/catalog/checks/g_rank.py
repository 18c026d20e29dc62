"""009 G-Rank: gossip makes every peer agree with the crowd, and Sybils cannot buy the first place."""

from __future__ import annotations

from typing import Any, ClassVar

from shoal.catalog.claims import Bound, Claim, Progress, claim
from shoal.experiment import run

PEERS, TICKS = 60, 6000
SYBILS = {"sybils": 10, "clicks": 300, "at": 0.5}


@claim("g-rank")
class GRankClaim(Claim):
    """60 users, the 256 most rated films, 18 genres; the attack adds 10 Sybils to the 60."""

    bounds = (
        Bound("top1", ">=", 0.9, "100 peers, 256 songs, 39 tags, 10,000 queries: median near 100 %"),
        Bound("top1_no_gossip", "<=", 0.3),
        Bound("takeover", "<=", 0.2),
        Bound("takeover_popularity", ">=", 0.8),
    )
    config: ClassVar[dict[str, Any]] = {"peers": PEERS, "ticks": TICKS, **SYBILS}
    notes = ("no hyper-parameter is tuned: F = 0, swap = 0.5 as published",)

    def measure(self, seed: int, progress: Progress) -> dict[str, float]:
        attacked = {"name": "clicks", "inflation": SYBILS}
        arms: dict[str, dict[str, Any]] = {
            "": {},
            "_no_gossip": {"gossip": "none"},
            "_attacked": {"task": attacked, "peers": PEERS + SYBILS["sybils"]},
            "_popularity": {
                "task": attacked, "peers": PEERS + SYBILS["sybils"], "similarity": "none"
            },
        }  # fmt: skip
        figures: dict[str, float] = {}
        for at, (name, changes) in enumerate(arms.items()):
            setting = {"peers": PEERS, **changes}

            def told(done: int, planned: int, *_: Any, at: int = at, name: str = name) -> None:
                progress(f"g-rank{name}", (at + done / planned) / len(arms))

            report = run("g-rank", rounds=TICKS, every=TICKS, seed=seed, progress=told, **setting)
            figures[f"top1{name}"] = report.metrics["top1"]
            if "takeover" in report.metrics:
                figures["takeover" + name.removesuffix("_attacked")] = report.metrics["takeover"]
            figures[f"bytes{name}"] = float(report.bytes_sent)
        return figures
