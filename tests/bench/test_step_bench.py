"""The benchmark measures what it says: its floors do the arithmetic of SGD, its memory is a peak."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from shoal.bench import step
from shoal.bench.memory import peak_memory
from shoal.bench.timing import interleave


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_floors_are_sgd(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, reference = step._plain(kind), step._plain(kind)
    reference.load_state_dict(net.state_dict())
    data = torch.rand(40, *((784,) if kind == "mlp" else (1, 28, 28)))
    targets, pieces = torch.arange(40) % 10, [torch.arange(40), torch.arange(7)]
    monkeypatch.setattr(step, "_plain", lambda _: net)
    before = [p.detach().clone() for p in net.parameters()]
    (step._one_mlp if kind == "mlp" else step._one_cnn)(data, targets, pieces)()
    optimiser = torch.optim.SGD(reference.parameters(), lr=step._LR)
    for rows in pieces:
        optimiser.zero_grad()
        F.cross_entropy(reference(data[rows]), targets[rows]).backward()
        optimiser.step()
    for start, got, expected in zip(before, net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
        assert not torch.equal(got, start)


def test_the_floor_is_the_fastest_form() -> None:
    before = torch.get_num_threads()
    found = step.bench_step("mlp", peers=3, batch=4, steps=2, repeats=3, memory_peers=0)
    assert found["ms"][found["floor"]] == min(v for k, v in found["ms"].items() if k != "stacked")
    assert found["ratio"][found["floor"]] == 1.0
    assert found["holds"] == (found["ratio"]["stacked"] <= step.LIMITS["mlp"])
    assert torch.get_num_threads() == before


def test_peak_memory_covers_both_states() -> None:
    found = peak_memory("mlp", (784,), 10, 200, 1000, 32, 1)
    assert found["parameters"] == 200 * 101_770 * 4
    assert 1.9 < found["ratio"] < 4.0


def test_arms_take_turns() -> None:
    order: list[str] = []
    times = interleave({name: lambda n=name: order.append(n) for name in "ab"}, 2, warm=1)
    assert "".join(order) == "abbaab" and len(times.wall["a"]) == 2
