"""System 042, anarchic federated learning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from shoal.core import BadInput, Context, Place, tasks
from shoal.experiment import plan_of, run
from shoal.methods.asynchronous.anarchic import AFACD, AFACS
from shoal.methods.asynchronous.buffered import FedAsync
from shoal.runtimes.session import Session
from shoal.tasks.partition.ordered import Ordered

QUADRATIC: dict[str, Any] = {"name": "ranked-quadratic", "dim": 4}
COMMON: dict[str, Any] = {"task": QUADRATIC, "peers": 8, "rounds": 12, "seed": 3, "dtype": "float64"}
ANARCHY = "arrivals(m=3, delay_max=4, steps=[1, 6], spread=20.0)"


def end(system: Any, clock: str, **fields: Any) -> Tensor:
    output = run(system, network={"clock": clock}, **{**COMMON, **fields}).output
    assert isinstance(output, Tensor)
    return output


def test_everyone_at_once_is_fedavg_with_a_server_rate() -> None:
    clock = "arrivals(m=8, delay_max=0, steps=[3, 3])"
    cd, cs = (end(s, clock, lr=0.02, server_lr=1.5) for s in ("afa-cd", "anarchic-fl"))
    torch.testing.assert_close(cd, cs, rtol=0, atol=1e-12)
    work: Any = tasks(QUADRATIC).open(Place.whole(8, 3, torch.float64))
    x = work.init()
    for tick in range(12):
        # FedAvg: everybody's whole local change, averaged; G_i is that change over lr K.
        change = (work.sgd(x, tick, 3, 0.02) - x).mean(0, keepdim=True)
        x = x + 1.5 / 3 * change
    torch.testing.assert_close(cd, x, rtol=0, atol=1e-12)
    plain = end("afa-cd", clock, lr=0.02, server_lr=0.5, normalise=False)
    torch.testing.assert_close(plain, cd, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variates", [False, True])
def test_steps_do_not_scale_returns_on_a_linear_loss(variates: bool) -> None:
    class Linear:
        """f_i(w) = <a_i, w>: the gradient is the same at every point."""

        dim, n, peers = 4, 8, torch.arange(8)
        a = torch.arange(32, dtype=torch.float64).reshape(8, 4) - 9

        def grad(self, x: Tensor, tick: int, *, step: int, active: Tensor) -> Tensor:
            return self.a * active[:, None]

        def sgd(self, x: Tensor, tick: int, steps: Tensor, lr: float, *, active: Tensor) -> Tensor:
            return x - lr * self.a * (steps * active)[:, None]

    plan = plan_of("afa-cd", **COMMON, network={"clock": "rounds"})
    session = Session.open(plan)
    tick = next(plan.network.ticks(8, 3, 12, 0, None))[0]
    ctx: Context[Any] = replace(session.context, task=Linear())
    method = AFACD(lr=0.1, variates=variates)
    state = method.init(session.context)
    for steps in (torch.ones(8, dtype=torch.int64), torch.arange(1, 9), torch.full((8,), 10)):
        _, g = method.work_of(state, tick.replace(steps=steps), ctx)
        torch.testing.assert_close(g, Linear.a)
    _, total = AFACD(lr=0.1, normalise=False).work_of(
        AFACD().init(session.context), tick.replace(steps=torch.arange(1, 9)), ctx
    )
    torch.testing.assert_close(total, Linear.a * torch.arange(1, 9)[:, None])


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_the_memory_equals_a_replayed_table(beta: float) -> None:
    plan = plan_of("anarchic-fl", **COMMON, network={"clock": ANARCHY}, method={"lr": 0.02, "beta": beta})
    work: Any = plan.task.open(Place.whole(8, 3, torch.float64))
    x = work.init()
    versions = [x[0]]
    table: dict[int, Tensor] = {i: torch.zeros(4, dtype=torch.float64) for i in range(8)}
    momentum = torch.zeros(4, dtype=torch.float64)
    for tick, _ in plan.network.ticks(8, 3, 12, 0, None):
        assert tick.stale is not None and tick.steps is not None
        for i in tick.active.nonzero()[:, 0].tolist():
            # Before there were versions enough, the oldest was the start.
            pulled = versions[max(0, len(versions) - 1 - int(tick.stale[i]))]
            here = pulled.expand(8, -1)
            after = work.sgd(here, tick.index, tick.steps, 0.02)
            table[i] = (here - after)[i] / (0.02 * int(tick.steps[i]))
        momentum = beta * momentum + sum(table.values()) / 8
        versions.append(versions[-1] - 5.0 * 0.02 * momentum)
    got = end("anarchic-fl", ANARCHY, lr=0.02, beta=beta)
    torch.testing.assert_close(got, versions[-1].expand(8, -1), rtol=0, atol=1e-12)


def test_control_variates_remove_the_drift_of_local_steps() -> None:
    # Without noise and staleness the fixed point of many local steps is the optimum only with variates.
    task = {"name": "ranked-quadratic", "dim": 4, "noise": 0.0, "spread": 0.8, "kappa": 8.0}
    clock = "arrivals(m=8, delay_max=0, steps=[4, 4])"
    far: dict[bool, float] = {}
    for variates in (False, True):
        report = run("anarchic-fl", task=task, peers=8, rounds=120, seed=3, dtype="float64", every=120,
                     network={"clock": clock}, lr=0.05, server_lr=2.0, variates=variates)  # fmt: skip
        far[variates] = report.metrics["relative_error"]
    assert far[True] < 1e-5
    assert far[False] > 1e-3


@pytest.mark.parametrize("method", [AFACD(variates=True), AFACS(variates=True)])
def test_downloads_carry_the_variate(method: Any) -> None:
    clock = {"clock": "arrivals(m=8, delay_max=0)"}
    plain = run(type(method)(), network=clock, **COMMON).bytes_sent
    assert run(method, network=clock, **COMMON).bytes_sent == plain * 3 // 2


def test_fedasync_mixes_one_return_a_tick() -> None:
    plan = plan_of("fedasync", **COMMON, network={"clock": "arrivals(m=1, delay_max=3)"})
    work: Any = plan.task.open(Place.whole(8, 3, torch.float64))
    versions = [work.init()[0]]
    for tick, _ in plan.network.ticks(8, 3, 12, 0, None):
        assert tick.stale is not None
        i = int(tick.active.nonzero()[0, 0])
        s = int(tick.stale[i])
        pulled = versions[max(0, len(versions) - 1 - s)].expand(8, -1)
        local = work.sgd(pulled, tick.index, 5, 0.01)[i]
        alpha = 0.6 * (1 + s) ** -0.5
        versions.append((1 - alpha) * versions[-1] + alpha * local)
    got = end(FedAsync(), "arrivals(m=1, delay_max=3)")
    torch.testing.assert_close(got, versions[-1].expand(8, -1), rtol=0, atol=1e-12)


def test_fedbuff_without_discount_is_a_sum() -> None:
    one = end("fedbuff", ANARCHY, discount=0.0)
    torch.testing.assert_close(one, end("afa-cd", ANARCHY, normalise=False, server_lr=1.0))
    assert not torch.allclose(one, end("fedbuff", ANARCHY))


def test_ranked_quadratics_know_their_optimum() -> None:
    work: Any = tasks({**QUADRATIC, "spread": 0.4, "noise": 2.0}).open(Place.whole(8, 1, torch.float64))
    best = work.optimum()
    everyone = torch.arange(8)
    slope = work.slope(best.expand(8, -1), everyone).mean(0)
    torch.testing.assert_close(slope, torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)
    x = work.init()
    noisy = torch.stack([work.grad(x, t) for t in range(400)])
    torch.testing.assert_close(noisy.mean(0), work.slope(x, everyone), rtol=0, atol=0.5)
    assert float((noisy - work.slope(x, everyone)).std()) == pytest.approx(2.0, rel=0.05)
    # The last peer's centre lies trend = 4 from the first's, but for their own scatter.
    flat: Any = tasks({**QUADRATIC, "shift": 0.0}).open(Place.whole(8, 1, torch.float64))
    assert float((flat.c[7] - flat.c[0]).norm()) == pytest.approx(4.0)


def test_ordered_classes_follow_the_numbers() -> None:
    y = torch.arange(1000) % 10
    lists = Ordered(k=2).assign(y, None, 20, 5)
    held = [sorted(set(y[rows].tolist())) for rows in lists]
    assert held[0] == [0, 1] and held[1] == [0, 1] and held[2] == [1, 2] and held[19] == [0, 9]
    assert sum(map(len, lists)) == 1000 and max(map(len, lists)) - min(map(len, lists)) <= 2
    with pytest.raises(BadInput, match="at most 10"):
        Ordered(k=11).assign(y, None, 20, 5)


@pytest.mark.parametrize(
    ("clock", "name"),
    [
        ("arrivals(m=9)", "m"),
        ("arrivals(m=0)", "m"),
        ("arrivals(m=2, steps=[0, 3])", "steps"),
        ("arrivals(m=2, delay_max=-1)", "delay_max"),
    ],
)
def test_bad_clocks(clock: str, name: str) -> None:
    with pytest.raises(BadInput, match=name):
        end("anarchic-fl", clock)


def test_bad_steps() -> None:
    with pytest.raises(BadInput, match="local_steps"):
        end("anarchic-fl", ANARCHY, local_steps=0)


@pytest.mark.parametrize("system", ["anarchic-fl", "afa-cd", "fedasync"])
def test_a_return_from_a_forgotten_version(system: str) -> None:
    with pytest.raises(BadInput, match="versions = 2"):
        end(system, ANARCHY, versions=2, rounds=40)
