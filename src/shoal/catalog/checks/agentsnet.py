"""087: exact algorithms solve all five problems through texts; damaged texts hurt large networks most."""

from __future__ import annotations

from typing import Any, ClassVar

import networkx

from shoal.catalog.arms import arm
from shoal.catalog.claims import Bound, Claim, Progress, claim
from shoal.network.network import Network

PROBLEMS = ("coloring", "vertex-cover", "maximal-matching", "leader-election", "consensus")
# Up to 16 agents 4 to 8 rounds, as published; for 100 see `rounds`.
ROUNDS = {4: 4, 8: 5, 16: 6}
GRAPHS = ("watts-strogatz(k={k})", "barabasi-albert", "delaunay")
CORRUPTION = 0.1


def known(graph: str, n: int, seed: int) -> networkx.Graph:
    """The graph of a run."""
    edges = Network(graph=graph).graph_at(n, seed, 0)  # type: ignore[arg-type]
    return networkx.Graph(list(zip(edges.src.tolist(), edges.dst.tolist(), strict=True)))


def far_apart(graph: networkx.Graph) -> tuple[int, list[str]]:
    """(diameter, names whose two lowest lie at its ends): what makes an election as slow as it can be."""
    distance = dict(networkx.all_pairs_shortest_path_length(graph))
    a, b = max(((i, j) for i in graph for j in graph), key=lambda p: (distance[p[0]][p[1]], p))
    order = [a, b, *sorted(set(graph) - {a, b})]
    names = {peer: f"p{place:03d}" for place, peer in enumerate(order)}
    return distance[a][b], [names[i] for i in sorted(graph)]


@claim("agentsnet")
class AgentsNetClaim(Claim):
    bounds = (
        Bound("lowest score", ">=", 1.0, "the strongest models are good when small, fail near 100"),
        Bound("corrupted: mean score at 4 - at 100", ">=", 0.2),
        Bound("election, diameter rounds", ">=", 1.0),
        Bound("election, diameter - 1 rounds", "<=", 0.0),
    )
    config: ClassVar[dict[str, Any]] = {
        "graphs": GRAPHS, "rounds": {**{str(k): v for k, v in ROUNDS.items()}, "100": "2 diameter + 1"},
        "corruption": CORRUPTION,
    }  # fmt: skip
    notes = ("SIMULATED agents: classical algorithms, no model was asked.",)

    def measure(self, seed: int, progress: Progress) -> dict[str, float]:
        clean: list[float] = []
        hurt: dict[int, list[float]] = {4: [], 100: []}
        slow: list[float] = []
        short: list[float] = []
        for number, n in enumerate((4, 8, 16, 100)):
            for kind in GRAPHS:
                graph = kind.format(k=2 if n == 4 else 4)
                progress(f"{n} agents, {graph}", number / 4)
                diameter, names = far_apart(known(graph, n, seed))
                rounds = ROUNDS.get(n, 2 * diameter + 1)

                def score(
                    problem: str, rounds: int = rounds, corruption: float = 0.0,
                    names: tuple[str, ...] = (), n: int = n, graph: str = graph,
                ) -> float:  # fmt: skip
                    network = {"graph": graph, "links": {"corruption": corruption}}
                    task = {"name": problem, "names": names}
                    report = arm("agentsnet", seed, task=task, network=network, peers=n, rounds=rounds,
                                 every=rounds)  # fmt: skip
                    return report.metrics["simulated_score"]

                clean += [score(problem) for problem in PROBLEMS]
                if n in hurt:
                    hurt[n] += [score(problem, corruption=CORRUPTION) for problem in PROBLEMS]
                slow.append(score("leader-election", diameter, names=tuple(names)))
                if diameter > 1:
                    short.append(score("leader-election", diameter - 1, names=tuple(names)))
        small, large = (sum(v) / len(v) for v in hurt.values())
        return {
            "lowest score": min(clean),
            "corrupted: mean score at 4 - at 100": small - large,
            "election, diameter rounds": min(slow),
            "election, diameter - 1 rounds": max(short),
            "corrupted: mean score at 4": small,
            "corrupted: mean score at 100": large,
        }
