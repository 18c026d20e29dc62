"""System 064, DecAvg under disruption."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from shoal.core import BadInput, Place, Report, tasks
from shoal.experiment import run
from shoal.network.clocks.disruption import victims
from shoal.network.network import Network

TASK: dict[str, Any] = {
    "name": "supervised",
    "data": "digits",
    "partition": "iid(size=12)",
    "model": {"name": "mlp", "hidden": [8]},
    "batch": 4,
}
GRAPH = {"graph": "barabasi-albert(m=2)", "weights": "uniform"}
COMMON: dict[str, Any] = {"peers": 12, "rounds": 6, "seed": 4, "dtype": "float64"}


def decavg(clock: str = "rounds", task: dict[str, Any] | None = None, **fields: Any) -> Report:
    network = {**GRAPH, "clock": clock}
    return run("disaster-dfl", task={**TASK, **(task or {})}, network=network, **{**COMMON, **fields})


@pytest.mark.parametrize("clock", ["rounds", "disruption(at=2, fraction=0.0)"])
def test_without_losses_it_is_dsgd_with_those_weights(clock: str) -> None:
    plain = run(
        "dsgd", task=TASK, network=GRAPH, **COMMON, order="combine", lr=0.05, momentum=0.5, local_steps=2
    )
    torch.testing.assert_close(decavg(clock, lr=0.05).output, plain.output, rtol=0, atol=1e-12)


def test_the_weights_are_the_data_sizes() -> None:
    # One tick from different starts, with a step too small to see: x_i is the weighted mean.
    sizes = {"partition": {"name": "quantity", "beta": 0.5}, "limit": 200}
    start = decavg(task=sizes, rounds=1, lr=1e-300, same_start=False)
    alone = run("local", task={**TASK, **sizes}, network=GRAPH, **{**COMMON, "rounds": 1}, lr=1e-300,
                local_steps=1, same_start=False)  # fmt: skip
    graph = Network(**GRAPH).graph_at(12, 4, 0)  # type: ignore[arg-type]
    n = torch.tensor(start.final["class_counts"], dtype=torch.float64).sum(1)
    assert n.unique().numel() > 3
    w = (graph.matrix() > 0) * n
    expected = w / w.sum(1, keepdim=True) @ alone.output
    torch.testing.assert_close(start.output, expected, rtol=0, atol=1e-12)


def test_isolated_survivors_go_on_alone() -> None:
    # Without its hub a star falls into single peers, who from then on equal local training.
    star = {"graph": "star", "weights": "uniform"}
    clock = "disruption(at=3, fraction=0.09)"
    here = run("disaster-dfl", task=TASK, network={**star, "clock": clock}, **COMMON)
    before = run("disaster-dfl", task=TASK, network={**star, "clock": "rounds"}, **{**COMMON, "rounds": 3})
    assert here.metrics["components"] == 11
    assert here.peers["component_size"].nan_to_num(0).tolist() == [0.0] + [1.0] * 11
    work: Any = tasks(TASK).open(Place.whole(12, 4, torch.float64))
    x = before.output
    for tick in (3, 4, 5):
        x = work.sgd(x, tick, 2, 0.01, momentum=0.5)
    torch.testing.assert_close(here.output[1:], x[1:], rtol=0, atol=1e-12)
    assert torch.equal(here.output[0], before.output[0])


def test_victims_are_deterministic_and_ties_break_by_number() -> None:
    graph = Network(**GRAPH).graph_at(40, 1, 0)  # type: ignore[arg-type]
    for who in ("degree", "betweenness", "random", "leaves"):
        gone = victims(graph, 0.2, who, 1)  # type: ignore[arg-type]
        assert torch.equal(gone, victims(graph, 0.2, who, 1)) and int(gone.sum()) == 8  # type: ignore[arg-type]
    degree = graph.in_degree()
    gone = victims(graph, 0.2, "degree", 1)
    least = degree[gone].min()
    tied = (degree == least).nonzero()[:, 0]
    assert int(degree[~gone].max()) <= int(least)
    taken = gone[tied].tolist()
    assert taken == sorted(taken, reverse=True)
    ring = Network(graph="ring").graph_at(10, 0, 0)  # type: ignore[arg-type]
    assert victims(ring, 0.3, "degree", 0).nonzero()[:, 0].tolist() == [0, 1, 2]


def test_lost_peers_fall_silent() -> None:
    report = decavg("disruption(at=0, fraction=0.25)")
    gone = victims(Network(**GRAPH).graph_at(12, 4, 0), 0.25, "degree", 4).nonzero()[:, 0]  # type: ignore[arg-type]
    src, dst, _ = report.links
    assert not torch.isin(src, gone).any() and not torch.isin(dst, gone).any()


@pytest.mark.parametrize("sizes", [True, False])
def test_relays_mix_and_never_train(sizes: bool) -> None:
    without = {"partition": {"name": "without", "peers": [0, 1], "inner": "iid(size=12)"}, "relays": True}
    report = decavg(task=without, rounds=1, sizes=sizes, lr=0.5, same_start=False)
    start = decavg(task=without, rounds=1, sizes=sizes, lr=1e-300, same_start=False)
    same = (report.output == start.output).all(1)
    assert same.tolist() == [True, True] + [False] * 10


@pytest.mark.parametrize("field", ["fraction=1.0", "fraction=-0.1", "at=-1", "at=6", "fraction=0.99"])
def test_bad_disruptions(field: str) -> None:
    at = "" if field.startswith("at") else "at=2, "
    with pytest.raises(BadInput, match=field.split("=", maxsplit=1)[0]):
        decavg(f"disruption({at}{field})")


def test_survivors_must_hold_data() -> None:
    holders = victims(Network(**GRAPH).graph_at(12, 4, 0), 0.25, "degree", 4)  # type: ignore[arg-type]
    relays = (~holders).nonzero()[:, 0].tolist()
    task = {"partition": {"name": "without", "peers": relays, "inner": "iid(size=12)"}, "relays": True}
    with pytest.raises(BadInput, match="every survivor without data"):
        decavg("disruption(at=2, fraction=0.25)", task=task)
