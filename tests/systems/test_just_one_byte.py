"""Just one byte: the estimate, the log, agreement, late joiners."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from shoal.conformance import CHECKS
from shoal.core import BadInput, Draws
from shoal.experiment import plan_of, run
from shoal.methods.lowcomm.just_one_byte import JustOneByte, direction, read_log, replay, write_log
from shoal.runtimes.session import Session

NETWORK: dict[str, Any] = {"graph": "complete", "codec": "log-byte"}
SMALL: dict[str, Any] = {"task": {"limit": 300, "model": {"name": "mlp", "hidden": [8]}}, "peers": 4}


@pytest.mark.parametrize("check", list(CHECKS))
def test_conforms(check: str) -> None:
    CHECKS[check](JustOneByte())


@pytest.mark.parametrize("check", ["resume", "loop", "nan_peer"])
def test_conforms_with_weights(check: str) -> None:
    CHECKS[check](JustOneByte(join="weights"))


def test_estimates_the_gradient_of_a_quadratic() -> None:
    slope = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    curve = torch.tensor([[2.0, 0.3, 0.0], [0.3, 1.0, 0.1], [0.0, 0.1, 0.5]], dtype=torch.float64)
    x = torch.tensor([0.2, 0.4, -1.0], dtype=torch.float64)

    def loss(w: torch.Tensor) -> torch.Tensor:
        return w @ slope + 0.5 * ((w @ curve) * w).sum(1)

    z = direction(3, torch.arange(200_000), 0, 3, torch.float64)
    g = (loss(x + 1e-3 * z) - loss(x - 1e-3 * z)) / 2e-3
    assert torch.allclose((g[:, None] * z).mean(0), slope + curve @ x, atol=0.03)


def test_models_are_the_same_bits_at_every_step() -> None:
    plan = plan_of("just-one-byte", rounds=6, seed=1, method={"agree": 2}, network=NETWORK, **SMALL)
    session = Session.open(plan)
    seen = 0
    for tick, _ in plan.network.ticks(plan.peers, plan.seed, plan.rounds, 0, None):
        session.state = plan.method.step(session.state, tick, session.context)
        x = session.state.x
        assert bool((x == x[0]).all())
        seen += 1
    assert seen == 6 and bool((session.state.version == 6).all())


def test_a_gradient_is_one_byte() -> None:
    report = run("just-one-byte", rounds=5, seed=1, network=NETWORK, **SMALL)
    assert report.bytes_sent == 5 * 4 * 3
    floats = run("just-one-byte", rounds=5, seed=1, network={"graph": "complete", "codec": ()}, **SMALL)
    assert floats.bytes_sent == 4 * report.bytes_sent


@pytest.mark.parametrize("join", ["replay", "weights"])
@pytest.mark.parametrize("codec", ["log-byte", ()])
def test_a_late_joiner_is_bit_equal(join: str, codec: Any) -> None:
    clock = {"name": "churn", "initial": 0.75, "schedule": [[7, "join", [3]]]}
    network = {"graph": "complete", "codec": codec, "clock": clock}
    report = run("just-one-byte", rounds=12, seed=1, network=network, join=join, **SMALL)
    assert torch.equal(report.output[3], report.output[0])
    before = run("just-one-byte", rounds=7, seed=1, network=network, join=join, **SMALL)
    assert not torch.equal(before.output[3], before.output[0])


def test_hashes_find_who_missed_a_message() -> None:
    network = {**NETWORK, "links": {"loss": 0.1, "both_ways": False}}
    apart = run("just-one-byte", rounds=6, seed=1, network=network, agree=0, **SMALL)
    assert len({tuple(v.tolist()) for v in apart.output}) > 1
    # Losses until the comparison, none after it: the outvoted peer replays what the others heard.
    plan = plan_of("just-one-byte", rounds=4, seed=1, method={"agree": 2}, network=NETWORK, **SMALL)
    session = Session.open(plan)
    for tick, _ in plan.network.ticks(plan.peers, plan.seed, plan.rounds, 0, None):
        if tick.index == 1:
            session.state.x[2] += 1.0
        session.state = plan.method.step(session.state, tick, session.context)
        if tick.index == 1:
            assert session.state.version.tolist() == [2, 2, -1, 2]
    assert bool((session.state.x == session.state.x[0]).all())


def _log(ticks: int = 5, n: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    told = Draws(2, "log", torch.arange(ticks)).normal(n, dtype=torch.float32)
    heard = Draws(2, "heard", torch.arange(ticks)).uniform(n) < 0.7
    return torch.where(heard, told, 0.0), heard


def test_log_survives_the_way_and_is_bytes_where_it_can_be() -> None:
    told, heard = _log()
    again = read_log(write_log(told, heard), 3, torch.float32)
    assert torch.equal(again[0], told) and torch.equal(again[1], heard)
    assert len(write_log(told, heard)["data"]) == 60
    value = torch.tensor([[2.0**-3]]).log().mul(16).round().div(16).exp()
    fixed = torch.where(heard, value, 0.0)
    assert len(write_log(fixed, heard)["data"]) in {15, 60}


def test_replay_in_two_parts_is_replay_in_one() -> None:
    told, heard = _log()
    x = torch.zeros(4)
    whole = replay(x, told, heard, 0, 0.1)
    half = replay(x, told[:2], heard[:2], 0, 0.1)
    assert torch.equal(replay(half, told[2:], heard[2:], 0, 0.1, first=2), whole)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"peers": 4}, "log.peers"),
        ({"ticks": 6}, "log.data"),
        ({"data": b"123"}, "log.data"),
        ({"ticks": -1}, "log"),
    ],
)
def test_bad_log(change: dict[str, Any], field: str) -> None:
    message = write_log(*_log()) | change
    with pytest.raises(BadInput, match=field):
        read_log(message, 3, torch.float32)


def test_bad_input() -> None:
    with pytest.raises(BadInput, match="eps"):
        JustOneByte(eps=0.0)
    with pytest.raises(BadInput, match="pretrained"):
        run("fedavg", rounds=1, peers=2, task={"name": "supervised", "data": "sklearn(table='diabetes')",
            "pretrained": 2})  # fmt: skip


def test_pretrained_start_knows_the_first_classes() -> None:
    report = run("just-one-byte", rounds=1, seed=3, peers=2, network=NETWORK, every=1)
    assert 0.4 < report.rows[0]["accuracy"] < 0.6
