"""System 119, learning from history."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from shoal.core import BadInput, Inbox, Place, methods, rules, tasks
from shoal.experiment import run
from shoal.tasks.partition.long_tail import LongTail

COMMON: dict[str, Any] = {
    "task": {
        "name": "supervised",
        "data": "digits",
        "partition": "iid",
        "model": {"name": "mlp", "hidden": [8]},
        "batch": 8,
        "limit": 300,
    },
    "peers": 6,
    "rounds": 8,
    "seed": 2,
    "dtype": "float64",
}


def inbox(rows: Tensor, centre: Tensor | None = None) -> Inbox:
    n = len(rows)
    return Inbox(
        rows=rows,
        index=torch.arange(n)[None],
        sender=torch.arange(n)[None],
        mask=torch.ones(1, n, dtype=torch.bool),
        weight=torch.full((1, n), 1 / n, dtype=rows.dtype),
        centre=centre,
    )


def train(rule: str, beta: float = 0.9, **network: Any) -> Tensor:
    network = {"rule": rule, "attack": None, "hostile": 0.0, **network}
    output = run("centered-clip", **COMMON, beta=beta, network=network).output
    assert isinstance(output, Tensor)
    return output


def test_without_a_radius_one_iteration_is_the_mean() -> None:
    torch.testing.assert_close(train("centered-clip(tau=1e12)"), train("mean"), rtol=0, atol=1e-10)


@pytest.mark.parametrize("iterations", [1, 3, 5])
def test_one_outlier_moves_the_result_by_tau_over_n_an_iteration(iterations: int) -> None:
    tau, n = 0.7, 10
    rule = rules(f"centered-clip(tau={tau}, iterations={iterations})")
    rows = torch.zeros(n, 4, dtype=torch.float64)
    centre = torch.zeros(1, 4, dtype=torch.float64)
    rows[3] = torch.tensor([3e6, -4e6, 0.0, 0.0])
    moved = rule(inbox(rows, centre))
    assert float(moved.norm()) <= iterations * tau / n + 1e-9
    once = rules(f"centered-clip(tau={tau})")(inbox(rows, centre))
    torch.testing.assert_close(once[0], tau / n * rows[3] / rows[3].norm())


def test_coin_flips_without_attackers() -> None:
    # Messages are +1 or -1 with mean about 0: the median is always 1 away, clipping about the mean is not.
    n, rounds = 25, 60
    signs = torch.ones(rounds, n, dtype=torch.float64)
    for t in range(rounds):
        signs[t, (t % 2) + 12 :] = -1
    centre = torch.zeros(1, 1, dtype=torch.float64)
    clipped = []
    for t in range(rounds):
        box = inbox(signs[t][:, None], centre)
        assert abs(float(rules("median")(box))) == 1
        v = rules("centered-clip(tau=2)")(box)
        torch.testing.assert_close(v, rules("mean")(box), rtol=0, atol=1e-12)
        clipped.append(float(v))
    assert abs(sum(clipped)) / rounds < 0.05


def test_worker_momentum_equals_the_recursion() -> None:
    # m <- b m + (1 - b) g and x <- x - lr mean(m): against the same recursion by hand.
    n = COMMON["peers"]
    work: Any = tasks(COMMON["task"]).open(Place.whole(n, 2, torch.float64))
    x = work.init()
    m = torch.zeros_like(x)
    for tick in range(COMMON["rounds"]):
        m = 0.9 * m + (1 - 0.9) * work.grad(x, tick)
        x = x - 0.1 * m.mean(0)
    torch.testing.assert_close(train("mean"), x, rtol=0, atol=1e-12)


def test_hostile_workers_move_the_server_by_tau_a_tick() -> None:
    # One sender of ever larger noise: the last aggregate stays within (tau/n) ticks of the clean one.
    clean = train("centered-clip(tau=1)")
    dirty = train("centered-clip(tau=1)", attack="random(sigma=1e6)", hostile=(1,))
    # Each tick v shifts by at most tau/n per outlier, itself remembered for all later ticks.
    assert float((clean[0] - dirty[0]).norm()) < 0.1 * 8 * 9 / 2 * (2.0 / 6)


def test_on_graphs_the_centre_is_the_own_model() -> None:
    graph = {"graph": "ring", "rule": "centered-clip(tau=1e12)"}
    wide = run("dsgd", **COMMON, network=graph).output
    plain = run("dsgd", **COMMON, network={"graph": "ring"}).output
    torch.testing.assert_close(wide, plain, rtol=0, atol=1e-9)
    still = run("dsgd", **COMMON, network={"graph": "ring", "rule": "centered-clip(tau=1e-9)"}).output
    alone = run("local", **COMMON, network={"graph": "ring"}).output
    torch.testing.assert_close(still, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rule", ["centered-clip(tau=0.0)", "centered-clip(tau=-1.0)",
                                  "centered-clip(iterations=0)"])  # fmt: skip
def test_bad_rules(rule: str) -> None:
    with pytest.raises(BadInput, match=rule.split("(")[1].split("=", maxsplit=1)[0]):
        train(rule)


@pytest.mark.parametrize("beta", [1.0, -0.1, 2.0])
def test_bad_momentum(beta: float) -> None:
    with pytest.raises(BadInput, match="beta"):
        methods({"name": "centered-clip", "beta": beta})


def test_long_tailed_classes_fall_exponentially() -> None:
    y = torch.arange(4000) % 10
    lists = LongTail(ratio=50.0).assign(y, None, 25, 1)
    kept = torch.cat(lists)
    assert len(kept.unique()) == len(kept)
    count = torch.bincount(y[kept], minlength=10)
    assert count[0] == 400 and count[9] == 8
    assert torch.equal(count, torch.ceil(400 * 50.0 ** (-torch.arange(10) / 9)).to(torch.int64))
    assert max(map(len, lists)) - min(map(len, lists)) <= 1
