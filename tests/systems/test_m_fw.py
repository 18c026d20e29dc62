from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from shoal.core import BadInput, Draws, Place
from shoal.experiment import plan_of, run
from shoal.methods.optimize.lmo import Birkhoff, Box, L1Ball, Polytope, Region, Simplex, Spectral, regions
from shoal.runtimes.session import Session
from shoal.tasks.objective.design import Design
from shoal.tasks.objective.logistic import LogisticRegression

GRADIENTS = Draws(3, "gradients", torch.arange(6))


def session(system: str, **plan: object) -> Session:
    opened = Session.open(plan_of(system, **{"peers": 4, "seed": 5, "dtype": "float64", **plan}))
    opened.finish()
    return opened


def linear_program(region: Region, g: np.ndarray) -> float:
    """The least <g, v> over the region, from its inequalities."""
    d = len(g)
    if isinstance(region, Simplex):
        found = linprog(g, A_eq=np.ones((1, d)), b_eq=[region.size], bounds=(0, None))
    elif isinstance(region, L1Ball):  # x = u - w with u, w >= 0
        found = linprog(np.r_[g, -g], A_ub=np.ones((1, 2 * d)), b_ub=[region.radius], bounds=(0, None))
    elif isinstance(region, Box):
        found = linprog(g, bounds=(region.low, region.high))
    elif isinstance(region, Birkhoff):
        side = int(d**0.5)
        rows = np.kron(np.eye(side), np.ones(side))
        columns = np.kron(np.ones(side), np.eye(side))
        found = linprog(g, A_eq=np.r_[rows, columns], b_eq=np.ones(2 * side), bounds=(0, None))
    else:
        assert isinstance(region, Polytope)
        found = linprog(g, A_ub=region.a, b_ub=region.b, bounds=(None, None))
    return float(found.fun)


TRIANGLES = Polytope(
    a=tuple(tuple(r) for r in np.r_[np.eye(9), -np.eye(9), np.ones((1, 9))].tolist()),
    b=(1.0,) * 18 + (2.0,),
)


@pytest.mark.parametrize(
    "region", [Simplex(2.0), L1Ball(5.0), Box(-1, 3), Birkhoff(), TRIANGLES], ids=lambda r: r.slug
)
def test_every_oracle_equals_linprog(region: Region) -> None:
    g = GRADIENTS.normal(9)
    v = region(g)
    for row, point in zip(g.numpy(), v.numpy(), strict=True):
        assert row @ point == pytest.approx(linear_program(region, row), abs=1e-9)
    assert region(g[:0]).shape == (0, 9)
    assert bool(torch.isfinite(region.centre(9)).all())


def test_spectral_ball() -> None:
    g = GRADIENTS.normal(16)
    v = Spectral(3.0)(g)
    norm = torch.linalg.matrix_norm(g.reshape(-1, 4, 4), ord=2)
    torch.testing.assert_close((g * v).sum(1), -3 * norm)
    nuclear = torch.linalg.matrix_norm(v.reshape(-1, 4, 4), ord="nuc")
    torch.testing.assert_close(nuclear, torch.full_like(nuclear, 3.0))


@pytest.mark.parametrize("task", ["quadratic(dim=5)", "logistic(l2=0.1)", "log-portfolio(assets=9)",
                                  "d-optimal(points=9, regressors=3)"])  # fmt: skip
def test_objectives_against_finite_differences(task: str) -> None:
    from shoal.core import tasks

    work = tasks(task).open(Place.whole(3, 1, torch.float64))
    x = work.init(same=False)
    direction = Draws(1, "direction", torch.arange(3)).normal(x.shape[1]) * x.abs().clamp(min=0.1)
    h = 1e-5
    change = (work.loss(x + h * direction, 0) - work.loss(x - h * direction, 0)) / (2 * h)
    torch.testing.assert_close((work.grad(x, 0) * direction).sum(1), change, rtol=1e-5, atol=1e-7)
    bend = (work.grad(x + h * direction, 0) - work.grad(x - h * direction, 0)) / (2 * h)
    curve = torch.bmm(work.hessian(x), direction[:, :, None])[:, :, 0]
    torch.testing.assert_close(curve, bend, rtol=1e-5, atol=1e-6)
    assert work.calls == {"value": 6, "gradient": 9, "hessian": 3, "lipschitz": 0}
    best = work.optimum()
    if best is not None:
        everyone = torch.arange(3)
        assert float(work.slope(best.expand(3, -1), everyone).mean(0).norm()) < 1e-9
        assert work.measure(best.expand(3, -1), 0)["relative_error"] == pytest.approx(0, abs=1e-12)
        low, high = work.bounds()
        eigen = torch.linalg.eigvalsh(work.curvature(x, everyone))
        assert low <= float(eigen.min()) + 1e-9
        assert float(eigen.max()) <= high + 1e-9


def test_losses_are_infinite_and_gradients_nan_outside_the_domain() -> None:
    work = Design(points=6, regressors=3).open(Place.whole(2, 0, torch.float64))
    vertex = torch.eye(6, dtype=torch.float64)[:2]
    assert work.loss(vertex, 0).tolist() == [torch.inf] * 2
    assert bool(torch.isnan(work.grad(vertex, 0)).all())
    portfolio = plan_of("m-fw", task="log-portfolio(assets=4)").task.open(Place.whole(1, 0))
    assert portfolio.loss(-torch.ones(1, 4), 0).tolist() == [torch.inf]  # type: ignore[attr-defined]


