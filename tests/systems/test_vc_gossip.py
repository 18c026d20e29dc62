from __future__ import annotations

from typing import Any

import pytest
import torch

from shoal.core import BadInput, Draws
from shoal.experiment import run
from shoal.methods.gossip.variance_corrected import VarianceCorrected, rescale_variance, weight_variances

LAYERS: Any = [("w", slice(0, 12), (3, 4)), ("b", slice(12, 15), (3,)), ("v", slice(15, 16), (1, 1))]
MODELS = Draws(1, "models", torch.arange(5)).normal(16)
TASK: dict[str, Any] = {
    "name": "supervised",
    "data": "digits",
    "partition": "iid",
    "model": {"name": "mlp", "hidden": [16], "init": "xavier"},
    "batch": 8,
    "limit": 240,
}


def go(peers: int = 8, rounds: int = 3, system: str = "vc-gossip", **more: Any) -> Any:
    settings: dict[str, Any] = {
        "task": TASK, "network": {"graph": "ring"}, "seed": 4, "dtype": "float64", **more,
    }  # fmt: skip
    return run(system, peers=peers, rounds=rounds, every=rounds, **settings)


def test_variance_equals_the_target_and_the_mean_stays() -> None:
    target = torch.rand(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1
    x = rescale_variance(MODELS, target, LAYERS)
    torch.testing.assert_close(x[:, :12].var(1, correction=0), target[:, 0], rtol=1e-9, atol=0)
    torch.testing.assert_close(x[:, :12].mean(1), MODELS[:, :12].mean(1), rtol=0, atol=1e-12)
    assert torch.equal(x[:, 12:], MODELS[:, 12:])  # the bias, and the tensor of one element


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_constant_tensors_are_left_alone(value: float, dtype: torch.dtype) -> None:
    x = torch.full((5, 16), value, dtype=dtype)
    assert torch.equal(rescale_variance(x, torch.ones(5, 2, dtype=dtype), LAYERS), x)


def test_variances_are_of_weight_tensors_alone() -> None:
    found = weight_variances(MODELS, LAYERS)
    assert found.shape == (5, 2)
    torch.testing.assert_close(found[:, 0], MODELS[:, :12].var(1, correction=0))
    assert torch.equal(found[:, 1], torch.zeros(5, dtype=torch.float64))
    assert weight_variances(MODELS[:0], LAYERS).shape == (0, 2)


@pytest.mark.parametrize("shape", [(5, 1), (4, 2), (5, 3)])
def test_mismatched_targets(shape: tuple[int, int]) -> None:
    with pytest.raises(BadInput, match="target"):
        rescale_variance(MODELS, torch.ones(shape, dtype=torch.float64), LAYERS)


def test_mismatched_models() -> None:
    with pytest.raises(BadInput, match="rows of 16 parameters"):
        rescale_variance(MODELS[:, :15], torch.ones(5, 2, dtype=torch.float64), LAYERS)


@pytest.mark.parametrize("target", ["conservative", "self", "others", "none"])
def test_identical_models_are_a_fixed_point(target: str) -> None:
    report = go(lr=1e-300, same_start=True, target=target)
    before = go(system="local", rounds=1, lr=1e-300).output
    torch.testing.assert_close(report.output, before, rtol=0, atol=1e-12)


def test_keeping_everything_is_local() -> None:
    alone = go(system="local", rounds=4, local_steps=2, same_start=False)
    kept = go(rounds=4, c=1.0)
    torch.testing.assert_close(kept.output, alone.output, rtol=0, atol=1e-12)


def test_an_isolated_peer_keeps_its_model() -> None:
    graph = {"graph": "components(parts=8)"}
    alone = go(system="local", local_steps=2, same_start=False)
    for target in ("conservative", "others"):
        torch.testing.assert_close(go(network=graph, target=target).output, alone.output, rtol=0, atol=0)


def test_one_step_against_the_formula() -> None:
    """Ring of 4, c = 0.25: each tensor of c x + (1 - c) mean(neighbours), to the target variance."""
    start = go(peers=4, system="local", rounds=1, local_steps=2, same_start=False)
    x, layers = start.output, start.layers
    others = (x.roll(1, 0) + x.roll(-1, 0)) / 2
    mixed = 0.25 * x + 0.75 * others
    for target in ("conservative", "self", "others"):
        found = go(peers=4, rounds=1, c=0.25, target=target).output
        for _, columns, shape in layers:
            part, want = found[:, columns], mixed[:, columns]
            if len(shape) == 1:
                torch.testing.assert_close(part, want)
                continue
            own = x[:, columns].var(1, correction=0)
            heard = (own.roll(1) + own.roll(-1)) / 2
            goal = {"conservative": 0.25 * own + 0.75 * heard, "self": own, "others": heard}[target]
            torch.testing.assert_close(part.var(1, correction=0), goal, rtol=1e-6, atol=0)
            torch.testing.assert_close(part.mean(1), want.mean(1), rtol=0, atol=1e-12)
            # Only the spread about the mean was scaled.
            ratio = (part - part.mean(1, keepdim=True)) / (want - want.mean(1, keepdim=True))
            torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-6, atol=0)


