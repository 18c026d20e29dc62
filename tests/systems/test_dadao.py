from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch

from shoal.core import BadInput, RunFailed
from shoal.experiment import plan_of, run
from shoal.methods.asynchronous.dadao import DADAO, Momenta, flow_of, gossip
from shoal.network.clocks.poisson import PoissonPair
from shoal.network.network import Network
from shoal.runtimes.session import Session

NAMES = ("x", "xt", "y", "yt", "z", "zt")
NETWORK = {"graph": "ring", "clock": "poisson-pair"}


def session(rounds: int, group: bool = True, peers: int = 6, **fields: Any) -> Session:
    clock = f"poisson-pair(group={str(group).lower()})"
    plan = plan_of(
        "dadao",
        task="quadratic(dim=3, kappa=10)",
        network={"graph": "ring", "clock": clock},
        peers=peers,
        rounds=rounds,
        seed=3,
        dtype="float64",
        method=fields,
    )
    opened = Session.open(plan)
    opened.finish()
    return opened


def test_the_duals_sum_to_zero_at_any_common_time() -> None:
    done = session(80)
    s: Momenta = done.state
    flow = flow_of(1.0, 10.0)
    for late in (0.0, 3.0):
        common = torch.full((6,), float(s.time.max()) + late, dtype=torch.float64)
        at = done.plan.method.advance(s, common, flow)  # type: ignore[attr-defined]
        assert float(at.z.abs().max()) > 1e-2
        assert float(at.z.sum(0).abs().max()) < 1e-10
        assert float(at.zt.sum(0).abs().max()) < 1e-10


def test_flows_compose_and_equal_scipy() -> None:
    s: Momenta = session(40).state
    method, flow = DADAO(), flow_of(1.0, 1000.0)
    half = method.advance(s, s.time + 0.7, flow)
    twice = method.advance(half, half.time + 1.1, flow)
    once = method.advance(s, s.time + 1.8, flow)
    held = np.stack([getattr(s, name).numpy() for name in NAMES], 1)
    exact = np.einsum("ij,pjd->pid", scipy.linalg.expm(1.8 * flow.numpy()), held)
    for k, name in enumerate(NAMES):
        torch.testing.assert_close(getattr(twice, name), getattr(once, name), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(getattr(once, name).numpy(), exact[:, k], rtol=1e-9, atol=1e-9)


def test_groups_of_events_equal_one_event_at_a_time() -> None:
    groups = session(30)
    events = session(int(groups.clocks[0]["event"]), group=False)
    for name in (*NAMES, "time"):
        torch.testing.assert_close(
            getattr(groups.state, name), getattr(events.state, name), rtol=1e-10, atol=1e-10
        )
    assert groups.net.meter.total == events.net.meter.total
    assert torch.equal(groups.work.spent, events.work.spent)


def test_it_converges_to_the_optimum_of_the_sum() -> None:
    report = run(
        "dadao",
        task="quadratic(kappa=4)",
        network=NETWORK,
        peers=5,
        rounds=900,
        every=300,
        seed=101,
        dtype="float64",
    )
    _, error = report.curve("relative_error")
    assert error[-1] < 1e-3 < error[0]


def test_a_lone_peer_descends() -> None:
    report = run(
        "dadao",
        task="quadratic(kappa=4)",
        network={"graph": "complete", "clock": "rounds"},
        peers=1,
        rounds=400,
        every=100,
        dtype="float64",
    )
    assert report.metrics["relative_error"] < 1e-3


@pytest.mark.parametrize("graph", ["ring", "star"])
def test_uniform_rates_are_optimal_on_ring_and_star(graph: str) -> None:
    on = Network.make(graph=graph).graph_at(8, 0, 0)
    uniform, optimal = gossip(on, PoissonPair()), gossip(on, PoissonPair(rates="optimal"))
    assert optimal == pytest.approx(uniform, rel=1e-3)


def test_constants_of_the_ring() -> None:
    ring = Network().graph_at(10, 0, 0)
    chi1, rate = gossip(ring, PoissonPair())
    assert chi1 == pytest.approx(10 / (2 - 2 * np.cos(2 * np.pi / 10)))
    assert rate == pytest.approx((2 * chi1 * 4.5) ** 0.5)
    assert gossip(ring, PoissonPair(total=7.0)) == pytest.approx((chi1, 7.0))


def test_another_clock_is_refused() -> None:
    with pytest.raises(BadInput, match=r"network\.clock.*poisson-pair"):
        run("dadao", task="quadratic", network={"clock": "rounds"}, peers=4, rounds=2)


def test_tracking_keeps_its_invariant_and_converges() -> None:
    plan = plan_of(
        "gradient-tracking",
        task="quadratic(kappa=4)",
        network={"graph": "ring"},
        peers=5,
        rounds=300,
        seed=101,
        dtype="float64",
        method={"lr": 0.1},
    )
    done = Session.open(plan)
    done.finish()
    done.row(done.done - 1, done.now)
    torch.testing.assert_close(done.state.y.mean(0), done.state.g.mean(0), rtol=1e-9, atol=1e-9)
    assert done.report.metrics["relative_error"] < 1e-9


def test_bad_input() -> None:
    task = "quadratic(dim=2)"
    plan = {"task": task, "network": NETWORK, "peers": 4, "rounds": 1}
    with pytest.raises(BadInput, match="mu"):
        run("dadao", mu=-1.0, **plan)
    with pytest.raises(BadInput, match="smooth"):
        run("dadao", mu=2.0, smooth=1.0, **plan)
    with pytest.raises(BadInput, match="strongly convex"):
        run("dadao", **{**plan, "task": "logistic"})
    with pytest.raises(BadInput):
        run("dadao", **{**plan, "network": {**NETWORK, "graph": "components(parts=2)"}})


def test_divergence_is_reported() -> None:
    plan = {"task": "quadratic(kappa=1000)", "network": NETWORK, "peers": 4, "rounds": 3000, "every": 100}
    with pytest.raises(RunFailed, match="diverged"):
        run("dadao", smooth=2.0, dtype="float64", **plan)
