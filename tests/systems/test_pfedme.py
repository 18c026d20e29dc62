"""System 145, personal models from Moreau envelopes, and its baselines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from shoal.catalog.checks.pfedme import envelope_optimum
from shoal.core import BadInput, Context, Place, Tick, tasks
from shoal.experiment import plan_of, run
from shoal.methods.personal.pfedme import PFedMe
from shoal.methods.personal.proximal import descend
from shoal.runtimes.session import Session

QUADRATIC: dict[str, Any] = {"name": "quadratic", "dim": 4, "kappa": 8.0, "spread": 0.5}
ROUNDS = {"clock": "rounds"}
COMMON: dict[str, Any] = {"task": QUADRATIC, "peers": 6, "rounds": 5, "seed": 1, "dtype": "float64"}
DIGITS: dict[str, Any] = {
    "task": {
        "name": "supervised",
        "data": "digits",
        "partition": "classes(k=2)",
        "model": "linear",
        "batch": 8,
        "own_test": 0.2,
    },
    "network": ROUNDS,
    "peers": 5,
    "rounds": 3,
    "seed": 1,
    "dtype": "float64",
}


def opened(method: PFedMe) -> tuple[Context[Any], Tick]:
    plan = plan_of(method, **COMMON, network=ROUNDS)
    return Session.open(plan).context, next(plan.network.ticks(6, 1, 5, 0, None))[0]


@pytest.mark.parametrize("lam", [0.5, 30.0])
def test_the_proximal_point_and_the_envelopes_gradient(lam: float) -> None:
    method = PFedMe(lam=lam, inner=600, personal_lr=1.6 / (8 + lam), lr=1e-3)
    ctx, tick = opened(method)
    a, c, eye = ctx.task.a, ctx.task.c, torch.eye(4, dtype=torch.float64)
    w = torch.arange(24, dtype=torch.float64).reshape(6, 4) / 7 - 2
    theta = method.prox(torch.zeros_like(w), w, tick, 0, ctx)
    # (A + lam I) theta = A c + lam w.
    right = torch.einsum("nij,nj->ni", a, c) + lam * w
    torch.testing.assert_close(theta, torch.linalg.solve(a + lam * eye, right), rtol=0, atol=1e-9)
    # lam (w - theta) is the gradient of F_i(w) = min_theta f_i(theta) + lam/2 |theta - w|^2.
    at = w.clone().requires_grad_()
    best = torch.linalg.solve(a + lam * eye, torch.einsum("nij,nj->ni", a, c) + lam * at)
    envelope = ctx.task.value(best, ctx.peers) + lam / 2 * (best - at).pow(2).sum(1)
    (slope,) = torch.autograd.grad(envelope.sum(), at)
    torch.testing.assert_close(lam * (w - theta), slope, rtol=0, atol=1e-8)


def test_the_envelopes_optimum() -> None:
    work: Any = tasks(QUADRATIC).open(Place.whole(6, 1, torch.float64))
    lam, eye = 3.0, torch.eye(4, dtype=torch.float64)
    w = envelope_optimum(work, lam)
    theta = torch.linalg.solve(work.a + lam * eye, torch.einsum("nij,nj->ni", work.a, work.c) + lam * w)
    torch.testing.assert_close((w - theta).mean(0), torch.zeros_like(w), rtol=0, atol=1e-12)


def test_a_large_lambda_follows_the_gradient_of_the_mean() -> None:
    # With the proximal point solved, w_i <- w_i - lr lam (w_i - theta_i) tends to w_i - lr grad f_i(w_i).
    lam = 1e5
    fields = {"lam": lam, "inner": 40, "personal_lr": 0.9 / (8 + lam), "lr": 1e-5, "local_rounds": 1}
    report = run("pfedme", **COMMON, network=ROUNDS, **fields, every=1)
    work: Any = tasks(QUADRATIC).open(Place.whole(6, 1, torch.float64))
    w = work.init()
    for tick in range(5):
        w = w - 1e-5 * work.grad(w, tick).mean(0)
    moved = float((w - work.init()).norm())
    assert float((report.output - w).norm()) < 0.05 * moved + 1e-3


def test_without_lambda_theta_is_local() -> None:
    fields = {"inner": 3, "local_rounds": 4, "personal_lr": 0.05}
    report = run("pfedme", **COMMON, network=ROUNDS, lam=0.0, **fields)
    alone = run("local", **COMMON, network=ROUNDS, local_steps=12, lr=0.05)
    torch.testing.assert_close(report.output, alone.output, rtol=0, atol=1e-12)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_the_servers_step(beta: float) -> None:
    plan = plan_of(PFedMe(beta=beta, personal_lr=0.05), **COMMON, network=ROUNDS)
    session = Session.open(plan)
    tick = next(plan.network.ticks(6, 1, 5, 0, None))[0]
    before = session.state
    after = plan.method.step(before, tick, session.context)
    expected = (1 - beta) * before.server[0] + beta * after.x.mean(0)
    torch.testing.assert_close(after.server[0], expected, rtol=0, atol=1e-12)
    if beta == 1:
        torch.testing.assert_close(after.server[0], after.x.mean(0))


def test_only_those_who_take_part_count() -> None:
    plan = plan_of(PFedMe(), **COMMON, network=ROUNDS)
    session = Session.open(plan)
    tick = next(plan.network.ticks(6, 1, 5, 0, None))[0]
    some = torch.tensor([True, False, True, False, False, False])
    after = plan.method.step(session.state, replace(tick, active=some), session.context)
    torch.testing.assert_close(after.server[0], after.x[some].mean(0))
    assert torch.equal(after.theta[~some], session.state.theta[~some])
    assert (after.theta[some] != session.state.theta[some]).any(1).all()


def test_inner_steps_stay_on_one_batch() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def grad(self, x: Tensor, tick: int, *, step: int, active: Tensor) -> Tensor:
            self.seen.append(step)
            return torch.zeros_like(x)

    task: Any = Recorder()
    x = torch.ones(2, 3)
    out = descend(task, x, 0 * x, 0, [4, 4, 4], 0.1, 2.0, torch.tensor([True, False]))
    assert task.seen == [4, 4, 4]
    torch.testing.assert_close(out, torch.stack([torch.full((3,), 0.8**3), torch.ones(3)]))


def test_ditto_without_a_pull_is_local_beside_fedavg() -> None:
    ditto = run("ditto", **DIGITS, lam=0.0, personal_steps=4, personal_lr=0.05)
    work: Any = tasks(DIGITS["task"]).open(Place.whole(5, 1, torch.float64))
    x = work.init()
    for tick in range(3):
        for step in range(4):
            x = x - 0.05 * work.grad(x, tick, step=step)
    torch.testing.assert_close(ditto.output, x, rtol=0, atol=1e-12)
    near = run("ditto", **DIGITS, lam=1e3, personal_steps=4, personal_lr=1e-3)
    # Drawn hard, the personal models are the shared model that was last pulled.
    shared = run("fedavg", **{**DIGITS, "rounds": 2})
    assert float((near.output - shared.output).norm()) < 0.05 * float(shared.output.norm())


def test_per_fedavg_takes_the_gradient_one_step_ahead() -> None:
    task: dict[str, Any] = {**COMMON, "rounds": 1}
    output = run("per-fedavg", **task, network=ROUNDS, lr=0.03, inner_lr=0.05, local_steps=2).output
    work: Any = tasks(QUADRATIC).open(Place.whole(6, 1, torch.float64))
    x = work.init()
    torch.testing.assert_close(output, x - 0.05 * work.grad(x, 0), rtol=0, atol=1e-12)
    plan = plan_of("per-fedavg", **task, network=ROUNDS, method={"lr": 0.03, "inner_lr": 0.05})
    session = Session.open(plan)
    session.finish()
    for _ in range(10):
        x = x - 0.03 * work.grad(x - 0.05 * work.grad(x, 0), 0)
    torch.testing.assert_close(session.state.server[0], x.mean(0), rtol=0, atol=1e-12)


def test_fine_tuned_models_average_to_fedavgs() -> None:
    tuned, plain = run("fedavg-fine-tuned", **DIGITS).output, run("fedavg", **DIGITS).output
    work: Any = tasks(DIGITS["task"]).open(Place.whole(5, 1, torch.float64))
    share = work.sizes.to(tuned) / work.sizes.sum()
    torch.testing.assert_close(share @ tuned, plain[0], rtol=0, atol=1e-12)
    assert tuned.std(0).max() > 0.01


@pytest.mark.parametrize(
    ("field", "value"),
    [("lam", -1.0), ("inner", 0), ("local_rounds", 0), ("beta", 0.0), ("beta", -1.0), ("personal_lr", 0.0)],
)
def test_bad_fields(field: str, value: float) -> None:
    with pytest.raises(BadInput, match=field):
        run("pfedme", **COMMON, network=ROUNDS, **{field: value})


def test_a_diverging_rate_is_refused() -> None:
    with pytest.raises(BadInput, match="below 2 / lam"):
        PFedMe(lam=20.0, lr=0.1)
    PFedMe(lam=0.0, lr=100.0)
