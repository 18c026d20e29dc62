"""Peak memory of local training, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from shoal.core import Draws, RunFailed
from shoal.tasks.models import Batches, models

__all__ = ["peak_memory"]


def peak_memory(
    model: str, feature_shape: tuple[int, ...], classes: int, peers: int, rows: int, batch: int, steps: int
) -> dict[str, Any]:
    """Peak resident bytes of one round of local SGD, above what the imports take.

    The process initialises the models, keeps them as the old state and trains a copy, as a task does.

    Returns:
        ``peak``, ``parameters`` and ``data`` in bytes, and ``ratio`` = (peak - data) / parameters.

    Raises:
        RunFailed: the process failed, or the system does not tell its peak (Linux only).
    """
    job = json.dumps([model, list(feature_shape), classes, peers, rows, batch, steps])
    done = subprocess.run(
        [sys.executable, "-m", "shoal.bench.memory", job], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RunFailed(f"the memory benchmark failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "ratio": (found["peak"] - found["data"]) / found["parameters"]}


def _status(key: str) -> int:
    # Not getrusage: on Linux ru_maxrss survives exec, so a large parent hides what its child takes.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) << 10
    raise RunFailed(f"/proc/self/status has no {key}")


def _train(
    model: str, feature_shape: list[int], classes: int, peers: int, rows: int, batch: int, steps: int
) -> dict[str, int]:
    torch.set_num_threads(1)
    before = _status("VmRSS")
    draws = Draws(0, "memory", torch.arange(peers))
    data = torch.rand(rows, *feature_shape, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(rows) % classes
    stacked = models(model).build(tuple(feature_shape), classes)
    old = stacked.init(Draws(0, "init", torch.zeros(1, dtype=torch.int64))).repeat(peers, 1)
    new = old.clone()
    stacked.train_(new, Batches(data, targets, draws.integers(rows, steps, batch)), steps, 0.1, batch=batch)
    return {
        "peak": _status("VmHWM") - before,
        "parameters": old.nbytes,
        "data": data.nbytes + targets.nbytes,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_train(*json.loads(sys.argv[1]))) + "\n")
