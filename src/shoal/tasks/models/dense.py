"""Fully connected models with a hand-written, fused backward pass: softmax regression and MLPs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from msgspec import Meta
from torch import Tensor

from shoal.core import Draws

from .base import Model, Stacked, blend_, models
from .initial import Scheme, uniform_init

__all__ = ["MLP", "Dense", "Linear"]

Activation = Literal["relu", "tanh", "gelu"]
_aten: Any = torch.ops.aten

_FUNCTION: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "tanh": torch.tanh, "gelu": F.gelu}


def _activate(kind: str, pre: Tensor) -> tuple[Tensor, Tensor]:
    """The activation, and what its derivative is a function of; overwrites ``pre`` where it can."""
    if kind == "gelu":
        return F.gelu(pre), pre
    out = pre.relu_() if kind == "relu" else pre.tanh_()
    return out, out


def _derive_(kind: str, d: Tensor, kept: Tensor) -> Tensor:
    if kind == "relu":
        _aten.threshold_backward.grad_input(d, kept, 0, grad_input=d)
    elif kind == "tanh":
        _aten.tanh_backward.grad_input(d, kept, grad_input=d)
    else:
        _aten.gelu_backward.grad_input(d, kept, grad_input=d)
    return d


class Dense(Stacked):
    """Layers ``fc1``, ``fc2``, ...: affine, with an activation between them.

    The gradient of a weight is one batched product, added by ``baddbmm_`` to wherever it is wanted:
    to the parameters themselves for plain SGD, to the momentum buffer, or to a gradient.

    Args:
        feature_shape: of one example; flattened.
        hidden: widths of the hidden layers.
        scheme: initialisation, see :func:`.initial.uniform_init`.
    """

    def __init__(
        self,
        feature_shape: tuple[int, ...],
        hidden: tuple[int, ...],
        classes: int,
        activation: Activation,
        scheme: Scheme,
    ) -> None:
        widths = (math.prod(feature_shape), *hidden, classes or 1)
        self.depth, self.activation, self.scheme = len(widths) - 1, activation, scheme
        self.fans = {f"fc{i + 1}": (widths[i], widths[i + 1]) for i in range(self.depth)}
        parameters: list[tuple[str, tuple[int, ...]]] = []
        for name, (fan_in, fan_out) in self.fans.items():
            parameters += [(f"{name}.weight", (fan_out, fan_in)), (f"{name}.bias", (fan_out,))]
        super().__init__(parameters, feature_shape, classes, widths[0] + 2 * sum(widths[1:]))

    def init(self, draws: Draws, dtype: torch.dtype = torch.float32) -> Tensor:
        return uniform_init(self.layers, self.fans, self.scheme, draws, dtype)

    def functional(self, vector: Tensor, inputs: Tensor) -> Tensor:
        w, h = self.unflatten(vector), inputs.flatten(1)
        for i in range(1, self.depth + 1):
            h = F.linear(h, w[f"fc{i}.weight"], w[f"fc{i}.bias"])
            if i < self.depth:
                h = _FUNCTION[self.activation](h)
        return h

    def forward(self, x: Tensor, inputs: Tensor) -> tuple[Tensor, Any]:
        w = self.views(x)
        h = inputs.flatten(1).expand(len(x), -1, -1) if self._shared(inputs) else inputs.flatten(2)
        saved = [(h, h)]  # of each layer: its input, and what the activation before it kept
        for i in range(1, self.depth + 1):
            h = torch.baddbmm(w[f"fc{i}.bias"][:, None], h, w[f"fc{i}.weight"].mT)
            if i < self.depth:
                h, kept = _activate(self.activation, h)
                saved.append((h, kept))
        return h, saved

    def backward_(self, x: Tensor, saved: Any, d: Tensor, into: Tensor, alpha: float, beta: float) -> None:
        self.back_(x, saved, d, into, alpha, beta)

    def back_(
        self,
        x: Tensor,
        saved: Any,
        d: Tensor,
        into: Tensor,
        alpha: float,
        beta: float,
        through: bool = False,
    ) -> Tensor:
        """:meth:`backward_`; with ``through`` returns the gradient by the flattened inputs [p, B, I]."""
        w, out = self.views(x), self.views(into)
        for i in range(self.depth, 0, -1):
            weight, bias = f"fc{i}.weight", f"fc{i}.bias"
            h, kept = saved[i - 1]
            # Before the weight changes: ``into`` may be ``x``.
            below = torch.bmm(d, w[weight]) if i > 1 or through else d
            out[weight].baddbmm_(d.mT, h, beta=beta, alpha=alpha)
            blend_(out[bias], d.sum(1), alpha, beta)
            d = _derive_(self.activation, below, kept) if i > 1 else below
        return d


@models.register("mlp")
@dataclass(frozen=True)
class MLP(Model):
    """Multilayer perceptron on the flattened input.

    Args:
        hidden: widths of the hidden layers; none gives softmax regression.
        activation: between the layers; ``gelu`` is the exact one, by erf.
        init: see :func:`.initial.uniform_init`.
    """

    hidden: tuple[Annotated[int, Meta(ge=1)], ...] = (128,)
    activation: Activation = "relu"
    init: Scheme = "kaiming"

    def build(self, feature_shape: tuple[int, ...], classes: int) -> Dense:
        return Dense(feature_shape, self.hidden, classes, self.activation, self.init)


@models.register("linear")
@dataclass(frozen=True)
class Linear(Model):
    """Softmax regression (least squares where there are no classes) on the flattened input.

    Args:
        init: see :func:`.initial.uniform_init`.
    """

    init: Scheme = "kaiming"

    def build(self, feature_shape: tuple[int, ...], classes: int) -> Dense:
        return Dense(feature_shape, (), classes, "relu", self.init)
