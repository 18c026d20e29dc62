"""``step``: what stacking costs. Local SGD of many peers against the least that its arithmetic takes.

The floor is the best of several honest forms of plain torch that push the same number of examples
through ONE model of the same size, with in-place updates; nothing that trains separate models can be
expected to beat it. Every form fetches its batches from the same shared data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from shoal.core import Draws
from shoal.tasks.models import Batches, models

from .memory import peak_memory
from .timing import interleave, threads

__all__ = ["LIMITS", "bench_step"]

LIMITS = {"mlp": 1.6, "cnn": 1.6, "memory": 3.0}
"""The largest accepted ratios: step time to the floor, memory (less the data) to the parameters."""
_LR = 0.05


class _Net(nn.Module):
    """The same CNN as ``shoal.tasks.models.cnn`` in plain torch (pooling before ReLU: four times
    fewer ReLUs, the same function)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 5), nn.Conv2d(16, 32, 5)
        self.fc1, self.fc2 = nn.Linear(512, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = F.max_pool2d(self.conv1(x), 2).relu()
        h = F.max_pool2d(self.conv2(h), 2).relu()
        return self.fc2(self.fc1(h.flatten(1)).relu())


def _plain(kind: str) -> nn.Module:
    if kind == "cnn":
        return _Net()
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


def _manual_mlp(data: Tensor, targets: Tensor, pieces: list[Tensor]) -> Callable[[], None]:
    """One MLP, hand-written backward, weights updated in place by the products themselves."""
    net = _plain("mlp")
    w1, b1, w2, b2 = (p.detach() for p in net.parameters())
    less = torch.full((1, 1), -1.0)

    def run() -> None:
        for rows in pieces:
            x, y = data.index_select(0, rows), targets[rows]
            h = torch.addmm(b1, x, w1.t()).relu_()
            d = torch.softmax(torch.addmm(b2, h, w2.t()), -1)
            d.scatter_add_(1, y[:, None], less.expand(len(y), 1)).div_(len(y))
            below = torch.mm(d, w2)
            below = torch.ops.aten.threshold_backward(below, h, 0)
            w2.addmm_(d.t(), h, alpha=-_LR)
            b2.sub_(d.sum(0), alpha=_LR)
            w1.addmm_(below.t(), x, alpha=-_LR)
            b1.sub_(below.sum(0), alpha=_LR)

    return run


def _shared(kind: str, data: Tensor, targets: Tensor, pieces: list[Tensor]) -> Callable[[], None]:
    """One module, autograd, weights updated in place."""
    net = _plain(kind)
    parameters = list(net.parameters())

    def run() -> None:
        for rows in pieces:
            loss = F.cross_entropy(net(data.index_select(0, rows)), targets[rows])
            slopes = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                torch._foreach_add_(parameters, slopes, alpha=-_LR)

    return run


def _loop(kind: str, data: Tensor, targets: Tensor, index: Tensor) -> Callable[[], None]:
    """What one writes first: a module and an optimiser per peer."""
    nets = [_plain(kind) for _ in index]
    optimisers = [torch.optim.SGD(net.parameters(), lr=_LR) for net in nets]

    def run() -> None:
        for net, optimiser, mine in zip(nets, optimisers, index, strict=True):
            for rows in mine:
                optimiser.zero_grad()
                F.cross_entropy(net(data.index_select(0, rows)), targets[rows]).backward()
                optimiser.step()

    return run


def bench_step(
    kind: Literal["mlp", "cnn"] = "mlp",
    *,
    peers: int = 100,
    batch: int = 32,
    steps: int = 5,
    repeats: int = 7,
    thread_count: int = 1,
    memory_peers: int = 1000,
    console: Console | None = None,
) -> dict[str, Any]:
    """Time local SGD of an MLP 784-128-10 or a LeNet-like CNN on 28 x 28 inputs.

    Args:
        steps: local steps of each peer.
        repeats: turns; every arm runs once a turn, medians are reported.
        thread_count: torch's threads.
        memory_peers: peers of the memory measurement (MLP only); 0 leaves it out.
        console: where the table goes; None prints nothing.

    Returns:
        Milliseconds of every arm, ``floor`` (the name of the best form), the ratios to it by wall and
        by CPU time, ``memory``, and ``holds``: every ratio is within :data:`LIMITS`.
    """
    shape = (784,) if kind == "mlp" else (1, 28, 28)
    data = torch.rand(8000, *shape, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(8000) % 10
    draws = Draws(0, "bench", torch.arange(peers))
    index = draws.integers(len(data), steps, batch)
    model = models(kind).build(shape, 10)
    x = model.init(draws.at("init"))
    batches = Batches(data, targets, index)

    whole = [index[:, step].flatten() for step in range(steps)]
    tiles = {"tile1": batch, "tile10": 10 * batch}
    forms: dict[str, Callable[[], object]] = {}
    if kind == "mlp":
        forms["whole"] = _manual_mlp(data, targets, whole)
        forms["tile10"] = _manual_mlp(data, targets, [t for rows in whole for t in rows.split(10 * batch)])
    else:
        for name, size in tiles.items():
            forms[name] = _shared(kind, data, targets, [t for rows in whole for t in rows.split(size)])
        forms["loop"] = _loop(kind, data, targets, index)
    arms = {"stacked": lambda: model.train_(x, batches, steps, _LR, batch=batch), **forms}
    arms.setdefault("loop", _loop(kind, data, targets, index))
    with threads(thread_count):
        times = interleave(arms, repeats)
    floor = times.best(*forms)
    result: dict[str, Any] = {
        "suite": "step", "model": kind, "peers": peers, "batch": batch, "steps": steps,
        "threads": thread_count, "repeats": repeats,
        "ms": {arm: 1e3 * times.median(arm) for arm in arms},
        "floor": floor,
        "ratio": {arm: times.ratio(arm, floor) for arm in arms},
        "ratio_cpu": {arm: times.ratio(arm, floor, cpu=True) for arm in arms},
    }  # fmt: skip
    holds = result["ratio"]["stacked"] <= LIMITS[kind]
    if kind == "mlp" and memory_peers:
        memory = peak_memory(kind, shape, 10, memory_peers, len(data), batch, steps)
        result["memory"] = {"peers": memory_peers, **memory}
        holds = holds and memory["ratio"] <= LIMITS["memory"]
    result["holds"] = bool(holds)
    if console is not None:
        _print(result, console)
    return result


def _print(result: dict[str, Any], console: Console) -> None:
    kind = result["model"]
    table = Table(
        title=f"{kind}: {result['peers']} peers, batch {result['batch']}, {result['steps']} steps, "
        f"{result['threads']} thread(s)"
    )
    for name in ("arm", "ms", "ratio (wall)", "ratio (CPU)"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for arm, ms in result["ms"].items():
        label = f"{arm} (floor)" if arm == result["floor"] else arm
        table.add_row(label, f"{ms:.1f}", f"{result['ratio'][arm]:.2f}", f"{result['ratio_cpu'][arm]:.2f}")
    console.print(table)
    limit = f"stacked {result['ratio']['stacked']:.2f} of at most {LIMITS[kind]}"
    if "memory" in result:
        memory = result["memory"]
        limit += (
            f"; {memory['peers']} peers take {memory['peak'] / 2**20:.0f} MiB, "
            f"{memory['ratio']:.2f} x parameters + data, of at most {LIMITS['memory']}"
        )
    console.print(f"{limit}: {'holds' if result['holds'] else 'does not hold'}")
