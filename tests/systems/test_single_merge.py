from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.core import BadInput, Place
from shoal.experiment import plan_of, run
from shoal.methods.gossip.single_merge import SingleMerge
from shoal.network.network import Network

TASK: dict[str, Any] = {
    "name": "supervised",
    "data": "digits",
    "partition": "iid",
    "model": {"name": "mlp", "hidden": [8]},
    "batch": 8,
    "limit": 240,
}
ALONE = {"graph": "random-peer(p=0)"}


def go(rounds: int = 6, system: str = "single-merge", peers: int = 8, **more: Any) -> Any:
    settings: dict[str, Any] = {
        "task": TASK, "network": {"graph": "random-peer(p=0.4)"}, "seed": 2, "dtype": "float64", **more,
    }  # fmt: skip
    return run(system, peers=peers, rounds=rounds, every=settings.pop("every", rounds), **settings)


def test_without_communication_it_is_local() -> None:
    quiet = go(network=ALONE, schedule="never")
    alone = go(system="local", same_start=False, weight_decay=5e-4)
    assert torch.equal(quiet.output, alone.output)
    assert quiet.bytes_sent == 0
    assert float((alone.output[0] - alone.output[1]).abs().max()) > 0.1  # own initialisations


@pytest.mark.parametrize("network", [ALONE, {"graph": "random-peer(p=0.4)"}])
def test_a_merge_gives_everyone_the_mean_of_what_never_merging_leaves(network: dict[str, Any]) -> None:
    apart, merged = go(schedule="never", network=network), go(network=network)
    mean = apart.output.mean(0, keepdim=True)
    torch.testing.assert_close(merged.output, mean.expand(8, -1), rtol=0, atol=1e-12)
    # What the merge will give is known before: the counterfactual merged accuracy.
    assert merged.metrics["accuracy"] == pytest.approx(apart.metrics["merged_accuracy"])


def test_merging_twice_equals_once() -> None:
    """No training between the two: the second merge of a window changes nothing."""
    still: dict[str, Any] = {"lr": 1e-300, "schedule": "window", "start": 0}
    once, twice = go(rounds=2, length=1, **still), go(rounds=2, length=2, **still)
    torch.testing.assert_close(once.output, twice.output, rtol=0, atol=1e-12)


def test_always_is_all_reduce_sgd() -> None:
    always = go(network=ALONE, schedule="always", same_start=True, weight_decay=0.0)
    central = go(system="csgd")
    torch.testing.assert_close(always.output, central.output, rtol=0, atol=1e-12)


def test_window_merges_inside_alone() -> None:
    report = go(schedule="window", start=2, length=2, every=1)
    consensus = [row["consensus"] for row in report.rows]
    assert max(consensus[3:5]) < 1e-9 < min(consensus[:3] + consensus[5:])


def test_bytes_equal_the_drawn_edges_and_one_merge() -> None:
    """R m T models on average, and 2(m - 1) for the merge: the aggregator sends itself nothing."""
    peers, rounds = 8, 40
    report = go(rounds=rounds, peers=peers, lr=1e-9, local_steps=1)
    network = Network(graph="random-peer(p=0.4)")  # type: ignore[arg-type]
    drawn = sum(network.graph_at(peers, 2, tick).edges for tick in range(rounds))
    dim = report.output.shape[1]
    assert report.bytes_sent == (drawn + 2 * (peers - 1)) * 8 * dim
    assert drawn == pytest.approx(0.4 * peers * rounds, abs=4 * (0.24 * peers * rounds) ** 0.5)


def test_adamw_against_torch() -> None:
    method: dict[str, Any] = {"optimizer": "adamw", "lr": 1e-2, "weight_decay": 0.1, "schedule": "never"}
    plan = plan_of("single-merge", task=TASK, peers=2, seed=2)
    work: Any = plan.task.open(Place.whole(2, 2, torch.float64))
    x = [row.clone().requires_grad_() for row in work.init(same=False)]
    optimizer = torch.optim.AdamW(x, lr=1e-2, weight_decay=0.1)
    for tick in range(3):
        for step in range(4):
            gradient = work.grad(torch.stack([row.detach() for row in x]), tick, step=step)
            for row, slope in zip(x, gradient, strict=True):
                row.grad = slope.clone()
            optimizer.step()
    report = go(rounds=3, peers=2, network=ALONE, local_steps=4, **method)
    torch.testing.assert_close(report.output, torch.stack([v.detach() for v in x]), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "fields", [{"schedule": "sometimes"}, {"start": -1}, {"length": 0}, {"optimizer": "lion"}]
)
def test_bad_fields(fields: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=next(iter(fields))):
        SingleMerge(**fields)


def test_adamw_takes_no_momentum() -> None:
    with pytest.raises(BadInput, match="momentum"):
        SingleMerge(optimizer="adamw", momentum=0.9)


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_bad_probability(p: float) -> None:
    with pytest.raises(BadInput, match="p = "):
        go(network={"graph": f"random-peer(p={p})"})


def test_a_window_beyond_the_run() -> None:
    with pytest.raises(BadInput, match="window of 4 within the 6 ticks"):
        go(schedule="window", start=3, length=4)


def test_batch_norm_is_refused(tmp_path: Path) -> None:
    """No calibration data is kept that its statistics could be estimated on after a merge."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def Net():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))\n"
    )
    model = {"name": "module", "path": f"{tmp_path / 'net.py'}:Net"}
    with pytest.raises(BadInput, match="running statistics"):
        go(task={**TASK, "model": model})