def test_plain_averaging_shrinks_the_variance_as_the_weights_say() -> None:
    """Independent models: the variance falls to sum_j w_ij^2 = c^2 + (1 - c)^2 / 4 on 4 neighbours."""
    network = {"graph": "random-regular(degree=4)"}
    task = {**TASK, "model": {"name": "mlp", "hidden": [64], "init": "xavier"}}
    start = go(peers=12, rounds=1, system="local", lr=1e-300, same_start=False, task=task)
    first = weight_variances(start.output, start.layers)[:, 0].mean()
    for target, ratio in (("none", 0.25 + 0.25 / 4), ("conservative", 1.0)):
        report = go(peers=12, rounds=1, lr=1e-300, network=network, target=target, task=task)
        after = weight_variances(report.output, report.layers)[:, 0].mean()
        assert float(after / first) == pytest.approx(ratio, abs=0.01)


def test_a_full_buffer_is_averaged_and_emptied() -> None:
    """On a ring two models come a tick: with b = 4 peers average every second tick, over what came."""
    quiet = go(rounds=1, lr=1e-300, buffer=4, target="none").output
    start = go(rounds=1, system="local", lr=1e-300, same_start=False).output
    torch.testing.assert_close(quiet, start, rtol=0, atol=1e-250)
    both = go(rounds=2, lr=1e-300, buffer=4, target="none").output
    once = go(rounds=1, lr=1e-300, buffer=1, target="none").output
    torch.testing.assert_close(both, once, rtol=0, atol=1e-12)  # the same two neighbours, twice
    three = go(rounds=3, lr=1e-300, buffer=4, target="none").output
    torch.testing.assert_close(three, both, rtol=0, atol=1e-250)


@pytest.mark.parametrize(
    "fields", [{"c": -0.1}, {"c": 1.1}, {"target": "mine"}, {"epsilon": 0.0}, {"buffer": 0}]
)
def test_bad_input(fields: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=next(iter(fields))):
        VarianceCorrected(**fields)


def test_gossip_learning_averages_parts_by_age() -> None:
    """Two peers on one edge, one part: after a first tick the ages are 1, so the models meet half-way."""
    alone: dict[str, Any] = {"peers": 2, "system": "local", "local_steps": 1, "same_start": False}
    pair: dict[str, Any] = {"peers": 2, "network": {"graph": "complete"}, "same_start": False}
    fields: dict[str, Any] = {"system": "gossip-learning", "local_steps": 1, "lr": 1e-300, **pair}
    start = go(rounds=1, lr=1e-300, **alone).output
    whole = go(rounds=1, parts=1, **fields)
    torch.testing.assert_close(whole.output, start.mean(0, keepdim=True).expand(2, -1), rtol=0, atol=1e-12)
    assert whole.bytes_sent == 2 * 8 * (start.shape[1] + 1)
    # In four parts each peer takes one quarter half-way; the rest is its own.
    found = go(rounds=1, parts=4, **fields)
    gap = found.output - start
    half = (start.flip(0) - start) / 2
    width = -(-start.shape[1] // 4)
    taken = [[not torch.allclose(g, torch.zeros_like(g)) for g in row.split(width)] for row in gap]
    assert [sum(row) for row in taken] == [1, 1]
    for peer, row in enumerate(taken):
        piece = slice(row.index(True) * width, (row.index(True) + 1) * width)
        torch.testing.assert_close(gap[peer, piece], half[peer, piece], rtol=0, atol=1e-12)
    assert found.bytes_sent == 2 * 8 * (width + 1)


def test_gossip_learning_alone_is_local() -> None:
    quiet = go(system="gossip-learning", network={"graph": "random-peer(p=0)"}, rounds=3)
    assert torch.equal(quiet.output, go(system="local", rounds=3).output)


def test_gossip_learning_refuses_more_parts_than_parameters() -> None:
    with pytest.raises(BadInput, match="parts"):
        go(system="gossip-learning", parts=100_000)
