from __future__ import annotations

from typing import Any

import pytest
import torch

from shoal.core import BadInput, Draws, Place, tasks
from shoal.experiment import plan_of, run
from shoal.methods.gossip.dfedsam import DFedSAM, ascent
from shoal.network.network import Network

TASK: dict[str, Any] = {
    "name": "supervised",
    "data": "digits",
    "partition": "iid",
    "model": {"name": "mlp", "hidden": [8]},
    "batch": 8,
    "limit": 240,
}


def go(rounds: int = 3, system: str = "dfedsam", peers: int = 8, **more: Any) -> Any:
    settings: dict[str, Any] = {
        "task": TASK, "network": {"graph": "ring"}, "seed": 6, "dtype": "float64", **more,
    }  # fmt: skip
    return run(system, peers=peers, rounds=rounds, every=rounds, **settings)


def test_ascent_has_length_rho() -> None:
    g = Draws(1, "g", torch.arange(4)).normal(7)
    up = ascent(g, 0.3)
    torch.testing.assert_close(up.norm(dim=1), torch.full((4,), 0.3, dtype=torch.float64))
    torch.testing.assert_close(torch.cosine_similarity(up, g), torch.ones(4, dtype=torch.float64))


def test_zero_gradient_ascends_nowhere() -> None:
    assert torch.equal(ascent(torch.zeros(2, 3), 0.1), torch.zeros(2, 3))
    tiny = ascent(torch.full((1, 1), 1e-25), 0.1)
    assert float(tiny) == pytest.approx(0.1)


def test_without_ascent_it_is_dfedavg() -> None:
    fields: dict[str, Any] = {"local_steps": 4, "decay": 0.9, "weight_decay": 1e-3, "momentum": 0.5}
    assert torch.equal(go(rho=0.0, **fields).output, go(system="dsgd", **fields).output)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sharp_steps_with_a_vanishing_radius_are_sgd(momentum: float) -> None:
    """On full batches, where both take the same examples."""
    fields: dict[str, Any] = {
        "task": {**TASK, "batch": 0}, "momentum": momentum, "weight_decay": 0.01, "local_steps": 3,
    }  # fmt: skip
    sharp, plain = go(rho=1e-12, **fields), go(rho=0.0, **fields)
    torch.testing.assert_close(sharp.output, plain.output, rtol=0, atol=1e-9)


def test_on_a_quadratic_the_gradient_is_taken_at_the_ascended_point() -> None:
    """One local step without mixing: x - lr H(x + rho g / |g| - x*), H(x - x*) = g."""
    task = {"name": "quadratic", "dim": 5}
    report = go(rounds=1, task=task, network={"graph": "components(parts=8)"}, rho=0.5, lr=0.1,
                local_steps=1, weight_decay=0.0)  # fmt: skip
    work: Any = tasks(task).open(Place.whole(8, 6, torch.float64))
    x = work.init()
    basis = torch.eye(5, dtype=torch.float64)
    origin = work.grad(torch.zeros_like(x), 0)
    columns = [work.grad(basis[k].expand(8, -1), 0) - origin for k in range(5)]
    hessian = torch.stack(columns, 2)  # [8, 5, 5]: the gradient is affine
    g = work.grad(x, 0)
    up = g + (hessian @ (0.5 * g / g.norm(dim=1, keepdim=True))[..., None])[..., 0]
    torch.testing.assert_close(report.output, x - 0.1 * up, rtol=0, atol=1e-9)


def test_hops_equal_one_mix_with_the_power_of_w() -> None:
    apart = go(rounds=1, network={"graph": "components(parts=8)"}, rho=0.1).output
    w = Network(graph="ring").graph_at(8, 6, 0).matrix()  # type: ignore[arg-type]
    for hops in (1, 3):
        mixed = go(rounds=1, rho=0.1, gossip_steps=hops)
        torch.testing.assert_close(
            mixed.output, torch.linalg.matrix_power(w, hops) @ apart, rtol=0, atol=1e-12
        )
        assert mixed.bytes_sent == hops * 8 * 2 * 8 * apart.shape[1]


def test_deviation_shrinks_by_the_second_eigenvalue_a_hop() -> None:
    w = Network(graph="ring").graph_at(8, 6, 0).matrix()  # type: ignore[arg-type]
    second = torch.linalg.eigvalsh(w).abs().sort().values[-2]
    before = go(rounds=1, network={"graph": "components(parts=8)"}, rho=0.1).output
    for hops in (1, 2, 4):
        after = go(rounds=1, rho=0.1, gossip_steps=hops).output
        shrunk = (after - after.mean(0)).norm() / (before - before.mean(0)).norm()
        assert float(shrunk) <= float(second) ** hops + 1e-12
        torch.testing.assert_close(after.mean(0), before.mean(0), rtol=0, atol=1e-12)


def test_slow_peers_take_fewer_sharp_steps() -> None:
    """Peers that reach half of the deadline take 2 of 4 steps; nothing else changes for them."""
    network = {"graph": "components(parts=8)"}
    clock = "stragglers(slow=0.5, factor=2, deadline=4)"
    mixed = go(rounds=1, network={**network, "clock": clock}, rho=0.1, local_steps=4).output
    full = go(rounds=1, network=network, rho=0.1, local_steps=4).output
    half = go(rounds=1, network=network, rho=0.1, local_steps=2).output
    slow = (mixed == half).all(1)
    assert int(slow.sum()) == 4
    assert torch.equal(mixed[~slow], full[~slow])


@pytest.mark.parametrize("fields", [{"rho": -0.1}, {"gossip_steps": 0}, {"lr": 0.0}, {"local_steps": 0}])
def test_bad_input(fields: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=next(iter(fields))):
        DFedSAM(**fields)
    with pytest.raises(BadInput, match=next(iter(fields))):
        plan_of("dfedsam", method=fields)
