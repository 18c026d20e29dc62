from __future__ import annotations

from typing import Any

import pytest
import torch

from shoal.core import BadInput, Place
from shoal.experiment import plan_of, run
from shoal.methods.federated.fedavg import FedAvg

TASK: dict[str, Any] = {
    "name": "supervised",
    "data": "digits",
    "partition": {"name": "iid", "skew_size": 0.5},
    "model": {"name": "mlp", "hidden": [8]},
    "limit": 240,
}
EVERYONE = {"clock": "rounds"}


def opened(peers: int, seed: int = 3, task: dict[str, Any] | None = None) -> Any:
    plan = plan_of("fedavg", task=task or TASK, peers=peers, seed=seed)
    return plan.task.open(Place.whole(peers, seed, torch.float64))


def go(system: str, peers: int, rounds: int, **more: Any) -> Any:
    settings: dict[str, Any] = {"task": TASK, "network": EVERYONE, "seed": 3, "dtype": "float64", **more}
    return run(system, peers=peers, rounds=rounds, every=rounds, **settings)


@pytest.mark.parametrize("aggregator", ["server", "peer"])
def test_one_epoch_of_full_batches_is_one_centralised_gradient_step(aggregator: str) -> None:
    report = go("fedsgd", 6, 3, lr=0.5, aggregator=aggregator)
    work = opened(6)
    assert len(set(work.sizes.tolist())) > 1  # the mean must be weighted by size
    x = work.init()[:1]
    rows = work.shards.rows
    for _ in range(3):
        x = x - 0.5 * work.model.grad(x, work.x[rows], work.y[rows])[1]
    torch.testing.assert_close(report.output, x.expand(6, -1), rtol=0, atol=1e-10)


def test_one_peer_is_plain_sgd() -> None:
    report = go("fedavg", 1, 4, epochs=2, batch=16, lr=0.2, decay=0.9)
    work = opened(1)
    x = work.init()
    for tick in range(4):
        x = work.epochs(x, tick, 2, 16, 0.2 * 0.9**tick)
    torch.testing.assert_close(report.output, x, rtol=0, atol=0)


def test_an_epoch_visits_every_example_once() -> None:
    """B = 1 on two examples: the two gradient steps, in one of the two orders."""
    work = opened(1, task={**TASK, "limit": 2})
    x = work.init()
    found = work.epochs(x, 0, 1, 1, 0.3)
    ends = []
    for order in (work.shards.rows, work.shards.rows.flip(0)):
        y = x.clone()
        for row in order:
            y = y - 0.3 * work.model.grad(y, work.x[row][None], work.y[row][None])[1]
        ends.append(float((y - found).abs().max()))
    assert min(ends) < 1e-12 < max(ends)


@pytest.mark.parametrize(("fraction", "sampled"), [(0.0, 1), (0.3, 3), (0.29, 2), (1.0, 10)])
def test_bytes_of_a_round(fraction: float, sampled: int) -> None:
    report = go(
        "fedavg", 10, 5, dtype="float32", network={"clock": f"participation(fraction={fraction})"},
        epochs=1,
    )  # fmt: skip
    dim = opened(10).dim
    assert report.bytes_sent == 5 * 2 * sampled * 4 * dim


def test_a_peer_instead_of_the_server_gives_the_same_models() -> None:
    clock = {"clock": "participation(fraction=0.4)"}
    served = go("fedavg", 10, 4, network=clock, epochs=1)
    alone = go("fedavg", 10, 4, network=clock, epochs=1, aggregator="peer")
    torch.testing.assert_close(served.output, alone.output, rtol=0, atol=1e-12)
    src, dst, _ = alone.links
    assert int(torch.cat([src, dst]).max()) < 10  # nobody talks to a server


def test_sampled_peers_without_data_do_not_count() -> None:
    partition = {"name": "without", "peers": (0, 2), "inner": {"name": "iid"}}
    some = go("fedavg", 4, 2, task={**TASK, "partition": partition, "relays": True}, epochs=1)
    work = opened(4, task={**TASK, "partition": partition, "relays": True})
    x = work.init()
    for tick in range(2):
        up = work.epochs(x, tick, 1, 10, 0.1)
        weight = work.sizes.to(x.dtype) / work.sizes.sum()
        x = (weight @ up).expand(4, -1)
    torch.testing.assert_close(some.output, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("aggregator", ["server", "peer"])
def test_a_round_of_peers_without_data_keeps_the_model(aggregator: str) -> None:
    partition = {"name": "without", "peers": (0, 1, 2), "inner": {"name": "iid"}}
    task = {**TASK, "partition": partition, "relays": True}
    # The only peer with data never takes part.
    clock = {"clock": 'participation(kind="bernoulli", rates=[1.0, 1.0, 1.0, 0.0])'}
    report = go("fedavg", 4, 2, task=task, network=clock, aggregator=aggregator)
    torch.testing.assert_close(report.output, opened(4, task=task).init(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"epochs": 0}, "epochs"),
        ({"batch": 0}, "batch"),
        ({"batch": -1}, "batch"),
        ({"batch": "some"}, "batch"),
        ({"lr": 0.0}, "lr"),
        ({"decay": 1.5}, "decay"),
        ({"aggregator": "nobody"}, "aggregator"),
    ],
)
def test_bad_fields(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInput, match=named):
        FedAvg(**fields)


@pytest.mark.parametrize("fraction", [-0.1, 1.1])
def test_bad_fraction(fraction: float) -> None:
    with pytest.raises(BadInput, match="fraction"):
        go("fedavg", 4, 1, network={"clock": f"participation(fraction={fraction})"})


def test_peers_without_data_are_refused_where_they_are_not_expected() -> None:
    partition = {"name": "without", "peers": (1,), "inner": {"name": "iid"}}
    with pytest.raises(BadInput, match="without data"):
        go("fedavg", 4, 1, task={**TASK, "partition": partition})
    nobody = {"name": "without", "peers": (0, 1, 2, 3), "inner": {"name": "iid"}}
    with pytest.raises(BadInput, match="some, not all"):
        go("fedavg", 4, 1, task={**TASK, "partition": nobody, "relays": True})
