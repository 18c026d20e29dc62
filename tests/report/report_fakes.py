"""Reports made up for the tests of this folder."""

from __future__ import annotations

import math

import networkx as nx
import torch

from shoal.core import Graph, Report

CLASSES = 10


def graph_of(drawn: nx.Graph) -> Graph:
    """A graph with Metropolis-like weights from networkx edges, both directions."""
    pairs = [(a, b) for a, b in drawn.edges] + [(b, a) for a, b in drawn.edges]
    src, dst = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    n = drawn.number_of_nodes()
    weight = torch.full((len(src),), 1.0 / n, dtype=torch.float64)
    own = 1 - torch.bincount(dst, minlength=n).to(torch.float64) / n
    return Graph.of(n, src, dst, weight, own)


def fake_report(
    system: str = "dsgd",
    *,
    n: int = 32,
    rounds: int = 60,
    speed: float = 0.08,
    top: float = 0.93,
    hostile: int = 3,
    shape: str = "random",
    dim: int = 10 * 8 + 10,
) -> Report:
    """What a training run of n peers on digits looks like."""
    random = torch.Generator().manual_seed(n + rounds + len(system))
    drawn = nx.cycle_graph(n) if shape == "ring" else nx.random_regular_graph(4, n, seed=1)
    graph = graph_of(drawn)
    mask = torch.zeros(n, dtype=torch.bool)
    mask[torch.randperm(n, generator=random)[:hostile]] = True
    rows = []
    for tick in range(0, rounds + 1, 5):
        mean = 0.1 + (top - 0.1) * (1 - math.exp(-speed * tick))
        rows.append(
            {
                "tick": tick,
                "time": 0.4 * tick,
                "wall_s": 0.02 * tick,
                "bytes": int(len(graph.src) * dim * 4 * tick),
                "spent": float(n * 5 * tick),
                "accuracy": mean,
                "accuracy_min": mean * 0.8,
                "accuracy_p10": mean * 0.92,
                "accuracy_std": 0.04,
                "merged_accuracy": min(0.97, mean * 1.02),
                "consensus": 0.0 if tick == 0 else 2.0 * math.exp(-0.03 * tick) + 0.05,
                "attack_success": None if tick == 0 else 0.2 * math.exp(-0.05 * tick),
            }
        )
    accuracy = rows[-1]["accuracy"] + 0.03 * torch.randn(n, generator=random, dtype=torch.float64)
    accuracy[mask] -= 0.4
    classes = (accuracy[:, None] + 0.06 * torch.randn(n, CLASSES, generator=random)).clamp(0, 1)
    counts = (torch.rand(n, CLASSES, generator=random) ** 6 * 60).to(torch.int64)
    return Report(
        system=system,
        config={
            "method": {"name": system, "lr": 0.1, "local_steps": 5},
            "task": {
                "name": "supervised",
                "data": {"name": "digits"},
                "partition": {"name": "dirichlet", "alpha": 0.1},
                "model": {"name": "mlp", "hidden": [8]},
            },
            "network": {
                "graph": {"name": "random-regular", "degree": 4},
                "rule": {"name": "trimmed-mean", "f": 0.2},
                "codec": [{"name": "int8"}],
                "attack": {"name": "sign-flip"},
                "gamma": None,
            },
            "peers": n,
            "rounds": rounds,
            "seed": 10,
        },
        rows=rows,
        peers={"accuracy": accuracy},
        links=(graph.src, graph.dst, torch.full((len(graph.src),), dim * 4 * rounds)),
        final={
            "per_class": classes.tolist(),
            "class_names": [str(c) for c in range(CLASSES)],
            "class_counts": counts.tolist(),
            "refused_messages": 12,
            "messages": 4800,
            "epsilon": math.inf,
            "model": {
                "model": {"name": "mlp", "hidden": []},
                "feature_shape": [8],
                "classes": CLASSES,
            },
        },
        graph=graph,
        hostile=mask,
        output=torch.randn(n, dim, generator=random),
        layers=[("w", slice(0, 80), (10, 8)), ("b", slice(80, 90), (10,))] if dim == 90 else [],
        notes=["Responders are SIMULATED & <labelled>."],
        wall_s=1.234,
    )


def bandit_report() -> Report:
    """A run that trains no model: other metrics, no graph, no peers."""
    rows = [
        {"tick": t, "time": float(t), "wall_s": 0.0, "bytes": 0, "regret": t**0.5} for t in range(1, 40)
    ]
    return Report(system="fedexp3", config={"peers": 8}, rows=rows, output={"pulls": torch.ones(8, 3)})
