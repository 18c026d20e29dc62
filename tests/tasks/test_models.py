"""Stacked models against automatic differentiation, torch.optim and torch.nn, in float64."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from shoal.core import BadInput, Draws
from shoal.core.load import load_object
from shoal.tasks.models import Batches, Stacked, models

F64 = torch.float64
IMAGE = (12, 12)


class Net(nn.Module):
    def __init__(self, classes: int, width: int = 6) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(144, width), nn.LayerNorm(width), nn.SiLU())
        self.out = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x))


def plain(hidden: int = 9, classes: int = 4) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(144, hidden), nn.ReLU(), nn.Linear(hidden, classes))


CONFIGS = {
    "linear": "linear",
    "relu": "mlp(hidden=[9])",
    "tanh": "mlp(hidden=[7, 5], activation=tanh)",
    "gelu": "mlp(hidden=[7, 5], activation=gelu, init=xavier)",
    "cnn": "cnn(channels=[3, 4], kernel=3, hidden=8)",
    "cnn-same": "cnn(channels=[3], kernel=5, hidden=0, padding=same)",
    "module": {"name": "module", "path": Net, "kwargs": {"width": 5}},
}


def setting(config: object, peers: int = 5, batch: int = 6, classes: int = 4):
    model = models(config).build(IMAGE, classes)
    draws = Draws(3, "test", torch.arange(peers))
    x = model.init(draws.at("init"), F64)
    inputs = draws.at("inputs").normal(batch, *IMAGE)
    at = draws.at("targets")
    targets = at.integers(classes, batch) if classes else at.normal(batch)
    return model, x, inputs, targets, draws


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def narrow(model: Stacked, monkeypatch: pytest.MonkeyPatch, cache: int = 1) -> None:
    monkeypatch.setattr(type(model), "cache", cache)


@pytest.mark.parametrize("classes", [4, 0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_gradient_is_that_of_autograd(name: str, weighted: bool, classes: int) -> None:
    config = CONFIGS[name]
    if name == "module":
        config = {**config, "kwargs": {"width": 5, "classes": classes or 1}}
    model, x, inputs, targets, draws = setting(config, classes=classes)
    weights = draws.at("weights").uniform(6) if weighted else None
    if weights is not None:
        weights[1, 2:] = 0
    loss, slope = model.grad(x, inputs, targets, weights)
    expected_loss, expected = model.grad_autograd(x, inputs, targets, weights)
    close(slope, expected)
    close(loss, expected_loss)
    close(model.loss(x, inputs, targets, weights), expected_loss)
    assert slope.abs().sum(1).min() > 0


@pytest.mark.parametrize("name", CONFIGS)
def test_shared_inputs_are_the_same_inputs_for_all(name: str) -> None:
    model, x, inputs, targets, _ = setting(CONFIGS[name])
    many, labels = inputs[:1].expand(5, -1, -1, -1), targets[:1].expand(5, -1)
    close(model.logits(x, inputs[0]), model.logits(x, many))
    close(model.grad(x, inputs[0], targets[0])[1], model.grad(x, many, labels)[1])
    close(model.grad_autograd(x, inputs[0], targets[0])[1], model.grad(x, many, labels)[1])


@pytest.mark.parametrize("name", CONFIGS)
def test_functional_agrees_with_logits(name: str) -> None:
    model, x, inputs, _, _ = setting(CONFIGS[name])
    close(torch.stack([model.functional(x[i], inputs[i]) for i in range(5)]), model.logits(x, inputs))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.0, 0.1), (0.9, 0.0), (0.8, 0.1)])
def test_steps_are_those_of_torch_sgd(name: str, momentum: float, decay: float) -> None:
    model, x, inputs, targets, _ = setting(CONFIGS[name], peers=3)
    expected = x.clone().requires_grad_()
    reference = torch.optim.SGD([expected], lr=0.2, momentum=momentum, weight_decay=decay)
    buffer = torch.zeros_like(x) if momentum else None
    for _ in range(3):
        model.sgd_(x, inputs, targets, 0.2, momentum=momentum, buffer=buffer, weight_decay=decay)
        expected.grad = model.grad_autograd(expected.detach(), inputs, targets)[1]
        reference.step()
    close(x, expected.detach())


@pytest.mark.parametrize("name", CONFIGS)
def test_chunks_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, inputs, targets, _ = setting(CONFIGS[name])
    narrow(model, monkeypatch, 1 << 30)
    whole = x.clone()
    model.sgd_(whole, inputs, targets, 0.3)
    slope, logits = model.grad(x, inputs, targets), model.logits(x, inputs)
    score = model.score(x, inputs[0], targets[0])
    narrow(model, monkeypatch)
    assert model.chunk(6, 8) == 1
    model.sgd_(x_chunked := x.clone(), inputs, targets, 0.3)
    close(x_chunked, whole, 1e-12)
    close(model.grad(x, inputs, targets)[1], slope[1], 1e-12)
    close(model.logits(x, inputs), logits, 1e-12)
    close(model.score(x, inputs[0], targets[0])["loss"], score["loss"], 1e-12)


@pytest.mark.parametrize("name", CONFIGS)
def test_one_peer_equals_its_row_of_the_batch(name: str) -> None:
    model, x, inputs, targets, draws = setting(CONFIGS[name])
    alone = model.init(dataclasses.replace(draws, peers=torch.tensor([3])).at("init"), F64)
    assert torch.equal(alone[0], x[3])
    model.sgd_(x, inputs, targets, 0.3)
    model.sgd_(alone, inputs[3:4], targets[3:4], 0.3)
    close(alone[0], x[3], 1e-12)


@pytest.mark.parametrize("cache", [1, 1 << 30])
@pytest.mark.parametrize("name", CONFIGS)
def test_inactive_rows_keep_their_bits(name: str, cache: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, inputs, targets, _ = setting(CONFIGS[name])
    narrow(model, monkeypatch, cache)
    active = torch.tensor([True, False, True, True, False])
    x[1, 0], x[4, 0] = -0.0, torch.nan
    buffer = torch.ones_like(x)
    before, full = x.clone(), x.clone()
    model.sgd_(x, inputs, targets, 0.3, active=active, momentum=0.9, buffer=buffer, weight_decay=0.1)
    assert torch.equal(x[~active].view(torch.int64), before[~active].view(torch.int64))
    assert torch.equal(buffer[~active], torch.ones_like(buffer[~active]))
    model.sgd_(full, inputs, targets, 0.3, momentum=0.9, buffer=torch.ones_like(x), weight_decay=0.1)
    close(x[active], full[active], 1e-12)
    loss, slope = model.grad(full, inputs, targets, active=active)
    assert not slope[~active].any() and not loss[~active].any()
    close(slope[active], model.grad(full, inputs, targets)[1][active], 1e-12)


@pytest.mark.parametrize("cache", [1, 1 << 30])
def test_each_peer_takes_its_own_number_of_steps(cache: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, inputs, targets, draws = setting(CONFIGS["relu"])
    narrow(model, monkeypatch, cache)
    data, labels = inputs.flatten(0, 1), targets.flatten()
    batches = Batches(data, labels, draws.at("index").integers(30, 4, 8))
    steps = torch.tensor([0, 3, 4, 1, 0])
    expected = x.clone()
    for i in range(5):
        for s in range(int(steps[i])):
            rows = batches.index[i, s]
            model.sgd_(expected[i : i + 1], data[rows][None], labels[rows][None], 0.2)
    model.train_(x, batches, steps, 0.2, batch=8)
    close(x, expected, 1e-12)


def test_an_uneven_batch_is_a_smaller_one() -> None:
    model, x, inputs, targets, _ = setting(CONFIGS["relu"])
    weights = torch.ones(5, 6)
    weights[2, 4:] = 0
    weights[3] = 0
    loss, slope = model.grad(x, inputs, targets, weights)
    short = model.grad(x[2:3], inputs[2:3, :4], targets[2:3, :4])
    close(slope[2], short[1][0])
    close(loss[2], short[0][0])
    assert loss[3] == 0 and not slope[3].any()


def test_views_are_the_parameters() -> None:
    model, x, *_ = setting(CONFIGS["cnn"])
    assert model.dim == x.shape[1] == sum(c.stop - c.start for _, c, _ in model.layers)
    for name, view in model.views(x).items():
        view.fill_(7.0)
        assert view.shape[0] == 5 and name.partition(".")[2] in {"weight", "bias"}
    assert (x == 7).all()


@pytest.mark.parametrize("name", ["linear", "tanh", "gelu", "cnn", "module"])
def test_hessian_product_is_the_derivative_of_the_gradient(name: str) -> None:
    model, x, inputs, targets, draws = setting(CONFIGS[name], peers=2, batch=3)
    v = draws.at("v").normal(model.dim)
    product = model.hvp(x, v, inputs, targets)
    for row in range(2):  # forward over reverse, where hvp is reverse over reverse
        slope = torch.func.grad(lambda w, i=row: model.objective(w, inputs[i], targets[i]))
        close(product[row], torch.func.jvp(slope, (x[row],), (v[row],))[1])
    # Symmetric: u'Hv = v'Hu.
    u = draws.at("u").normal(model.dim)
    close((product * u).sum(1), (model.hvp(x, u, inputs, targets) * v).sum(1), 1e-9)


def test_gradient_of_a_hessian_product() -> None:
    model, x, inputs, targets, draws = setting(CONFIGS["tanh"], peers=1, batch=3)
    v = draws.at("v").normal(model.dim)
    point = x.clone().requires_grad_()
    (third,) = torch.autograd.grad((model.hvp(point, v, inputs, targets) * v).sum(), point)
    h, w = 1e-5, draws.at("w").normal(model.dim)
    ends = [(model.hvp(x + s * w, v, inputs, targets) * v).sum() for s in (h, -h)]
    torch.testing.assert_close((third * w).sum(), (ends[0] - ends[1]) / (2 * h), rtol=1e-4, atol=1e-6)


def test_softmax_regression_has_its_closed_form() -> None:
    model, x, inputs, targets, _ = setting(CONFIGS["linear"])
    flat = inputs.flatten(2)
    w, b = model.views(x).values()
    p = torch.softmax(flat @ w.mT + b[:, None], -1) - nn.functional.one_hot(targets, 4)
    close(model.views(model.grad(x, inputs, targets)[1])["fc1.weight"], p.mT @ flat / 6)


def test_module_is_the_mlp_of_the_same_shape() -> None:
    fast, x, inputs, targets, _ = setting("mlp(hidden=[9])")
    slow = models({"name": "module", "path": plain}).build(IMAGE, 4)
    assert [(c, s) for _, c, s in slow.layers] == [(c, s) for _, c, s in fast.layers]
    y = x.clone()
    for _ in range(3):
        fast.sgd_(x, inputs, targets, 0.3, weight_decay=0.01)
        slow.sgd_(y, inputs, targets, 0.3, weight_decay=0.01)
    close(x, y)
    close(fast.logits(x, inputs), slow.logits(y, inputs))


def test_default_initialisation_is_that_of_torch() -> None:
    model = models("cnn").build((28, 28), 10)
    x = model.init(Draws(0, "init", torch.arange(40)), F64)
    reference = [nn.Conv2d(1, 16, 5), nn.Conv2d(16, 32, 5), nn.Linear(512, 64), nn.Linear(64, 10)]
    expected = [p for layer in reference for p in (layer.weight, layer.bias)]
    for view, like in zip(model.views(x).values(), expected, strict=True):
        assert view.shape[1:] == like.shape
    for i, fan in enumerate([25, 400, 512, 64]):
        for view in list(model.views(x).values())[2 * i : 2 * i + 2]:
            bound = fan**-0.5
            assert view.abs().max() <= bound and view.abs().max() > 0.98 * bound
            assert abs(view.std() * 3**0.5 / bound - 1) < 0.05
    assert not torch.equal(x[0], x[1])


def test_modules_start_from_their_own_initialisation() -> None:
    state = torch.random.get_rng_state()
    model, x, *_ = setting(CONFIGS["module"])
    assert torch.equal(state, torch.random.get_rng_state())
    norm = model.views(x)["body.2.weight"]
    assert (norm == 1).all() and not torch.equal(x[0], x[1])
    trained = plain()
    given = models({"name": "module", "path": trained}).build(IMAGE, 4)
    y = given.init(Draws(0, "init", torch.arange(2)), F64)
    assert torch.equal(y[1], torch.cat([p.detach().flatten() for p in trained.parameters()]).double())


def test_frozen_parameters_are_shared_constants() -> None:
    net = plain()
    net[1].requires_grad_(False)
    model = models({"name": "module", "path": net}).build(IMAGE, 4)
    assert model.dim == 9 * 4 + 4
    x = model.init(Draws(0, "init", torch.arange(2)), F64)
    inputs = Draws(0, "inputs", torch.arange(2)).normal(3, *IMAGE)
    close(model.logits(x, inputs)[0], net.double()(inputs[0]).detach())


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(144, 4), nn.BatchNorm1d(4)), "track_running_stats=False"),
        (nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 4)), "dropout 0.5"),
        (nn.Sequential(nn.Flatten(), nn.Linear(144, 3)), r"\[B, 4\]; for B = 2 it gave \[2, 3\]"),
        (nn.Sequential(nn.Flatten(), nn.Linear(9, 4)), "cannot be multiplied"),
        (nn.Flatten(), "trainable parameters"),
    ],
)
def test_modules_that_cannot_be_stacked_are_refused(net: nn.Module, says: str) -> None:
    with pytest.raises(BadInput, match=says) as caught:
        models({"name": "module", "path": net}).build(IMAGE, 4)
    assert "\n" not in str(caught.value)


def test_batch_norm_on_batch_statistics_works() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(144, 4), nn.BatchNorm1d(4, track_running_stats=False))
    model, x, inputs, targets, _ = setting({"name": "module", "path": net})
    close(model.grad(x, inputs, targets)[1], model.grad_autograd(x, inputs, targets)[1])


@pytest.mark.parametrize(
    ("config", "shape", "says"),
    [
        ("mlp(hidden=[0])", (4,), "hidden"),
        ("mlp(activation=sine)", (4,), "activation"),
        ("cnn(kernel=4)", IMAGE, "odd"),
        ("cnn(channels=[])", IMAGE, "at least one"),
        ("cnn", IMAGE, "left after block 2"),
        ("cnn", (4,), "needs images"),
        ("module", (4,), "write it as"),
        ("module(path=none.py:Net)", (4,), "cannot be read"),
    ],
)
def test_bad_architectures_are_refused(config: str, shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        models(config).build(shape, 3)


def test_objects_load_from_files_and_modules(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    (tmp_path / "beside_it.py").write_text("WIDTH = 6\n")
    file.write_text(
        "import torch.nn as nn\nfrom beside_it import WIDTH\n"
        "def net(feature_shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(feature_shape[0] ** 2, WIDTH),"
        " nn.Linear(WIDTH, classes))\n"
    )
    model = models(f"module(path={file}:net)").build(IMAGE, 3)
    assert model.dim == 144 * 6 + 6 + 6 * 3 + 3
    assert load_object(f"{file}:net") is load_object(f"{file}:net")
    assert load_object("torch.nn:Module.forward") is nn.Module.forward


@pytest.mark.parametrize(
    ("code", "name", "says"),
    [
        ("x = 1\n", "y", r"no y in .*it has x"),
        ("x = (\n", "x", "SyntaxError"),
        ("import no_such_module\n", "x", "ModuleNotFoundError.*no_such_module.*line 1"),
        ("\nraise SystemExit(3)\n", "x", r"SystemExit: 3 \(line 2 of mine.py\)"),
    ],
)
def test_objects_that_do_not_load(tmp_path: Path, code: str, name: str, says: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(code)
    with pytest.raises(BadInput, match=says) as caught:
        load_object(f"{file}:{name}", "task.model.path")
    assert str(caught.value).startswith("task.model.path = ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["no_colon", "torch.nn:", ":x", "torch.nn:a b", "no.such.pkg:x"])
def test_names_that_are_no_objects(text: str) -> None:
    with pytest.raises(BadInput):
        load_object(text)
