"""023 Variance-corrected averaging: averaging uncorrelated models shrinks the weights; undo it.

Source: Tian, Ma, Wu, Hu, Wang, Ma, "Vanishing variance problem in fully decentralized
neural-network systems" (arXiv 2404.04616) and the authors' simulator. Deviation: epsilon is 1e-12
(the code's 1e-4 biases small tensors).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Context, Differentiable, Layout, Tick, methods, tree

from .descent import Descent, Models

__all__ = ["Buffered", "VarianceCorrected", "rescale_variance", "weight_variances"]


def _weights(layers: Layout) -> list[slice]:
    """Weight tensors only: biases and gains, having one axis, start at constants and are left alone."""
    return [columns for _, columns, shape in layers if len(shape) > 1]


def weight_variances(x: Tensor, layers: Layout) -> Tensor:
    """Variance of each weight tensor of each model [R, D]: [R, tensors]."""
    parts = [x[:, columns] for columns in _weights(layers)]
    found = [(part - part.mean(1, keepdim=True)).pow(2).mean(1) for part in parts]
    return torch.stack(found, 1) if found else x.new_zeros(len(x), 0)


def rescale_variance(x: Tensor, target: Tensor, layers: Layout, epsilon: float = 1e-12) -> Tensor:
    """Models [P, D] with each weight tensor's variance set to ``target`` [P, tensors], means kept.

    Constant and one-element tensors are left alone.

    Raises:
        BadInput: the shapes do not fit together.
    """
    weights = _weights(layers)
    if target.shape != (len(x), len(weights)):
        allowed = f"one variance for each of {len(x)} models and {len(weights)} weight tensors"
        raise BadInput("target", tuple(target.shape), allowed)
    if layers and layers[-1][1].stop != x.shape[1]:
        raise BadInput("x", tuple(x.shape), f"rows of {layers[-1][1].stop} parameters")
    x = x.clone()
    for number, columns in enumerate(weights):
        part = x[:, columns]
        mean = part.mean(1, keepdim=True)
        variance = (part - mean).pow(2).mean(1, keepdim=True)
        scale = torch.sqrt((target[:, number : number + 1] + epsilon) / (variance + epsilon))
        # Compared, not by the variance: rounding of the mean would give a constant tensor some.
        varies = (part != part[:, :1]).any(1, keepdim=True)
        x[:, columns] = torch.where(varies, mean + (part - mean) * scale, part)
    return x


@dataclass(frozen=True)
class Buffered(Models):
    """Models x [P, D] and what was received since the last average: the sum of the models ``total``
    [P, D], of their variances ``spread`` [P, tensors], and how many, ``held`` int64 [P]."""

    total: Tensor
    spread: Tensor
    held: Tensor


@methods.register("vc-gossip")
@dataclass(frozen=True)
class VarianceCorrected(Descent):
    """Local steps, an average that keeps ``c`` of the own model, and the variance put right.

    A receiver computes the variances itself: no scalars travel.

    Args:
        c: weight of the own model; the rest is shared equally by what was received.
        target: ``conservative``: c var(own) + (1-c) mean var(received); ``self``: var(own);
            ``others``: mean var(received); ``none``: plain averaging.
        buffer: b, a peer averages once it has received this many models since its last average. 1 is
            synchronous: whatever came in a tick is averaged in that tick.
        epsilon: guards the ratio of variances.
    """

    c: Annotated[float, Meta(ge=0, le=1)] = 0.5
    target: Literal["conservative", "self", "others", "none"] = "conservative"
    buffer: Annotated[int, Meta(ge=1)] = 1
    epsilon: Annotated[float, Meta(gt=0)] = 1e-12
    local_steps: Annotated[int, Meta(ge=1)] = 2
    same_start: bool = False

    recipe: ClassVar[dict[str, Any]] = {
        "task": {
            "name": "supervised",
            "data": "mnist14",
            "partition": "iid",
            "model": {"name": "mlp", "hidden": [32, 32], "init": "xavier"},
        },
        "network": {"graph": "random-regular(degree=4)"},
        "peers": 20,
        "rounds": 40,
    }

    def init(self, ctx: Context[Differentiable]) -> Buffered:
        x = ctx.task.init(self.same_start)
        spread = torch.zeros_like(weight_variances(x, ctx.task.layers))
        return Buffered(x, torch.zeros_like(x), spread, torch.zeros(len(x), dtype=torch.int64))

    def step(self, s: Buffered, tick: Tick, ctx: Context[Differentiable]) -> Buffered:
        layers = ctx.task.layers
        x = self.local(s.x, tick, ctx)
        inbox = ctx.net.gather(x, tick)
        received = weight_variances(inbox.rows, layers)[inbox.index] * inbox.mask[..., None]
        total = s.total + inbox.combine(inbox.mask.to(x.dtype))
        spread, held = s.spread + received.sum(1), s.held + inbox.mask.sum(1)
        full = held >= self.buffer
        mixed = torch.where(full[:, None], self.average(x, total, spread, held, layers), x)
        left = Buffered(mixed, torch.zeros_like(total), torch.zeros_like(spread), torch.zeros_like(held))
        return tree.where(full, left, Buffered(mixed, total, spread, held))

    def average(self, x: Tensor, total: Tensor, spread: Tensor, held: Tensor, layers: Layout) -> Tensor:
        """c x + (1 - c) mean of what was received, corrected: [P, D]."""
        number = held.clamp(min=1)[:, None]
        mixed = self.c * x + (1 - self.c) * total / number
        if self.target == "none":
            return mixed
        own, others = weight_variances(x, layers), spread / number
        target = {
            "conservative": self.c * own + (1 - self.c) * others,
            "self": own,
            "others": others,
        }[self.target]
        return rescale_variance(mixed, target, layers, self.epsilon)
