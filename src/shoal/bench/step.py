"""``step``: what stacking costs. Local SGD of many peers against the least that its arithmetic takes.

The floor is the best of several honest forms of plain torch that push the same number of examples
through ONE model of the same size, with in-place updates; nothing that trains separate models can be
expected to beat it. Every form fetches its batches from the same shared data. A tile is a part of the
batch that fits the cache; ``tile4`` is four peers' batches at a time. One grouped convolution over all
peers is left out: it is slower than the tiles (see ``Convolutional``) and cannot lower the floor.
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

__all__ = ["LIMITS", "bench_step", "suite"]

LIMITS = {"mlp": 1.6, "cnn": 1.6, "memory": 3.0}
"""The largest accepted ratios: step time to the floor, memory (less the data) to the parameters."""
_LR = 0.05
_aten: Any = torch.ops.aten


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
        out: Tensor = self.fc2(self.fc1(h.flatten(1)).relu())
        return out


def _plain(kind: str) -> nn.Module:
    if kind == "cnn":
        return _Net()
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


def _errors(logits: Tensor, targets: Tensor) -> Tensor:
    """The gradient of the mean cross-entropy by the logits."""
    d = torch.softmax(logits, -1)
    less = torch.full((1, 1), -1.0).expand(len(targets), 1)
    return d.scatter_add_(1, targets[:, None], less).div_(len(targets))


def _layer_(weight: Tensor, bias: Tensor, d: Tensor, below: Tensor) -> None:
    weight.addmm_(d.t(), below, alpha=-_LR)
    bias.sub_(d.sum(0), alpha=_LR)


def _one_mlp(data: Tensor, targets: Tensor, pieces: list[Tensor]) -> Callable[[], None]:
    """One MLP, hand-written backward, weights updated in place by the products themselves."""
    w1, b1, w2, b2 = (p.detach() for p in _plain("mlp").parameters())

    def run() -> None:
        for rows in pieces:
            x = data.index_select(0, rows)
            h = torch.addmm(b1, x, w1.t()).relu_()
            d = _errors(torch.addmm(b2, h, w2.t()), targets[rows])
            below = _aten.threshold_backward(torch.mm(d, w2), h, 0)
            _layer_(w2, b2, d, h)
            _layer_(w1, b1, below, x)

    return run


def _one_cnn(data: Tensor, targets: Tensor, pieces: list[Tensor]) -> Callable[[], None]:
    """One CNN, hand-written backward: a tenth faster than autograd in the same tiles."""
    k1, c1, k2, c2, w1, b1, w2, b2 = (p.detach() for p in _plain("cnn").parameters())

    def block(h: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wide = F.conv2d(h, weight, bias)
        pooled, where = _aten.max_pool2d_with_indices(wide, [2, 2])
        return wide, where, pooled.relu_()

    def back_(
        d: Tensor,
        h: Tensor,
        kept: tuple[Tensor, Tensor, Tensor],
        weight: Tensor,
        bias: Tensor,
        through: bool,
    ) -> Tensor:
        wide, where, pooled = kept
        d = _aten.threshold_backward(d, pooled, 0)
        d = _aten.max_pool2d_with_indices_backward(d, wide, [2, 2], [2, 2], [0, 0], [1, 1], False, where)
        below: Tensor
        below, slope, shift = _aten.convolution_backward(
            d, h, weight, [len(weight)], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [through, True, True]
        )
        weight.sub_(slope, alpha=_LR)
        bias.sub_(shift, alpha=_LR)
        return below

    def run() -> None:
        for rows in pieces:
            x = data.index_select(0, rows)
            first = block(x, k1, c1)
            second = block(first[2], k2, c2)
            flat = second[2].flatten(1)
            h = torch.addmm(b1, flat, w1.t()).relu_()
            d = _errors(torch.addmm(b2, h, w2.t()), targets[rows])
            below = _aten.threshold_backward(torch.mm(d, w2), h, 0)
            deeper = torch.mm(below, w1).view_as(second[2])
            _layer_(w2, b2, d, h)
            _layer_(w1, b1, below, flat)
            deeper = back_(deeper, first[2], second, k2, c2, True)
            back_(deeper, x, first, k1, c1, False)

    return run


def _loop(kind: str, data: Tensor, targets: Tensor, index: Tensor) -> Callable[[], None]:
    """What one writes first: a module and an optimiser per peer."""
    nets = [_plain(kind) for _ in index]
    optimisers = [torch.optim.SGD(net.parameters(), lr=_LR) for net in nets]

    def run() -> None:
        for net, optimiser, mine in zip(nets, optimisers, index, strict=True):
            for rows in mine:
                optimiser.zero_grad()
                loss = F.cross_entropy(net(data.index_select(0, rows)), targets[rows])
                loss.backward()
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
    one = _one_mlp if kind == "mlp" else _one_cnn
    forms: dict[str, Callable[[], object]] = {"loop": _loop(kind, data, targets, index)}
    if kind == "mlp":  # for the CNN the whole is far slower: its activations leave the cache
        forms["whole"] = one(data, targets, whole)
    for factor in (1, 4, 10):
        pieces = [tile for rows in whole for tile in torch.split(rows, factor * batch)]
        forms[f"tile{factor}"] = one(data, targets, pieces)
    arms = {"stacked": lambda: model.train_(x, batches, steps, _LR, batch=batch), **forms}
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


def suite(threads: int, console: Console | None) -> dict[str, Any]:
    """Local training of an MLP and of a CNN, and memory."""
    kinds: tuple[Literal["mlp", "cnn"], ...] = ("mlp", "cnn")
    found: dict[str, Any] = {k: bench_step(k, thread_count=threads, console=console) for k in kinds}
    return {**found, "holds": all(f["holds"] for f in found.values())}


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
