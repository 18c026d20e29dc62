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

from shoal.core import Context, Differentiable, Layout, Tick, methods

from .descent import Descent, Models

__all__ = ["VarianceCorrected", "rescale_variance", "weight_variances"]


def _weights(layers: Layout) -> list[slice]:
    """Weight tensors only: biases and gains, having one axis, start at constants and are left alone."""
    return [columns for _, columns, shape in layers if len(shape) > 1]


def weight_variances(x: Tensor, layers: Layout) -> Tensor:
    """Variance of each weight tensor of each model: [R, tensors]."""
    found = [x[:, columns].var(1, correction=0) for columns in _weights(layers)]
    return torch.stack(found, 1) if found else x.new_zeros(len(x), 0)


def rescale_variance(x: Tensor, target: Tensor, layers: Layout, epsilon: float = 1e-12) -> Tensor:
    """Models [P, D] with each weight tensor's variance set to ``target`` [P, tensors], means kept.

    Constant and one-element tensors are left alone.
    """
    x = x.clone()
    for number, columns in enumerate(_weights(layers)):
        part = x[:, columns]
        mean = part.mean(1, keepdim=True)
        variance = part.var(1, correction=0, keepdim=True)
        scale = torch.sqrt((target[:, number : number + 1] + epsilon) / (variance + epsilon))
        x[:, columns] = torch.where(variance > 0, mean + (part - mean) * scale, part)
    return x


@methods.register("vc-gossip")
@dataclass(frozen=True)
class VarianceCorrected(Descent):
    """Local steps, an average that keeps ``c`` of the own model, and the variance put right.

    Args:
        c: weight of the own model; the rest is shared equally by what was received.
        target: ``conservative``: c var(own) + (1-c) mean var(received); ``self``: var(own);
            ``others``: mean var(received); ``none``: plain averaging.
        epsilon: guards the ratio of variances.
    """

    c: Annotated[float, Meta(ge=0, le=1)] = 0.5
    target: Literal["conservative", "self", "others", "none"] = "conservative"
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

    def step(self, s: Models, tick: Tick, ctx: Context[Differentiable]) -> Models:
        x = self.local(s.x, tick, ctx)
        inbox = ctx.net.gather(x, tick)
        heard = inbox.mask.sum(1)
        c = torch.where(heard > 0, self.c, 1.0).to(x.dtype)
        share = ((1 - c) / heard.clamp(min=1))[:, None] * inbox.mask
        mixed = inbox.combine(share, c)
        if self.target == "none":
            return Models(mixed)
        layers = ctx.task.layers
        own, received = weight_variances(x, layers), weight_variances(inbox.rows, layers)
        mean = (received[inbox.index] * inbox.mask[..., None]).sum(1) / heard.clamp(min=1)[:, None]
        if self.target == "conservative":
            target = c[:, None] * own + (1 - c[:, None]) * mean
        else:
            target = own if self.target == "self" else torch.where(heard[:, None] > 0, mean, own)
        return Models(rescale_variance(mixed, target, layers, self.epsilon))
