from __future__ import annotations

import pytest
import torch

from shoal.core import BadInput, Draws, Place
from shoal.experiment import plan_of, run
from shoal.runtimes.session import Session
from shoal.tasks.bandit import AdversarialLosses

TASK = "adversarial-losses(arms=5, source='fixed')"


def session(
    method: str, peers: int, network: dict[str, object], rounds: int = 40, **more: object
) -> Session:
    plan = plan_of(
        method, task=TASK, network=network, peers=peers, rounds=rounds, seed=4, dtype="float64", method=more
    )
    opened = Session.open(plan)
    opened.finish()
    return opened


def reference_exp3(task: AdversarialLosses, rounds: int, eta: float, explore: float) -> torch.Tensor:
    """EXP3 as in the book, one agent, one number at a time."""
    work = task.open(Place.whole(1, 4, torch.float64))
    z = [0.0] * task.arms
    for t in range(1, rounds + 1):
        g = min(1.0, explore * t ** (-1 / 3))
        weight = torch.softmax(-eta * torch.tensor(z, dtype=torch.float64), 0).tolist()
        p = [(1 - g) * w + g / task.arms for w in weight]
        u = float(Draws(4, "arm", torch.zeros(1, dtype=torch.int64), t - 1).uniform(1)[0, 0])
        arm = next((k for k in range(task.arms) if u < sum(p[: k + 1])), task.arms - 1)
        z[arm] += float(work.losses(t - 1)[0, arm]) / p[arm]
    return torch.tensor(z, dtype=torch.float64)


def test_one_agent_is_exp3() -> None:
    task = AdversarialLosses(arms=5, source="homogeneous")
    plan = plan_of(
        "fedexp3", task=task, network={"graph": "complete"}, peers=1, rounds=60, seed=4, dtype="float64"
    )
    alone = Session.open(plan)
    alone.finish()
    torch.testing.assert_close(alone.state.z[0], reference_exp3(task, 60, 0.1, 0.5), rtol=1e-10, atol=0)


def test_complete_graph_keeps_the_mixed_part_equal() -> None:
    plan = plan_of(
        "fedexp3",
        task=TASK,
        network={"graph": "complete", "weights": "laplacian"},
        peers=6,
        rounds=9,
        dtype="float64",
    )
    done = Session.open(plan)
    done.finish()
    tick, _ = next(plan.network.ticks(6, plan.seed, 9, 8, None))
    mixed = done.net.mix(done.state.z, tick)
    assert bool((done.state.z - done.state.z[:1]).abs().max() > 1)
    torch.testing.assert_close(mixed, done.state.z.mean(0).expand(6, -1), rtol=1e-12, atol=1e-12)


def test_the_mean_of_z_is_the_sum_of_the_mean_estimates() -> None:
    gossip = session("fedexp3", 9, {"graph": "grid", "weights": "laplacian"}, rounds=1)
    context, plan = gossip.context, gossip.plan
    total = gossip.state.z.mean(0)
    state = gossip.state
    for tick, _ in plan.network.ticks(9, 4, 20, 1, None):
        seen = plan.method.estimate(state, tick, context)  # type: ignore[attr-defined]
        total = total + seen.mean(0)
        state = plan.method.step(state, tick, context)
    torch.testing.assert_close(state.z.mean(0), total, rtol=1e-12, atol=1e-12)


def test_a_message_is_exactly_k_floats() -> None:
    done = session("fedexp3", 9, {"graph": "grid", "weights": "laplacian"}, rounds=7)
    assert done.net.meter.total == 7 * 2 * 12 * 5 * 8
    assert session("exp3", 9, {"graph": "grid"}, rounds=7).net.meter.total == 0


def test_estimates_are_unbiased() -> None:
    opened = session("fedexp3", 6, {"graph": "ring"}, rounds=30)
    method, context = opened.plan.method, opened.context
    p = method.chances(opened.state.z, 31)  # type: ignore[attr-defined]
    torch.testing.assert_close(p.sum(1), torch.ones(6, dtype=torch.float64))
    loss = context.task.losses(31)
    mean = torch.zeros_like(p)
    for arm in range(5):
        one = torch.full((6,), arm)
        got = method.learnt(p, one, loss[:, arm], None, context)  # type: ignore[attr-defined]
        mean += p[:, arm : arm + 1] * got
    torch.testing.assert_close(mean, loss)


