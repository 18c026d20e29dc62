from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from shoal.core import BadInput, Draws, Place
from shoal.experiment import plan_of, run
from shoal.methods.gossip.avg_sam import DSGDProbe, deviations, probe, smoothed_gradient

TASK: dict[str, Any] = {
    "name": "supervised",
    "data": "digits",
    "partition": "iid",
    "model": {"name": "mlp", "hidden": [8], "activation": "tanh"},
    "batch": 8,
    "limit": 240,
}
DIM = 6
COEFFICIENT = Draws(1, "tensor", torch.arange(1)).normal(DIM, DIM, DIM)[0]
MATRIX = Draws(1, "matrix", torch.arange(1)).normal(DIM, DIM)[0]
MODELS = 0.3 * Draws(2, "models", torch.arange(5)).normal(DIM)
NOTHING = torch.zeros(1, DIM, dtype=torch.float64)
ONE = Draws(3, "z", torch.zeros(1, dtype=torch.int64))


def loss_only(cubic: float) -> Any:
    """A task whose loss is w'Mw + cubic sum T_abc w_a w_b w_c, whatever the batch."""

    def objective(w: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        return w @ MATRIX @ w + cubic * torch.einsum("abc,a,b,c->", COEFFICIENT, w, w, w)

    def slopes(x: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        slope, value = vmap(grad_and_value(objective), (0, None, None))(x, inputs, targets)
        return value, slope

    def logits(x: Tensor, inputs: Tensor) -> Tensor:
        return x[:, None, :3]

    return SimpleNamespace(model=SimpleNamespace(objective=objective, grad=slopes, logits=logits))


def go(system: str, rounds: int = 4, peers: int = 6, **more: Any) -> Any:
    settings: dict[str, Any] = {
        "task": TASK, "network": {"graph": "ring"}, "seed": 5, "dtype": "float64", **more,
    }  # fmt: skip
    return run(system, peers=peers, rounds=rounds, every=rounds, **settings)


def test_cubic_loss_needs_no_more_than_the_second_order_term() -> None:
    found = probe(loss_only(1.0), MODELS, NOTHING, NOTHING, ONE, 5)
    assert found["gap"] > 0.01
    assert found["taylor"] < 1e-9
    _, d = deviations(MODELS)
    assert found["trace"] == pytest.approx(float(torch.trace(d.T @ d / len(d))))


def test_quadratic_loss_has_no_second_order_term() -> None:
    """The gradient is linear: A = B, and what is left is rounding."""
    found = probe(loss_only(0.0), MODELS, NOTHING, NOTHING, ONE, 5)
    assert found["gap"] < 1e-12


def test_smoothed_gradient_of_a_cubic_is_the_peers_mean_gradient() -> None:
    task = loss_only(1.0)
    a = task.model.grad(MODELS, NOTHING, NOTHING)[1].mean(0)
    b = task.model.grad(MODELS.mean(0, keepdim=True), NOTHING, NOTHING)[1][0]
    error = {}
    for pairs in (50, 5000):
        g = smoothed_gradient(task, MODELS, NOTHING, NOTHING, ONE.at(str(pairs)), pairs)[0]
        error[pairs] = float((g - a).norm() / (a - b).norm())
    assert error[5000] < 0.1 < 10 * error[50]
    # Antithetic pairs: exact on a quadratic, however few.
    flat = loss_only(0.0)
    g = smoothed_gradient(flat, MODELS, NOTHING, NOTHING, ONE, 1)
    torch.testing.assert_close(g, flat.model.grad(MODELS.mean(0, keepdim=True), NOTHING, NOTHING)[1])


def test_probe_against_double_backward_through_a_network() -> None:
    """C is the gradient by w of (1/2m) sum d'H(w)d, here by plain autograd on the whole expression."""
    work: Any = plan_of("dsgd-sam", task=TASK, peers=4, seed=5).task.open(Place.whole(4, 5, torch.float64))
    x = work.init() + 0.05 * Draws(1, "apart", torch.arange(4)).normal(work.dim)
    inputs, targets = work.x[:40].to(torch.float64), work.y[:40]
    mean, d = deviations(x)
    w = mean[0].clone().requires_grad_()
    slope = torch.autograd.grad(work.model.objective(w, inputs, targets), w, create_graph=True)[0]
    bends = [torch.autograd.grad(slope @ v, w, create_graph=True)[0] @ v for v in d]
    c = torch.autograd.grad(sum(bends) / (2 * len(d)), w)[0]
    a = work.model.grad(x, inputs, targets)[1].mean(0)
    b = work.model.grad(mean, inputs, targets)[1][0]
    found = probe(work, x, inputs, targets, ONE, 5)
    assert found["gap"] == pytest.approx(float((a - b).norm() / b.norm()))
    assert found["taylor"] == pytest.approx(float((a - b - c).norm() / (a - b).norm()), rel=1e-6)
    assert 0 < found["taylor"] < 0.5


def test_mixing_everything_is_csgd() -> None:
    """W = 11'/n, adapt then combine: the models stay one, Xi = 0 and A = B."""
    full = {"graph": "complete"}
    one = go("dsgd-sam", network=full, order="atc", pairs=2)
    central = go("csgd", local_steps=1)
    torch.testing.assert_close(one.output, central.output, rtol=0, atol=1e-12)
    assert one.metrics["trace"] < 1e-25
    assert one.metrics["gap"] < 1e-12
    assert one.metrics["uncertainty"] < 1e-25


def test_identical_models_differ_in_nothing() -> None:
    found = probe(loss_only(1.0), MODELS[:1].repeat(4, 1), NOTHING, NOTHING, ONE, 5)
    assert found == {"gap": 0.0, "taylor": 0.0, "smoothing": 0.0, "trace": 0.0, "uncertainty": 0.0}


def test_one_round_is_the_papers_step() -> None:
    """x_j <- sum_k P_jk x_k - lr g_j(x_j), after a first round that sets the peers apart."""
    one, two = (go("dsgd-sam", rounds=r, lr=0.2, pairs=1).output for r in (1, 2))
    plan = plan_of("dsgd-sam", task=TASK, peers=6, seed=5, network={"graph": "ring"})
    work: Any = plan.task.open(Place.whole(6, 5, torch.float64))
    w = plan.network.graph_at(6, 5, 0).matrix()
    torch.testing.assert_close(two, w @ one - 0.2 * work.grad(one, 1), rtol=0, atol=1e-12)


def test_average_direction_sam_without_deviations_is_csgd() -> None:
    """The first step, where all models are the same, and every step without a difference in data."""
    torch.testing.assert_close(
        go("avg-sam", rounds=1).output, go("csgd", rounds=1, local_steps=1).output, rtol=0, atol=1e-12
    )


def test_average_direction_sam_keeps_one_model_and_takes_the_smoothed_gradient() -> None:
    """Step 2 on full batches, against the same eps put together here."""
    task = {**TASK, "batch": 0}
    one, y = go("avg-sam", rounds=1, task=task).output, go("dsgd-sam", rounds=1, task=task, pairs=1).output
    two = go("avg-sam", rounds=2, task=task).output
    assert float((two - two[:1]).abs().max()) == 0.0
    work: Any = plan_of("avg-sam", task=task, peers=6, seed=5).task.open(Place.whole(6, 5, torch.float64))
    z = Draws(5, "avg-sam/0", torch.arange(6), 1).normal(1)
    noise = (z * deviations(y)[1]).sum(0) / 6**0.5
    assert float(noise.norm()) > 0
    g = (work.grad(one + noise, 1) + work.grad(one - noise, 1)) / 2
    torch.testing.assert_close(two, (one - 0.1 * g).mean(0).expand(6, -1), rtol=0, atol=1e-12)


def test_the_report_says_where_the_activation_has_kinks() -> None:
    relu = {**TASK, "model": {"name": "mlp", "hidden": [8]}}
    assert any("smooth" in note for note in go("dsgd-sam", rounds=1, task=relu, pairs=1).notes)
    for task in (TASK, {**TASK, "model": "linear"}):
        assert not go("dsgd-sam", rounds=1, pairs=1, task=task).notes


@pytest.mark.parametrize("system", ["dsgd-sam", "avg-sam"])
def test_one_peer_is_refused(system: str) -> None:
    with pytest.raises(BadInput, match="at least 2"):
        go(system, peers=1, network={"graph": "complete"})


@pytest.mark.parametrize(
    "fields", [{"lr": 0.0}, {"lr": -0.1}, {"local_steps": 2}, {"pairs": 0}, {"probe_size": 0}]
)
def test_bad_input(fields: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=next(iter(fields))):
        DSGDProbe(**fields)
