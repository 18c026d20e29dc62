"""064: losing central devices hurts by the links that go with them, not by their data."""

from __future__ import annotations

from typing import Any, ClassVar

from shoal.catalog.arms import arm, final
from shoal.catalog.claims import Bound, Claim, Progress, claim
from shoal.network.clocks.disruption import victims
from shoal.network.network import Network

COMMON: dict[str, Any] = {"peers": 50, "rounds": 60, "every": 60}
# Tuned on seeds 100-102, grid lr 0.01, 0.05, 0.1 x momentum 0, 0.5: the same for every arm.
METHOD: dict[str, Any] = {"lr": 0.05, "momentum": 0.5, "local_steps": 2}
GRAPH = "barabasi-albert(m=2)"
EACH = 40


@claim("disaster-dfl")
class DisasterClaim(Claim):
    bounds = (
        Bound("none - hubs without data", ">=", 0.04, "connectivity alone matters on BA graphs"),
        Bound("|hubs with - hubs without|", "<=", 0.03),
        Bound("none - leaves", "<=", 0.02),
        Bound("survivors", ">=", 0.65),
    )
    config: ClassVar[dict[str, Any]] = {**COMMON, **METHOD, "graph": GRAPH, "dropped": "20 % at tick 10"}

    def measure(self, seed: int, progress: Progress) -> dict[str, float]:
        peers = int(COMMON["peers"])
        graph = Network(graph=GRAPH, weights="uniform").graph_at(peers, seed, 0)  # type: ignore[arg-type]

        def go(who: str | None, without: bool) -> float:
            progress(f"{who or 'none'}{' without data' if without else ''}")
            lost = [] if who is None else victims(graph, 0.2, who, seed).nonzero()[:, 0].tolist()
            partition: dict[str, Any] = {"name": "iid", "size": EACH}
            if without:
                # The same total data, spread over the peers that keep some.
                size = EACH * peers // (peers - len(lost))
                partition = {"name": "without", "peers": lost, "inner": {"name": "iid", "size": size}}
            clock = "rounds" if who is None else f"disruption(at=10, fraction=0.2, who={who})"
            report = arm(
                "disaster-dfl",
                seed,
                **COMMON,
                **METHOD,
                network={"graph": GRAPH, "weights": "uniform", "clock": clock},
                task={"partition": partition, "relays": without},
            )
            return final(report)

        none = go(None, False)
        with_data, without_data = go("degree", False), go("degree", True)
        leaves, leaves_without = go("leaves", False), go("leaves", True)
        return {
            "none - hubs without data": none - without_data,
            "|hubs with - hubs without|": abs(with_data - without_data),
            "none - leaves": none - leaves,
            "survivors": min(with_data, without_data),
            "none": none,
            "leaves without data": leaves_without,
        }