def test_fixed_activation_and_regret() -> None:
    work = AdversarialLosses(arms=4, source="fixed", active=0.5).open(Place.whole(8, 2, torch.float64))
    table = torch.stack([work.losses(t) for t in range(50)])
    assert int((table.sum((0, 2)) == 0).sum()) == 4
    arm = torch.arange(8) % 4
    for t in range(50):
        assert torch.equal(work.pull(arm, t), table[t, torch.arange(8), arm])
    average = table.mean(1)
    expected = average.sum(0)[arm] - average.sum(0).min()
    torch.testing.assert_close(work.measure(None, 49)["regret"], expected)
    assert torch.equal(work.spent, torch.full((8,), 50.0, dtype=torch.float64))


def test_one_block_sees_what_the_whole_sees() -> None:
    for source in ("homogeneous", "digits"):
        task = AdversarialLosses(source=source)  # type: ignore[arg-type]
        whole = task.open(Place.whole(5, 3))
        part = task.open(Place(5, torch.tensor([1, 4]), 3))
        for t in range(5):
            assert torch.equal(whole.losses(t)[[1, 4]], part.losses(t))


def test_digits_streams_differ_but_one_arm_is_best_on_average() -> None:
    work = AdversarialLosses(source="digits").open(Place.whole(12, 1))
    mean = torch.stack([work.losses(t) for t in range(300)]).mean(0)
    assert len(mean.argmin(1).unique()) > 1
    assert float(mean.mean(0).min()) < 0.2 < float(mean.mean(0).max())


def test_full_information_beats_bandit_beats_nothing() -> None:
    network = {"graph": "complete", "weights": "laplacian"}
    shared = {"task": "adversarial-losses(source='fixed')", "network": network, "peers": 8}
    worst = {
        slug: run(slug, rounds=600, every=600, seed=101, **shared).metrics["worst_regret"]
        for slug in ("fedhedge", "fedexp3", "exp3")
    }
    assert worst["fedhedge"] < worst["fedexp3"] < worst["exp3"]


def test_ratings_file(tmp_path: object) -> None:
    file = tmp_path / "ratings.csv"  # type: ignore[operator]
    lines = ["user,arm,rating", "ann,drama,5", "ann,drama,0", "ann,war,4", "bob,drama,2.5"]
    file.write_text("\n".join(lines))
    work = AdversarialLosses(arms=2, source="table", file=str(file)).open(Place.whole(2, 0, torch.float64))
    assert work.losses(0).tolist() == [[0.0, pytest.approx(0.2)], [0.5, 1.0]]
    assert work.losses(1)[0].tolist() == [1.0, pytest.approx(0.2)]
    file.write_text("ann,drama,7\n")
    with pytest.raises(BadInput, match="a rating in"):
        AdversarialLosses(arms=2, source="table", file=str(file)).open(Place.whole(1, 0))
    file.write_text("ann,drama\n")
    with pytest.raises(BadInput, match="line 1"):
        AdversarialLosses(arms=2, source="table", file=str(file)).open(Place.whole(1, 0))


def test_bad_input() -> None:
    with pytest.raises(BadInput, match="arms"):
        AdversarialLosses(arms=1)
    with pytest.raises(BadInput, match="file"):
        AdversarialLosses(source="table")
    with pytest.raises(BadInput, match="eta"):
        plan_of("fedexp3", method={"eta": 0})
    with pytest.raises(BadInput):
        run("fedexp3", task=TASK, network={"graph": "exponential", "weights": "uniform"}, peers=7, rounds=1)
    with pytest.raises(BadInput, match="task"):
        run("fedexp3", task="quadratic", network={"graph": "ring"}, peers=4, rounds=1)
