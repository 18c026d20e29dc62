"""Suites are found, not listed."""

from __future__ import annotations

import pytest
import torch

from shoal import bench
from shoal.bench import step
from shoal.core import BadInput


def test_a_suite_is_a_module_with_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    known = bench.suites()
    assert known["step"] is step.suite and not {"timing", "memory", "mutate"} & known.keys()
    seen: list[int] = []

    def suite(threads: int, console: object) -> dict[str, object]:
        seen.append(torch.get_num_threads())
        return {"figure": threads, "holds": True}

    monkeypatch.setattr(step, "suite", suite)
    before = torch.get_num_threads()
    found = bench.run_suite("step", 2, None)
    assert found == {"suite": "step", "threads": 2, "figure": 2, "holds": True}
    assert seen == [2] and torch.get_num_threads() == before


def test_an_unknown_suite_is_answered_with_the_known_ones() -> None:
    with pytest.raises(BadInput, match=r"known suites: .*step"):
        bench.run_suite("steps", 1, None)