def test_on_a_smooth_quadratic_nothing_is_refused_and_the_iterates_are_plain_frank_wolfe() -> None:
    # The minimum lies far outside, so every open-loop step goes down.
    plan = {"task": "quadratic(dim=5, kappa=2, shift=0)", "region": "l1(radius=0.001)", "rounds": 30}
    fields = {"method": {"region": plan.pop("region")}}
    ours = session("m-fw", **plan, **fields)
    plain = session("frank-wolfe", **plan, **fields)
    assert float(ours.state.refused[0]) == 0
    assert torch.equal(ours.state.x, plain.state.x)
    assert bool((ours.state.x.abs().sum(1) > 0).all())


def test_sharded_equals_centralised() -> None:
    """The same steps in NumPy on the mean of the shards' losses."""
    peers, rounds = 8, 40
    done = session("m-fw", task="logistic", method={"region": "l1(radius=5)"}, peers=peers, rounds=rounds)
    work = LogisticRegression().open(Place.whole(peers, 5, torch.float64))
    a = work.a.reshape(-1, work.dim).numpy()
    w = work.weight.reshape(-1).numpy() / peers
    value = lambda x: float(w @ np.logaddexp(0, -a @ x))  # noqa: E731
    x = np.zeros(work.dim)
    for t in range(rounds):
        g = -a.T @ (w / (1 + np.exp(a @ x)))
        k = int(np.abs(g).argmax())
        v = np.zeros_like(x)
        v[k] = -5 * np.sign(g[k])
        trial = x + 2 / (t + 2) * (v - x)
        x = trial if value(trial) <= value(x) else x
    np.testing.assert_allclose(done.state.x.numpy(), np.tile(x, (peers, 1)), atol=1e-10)


def test_f_never_rises_and_both_rules_converge() -> None:
    task = "d-optimal(points=20, regressors=4)"
    for fields in ({"rule": "reject"}, {"rule": "halve"}):
        report = run(
            "m-fw",
            task=task,
            region="simplex",
            peers=4,
            rounds=120,
            seed=101,
            every=1,
            dtype="float64",
            **fields,
        )
        _, loss = report.curve("loss")
        assert all(b <= a + 1e-12 for a, b in pairwise(loss))
        assert report.metrics["best_gap"] < 1.0
        assert report.final["calls"]["hessian"] == report.final["calls"]["lipschitz"] == 0


def test_halving_never_goes_back() -> None:
    task = "d-optimal(points=20, regressors=4)"
    plan = plan_of(
        "m-fw",
        task=task,
        method={"region": "simplex", "rule": "halve"},
        peers=2,
        rounds=20,
        dtype="float64",
    )
    opened = Session.open(plan)
    phi = [0.0]
    for tick, _ in plan.network.ticks(2, plan.seed, 20, 0, None):
        opened.state = plan.method.step(opened.state, tick, opened.context)
        phi.append(float(opened.state.scale[0]))
    assert phi == sorted(phi)
    assert phi[-1] > 0


def test_plain_steps_leave_the_domain() -> None:
    report = run(
        "frank-wolfe",
        task="d-optimal(points=12, regressors=3)",
        region="simplex",
        peers=2,
        rounds=3,
        seed=101,
    )
    assert report.metrics["loss"] == torch.inf
    assert report.metrics["gap"] == torch.inf


def test_a_vertex_costs_an_index_and_a_sign() -> None:
    done = session("m-fw", task="logistic", method={"region": "l1(radius=5)"}, peers=4, rounds=1)
    # Up: 30 floats and F; down: index, sign, step; up: F and a flag at the trial point; down: the step.
    assert done.net.meter.total == 4 * (30 * 8 + 8 + (4 + 1 + 8) + 16 + 8)


def test_backtracking_goes_down() -> None:
    report = run(
        "backtracking-fw",
        task="log-portfolio(assets=20, periods=20)",
        peers=4,
        rounds=60,
        every=1,
        dtype="float64",
    )
    _, loss = report.curve("loss")
    assert all(b <= a + 1e-12 for a, b in pairwise(loss))
    assert report.metrics["best_gap"] < 0.01


@pytest.mark.parametrize("text", ["l1(radius=inf)", "simplex(size=0)", "box(low=1, high=1)", "ball",
                                  "box(low=-inf)"])  # fmt: skip
def test_bad_regions(text: str) -> None:
    with pytest.raises(BadInput):
        regions(text)


def test_unbounded_and_empty_polytopes() -> None:
    with pytest.raises(BadInput, match="bounded"):
        Polytope(a=((1.0, 0.0), (0.0, 1.0)), b=(1.0, 1.0))
    with pytest.raises(BadInput, match="not empty"):
        Polytope(a=((1.0,), (-1.0,)), b=(0.0, -1.0))


def test_bad_input() -> None:
    with pytest.raises(BadInput, match="start"):
        run("m-fw", task="d-optimal", region="simplex", start="vertex", peers=2, rounds=1)
    with pytest.raises(BadInput, match="shard"):
        run("m-fw", task="logistic", peers=600, rounds=1)
    with pytest.raises(BadInput, match="square"):
        run("m-fw", task="logistic", region="birkhoff", peers=2, rounds=1)
