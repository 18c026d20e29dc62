"""Convolutional network with a hand-written backward pass: one grouped convolution for a chunk of peers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Draws

from .base import Model, Stacked, blend_, models
from .dense import Dense
from .initial import Scheme, uniform_init

__all__ = ["CNN", "Convolutional"]

_aten: Any = torch.ops.aten


class Convolutional(Stacked):
    """Blocks ``conv1``, ``conv2``, ... of convolution, 2 x 2 max pooling and ReLU, then a dense head.

    A chunk of p peers is one convolution with p groups over the channels [B, p C, H, W]. Chunks are
    small (at 28 x 28 and batch 32 one peer), which measured best on CPUs: with all peers in one call
    the activations leave the cache.

    Args:
        image: channels, height, width.
        widths: channels after each block.
        pad: zeros put around the image before each convolution.
    """

    def __init__(
        self,
        feature_shape: tuple[int, ...],
        image: tuple[int, int, int],
        widths: tuple[int, ...],
        kernel: int,
        pad: int,
        hidden: int,
        classes: int,
        scheme: Scheme,
    ) -> None:
        self.image, self.blocks, self.pad, self.scheme = image, len(widths), pad, scheme
        channels, height, width = image
        parameters: list[tuple[str, tuple[int, ...]]] = []
        self.fans: dict[str, tuple[int, int]] = {}
        floats = math.prod(image)
        for i, out in enumerate(widths):
            height, width = height + 2 * pad - kernel + 1, width + 2 * pad - kernel + 1
            floats += 3 * out * height * width
            height, width = height // 2, width // 2
            if min(height, width) < 1:
                raise BadInput(
                    "model.kernel", kernel, f"nothing of {image[1:]} is left after block {i + 1}"
                )
            parameters += [(f"conv{i + 1}.weight", (out, channels, kernel, kernel))]
            parameters += [(f"conv{i + 1}.bias", (out,))]
            self.fans[f"conv{i + 1}"] = (channels * kernel**2, out * kernel**2)
            channels = out
        self.head = Dense((channels, height, width), (hidden,) if hidden else (), classes, "relu", scheme)
        self.fans |= self.head.fans
        parameters += [(name, shape) for name, _, shape in self.head.layers]
        super().__init__(parameters, feature_shape, classes, floats + self.head.activations)

    def init(self, draws: Draws, dtype: torch.dtype = torch.float32) -> Tensor:
        return uniform_init(self.layers, self.fans, self.scheme, draws, dtype)

    def functional(self, vector: Tensor, inputs: Tensor) -> Tensor:
        w, h = self.unflatten(vector), inputs.reshape(-1, *self.image)
        for i in range(1, self.blocks + 1):
            h = F.conv2d(h, w[f"conv{i}.weight"], w[f"conv{i}.bias"], padding=self.pad)
            h = F.max_pool2d(h, 2).relu()
        return self.head.functional(self._tail(vector), h)

    def forward(self, x: Tensor, inputs: Tensor) -> tuple[Tensor, Any]:
        w, peers, shared = self.views(x), len(x), self._shared(inputs)
        if shared:  # one group: each peer's filters see the same image
            h = inputs.reshape(-1, *self.image)
        else:
            batch = inputs.shape[1]
            h = (
                inputs.reshape(peers, batch, *self.image)
                .transpose(0, 1)
                .reshape(batch, -1, *self.image[1:])
            )
        saved = []
        for i in range(1, self.blocks + 1):
            groups = 1 if shared and i == 1 else peers
            weight = w[f"conv{i}.weight"].flatten(0, 1)
            wide = F.conv2d(h, weight, w[f"conv{i}.bias"].flatten(), padding=self.pad, groups=groups)
            pooled, where = _aten.max_pool2d_with_indices(wide, [2, 2])
            saved.append((h, wide, where, pooled.relu_(), groups))
            h = pooled
        flat = h.view(len(h), peers, *self.head.feature_shape).transpose(0, 1)
        z, kept = self.head.forward(self._tail(x), flat)
        return z, (saved, kept)

    def backward_(self, x: Tensor, saved: Any, d: Tensor, into: Tensor, alpha: float, beta: float) -> None:
        blocks, kept = saved
        w, out = self.views(x), self.views(into)
        d = self.head.back_(self._tail(x), kept, d, self._tail(into), alpha, beta, through=True)
        d = d.transpose(0, 1).reshape(blocks[-1][3].shape)
        for i in range(self.blocks, 0, -1):
            h, wide, where, pooled, groups = blocks[i - 1]
            d = _aten.threshold_backward.grad_input(d, pooled, 0, grad_input=d)
            d = _aten.max_pool2d_with_indices_backward(
                d, wide, [2, 2], [2, 2], [0, 0], [1, 1], False, where
            )
            weight = w[f"conv{i}.weight"].flatten(0, 1)
            below, slope, shift = _aten.convolution_backward(
                d, h, weight, [len(weight)], [1, 1], [self.pad] * 2, [1, 1], False, [0, 0], groups,
                [i > 1, True, True],
            )  # fmt: skip
            for name, value in ((f"conv{i}.weight", slope), (f"conv{i}.bias", shift)):
                blend_(out[name], value.view(out[name].shape), alpha, beta)
            d = below

    def _tail(self, x: Tensor) -> Tensor:
        """The head's columns."""
        return x[..., self.dim - self.head.dim :]


@models.register("cnn")
@dataclass(frozen=True)
class CNN(Model):
    """Convolutions with 2 x 2 max pooling, then one hidden layer: LeNet-like.

    Args:
        channels: filters of each block.
        kernel: side of the filters; odd.
        hidden: width of the hidden layer; 0 for none.
        padding: ``"valid"`` convolves only where the filter fits, ``"same"`` keeps the size.
        init: see :func:`.initial.uniform_init`.
    """

    channels: tuple[Annotated[int, Meta(ge=1)], ...] = (16, 32)
    kernel: Annotated[int, Meta(ge=1)] = 5
    hidden: Annotated[int, Meta(ge=0)] = 64
    padding: Literal["valid", "same"] = "valid"
    init: Scheme = "kaiming"

    def check(self) -> None:
        if not self.channels:
            raise BadInput("channels", self.channels, "at least one block")
        if self.kernel % 2 == 0:
            raise BadInput("kernel", self.kernel, "an odd number")

    def build(self, feature_shape: tuple[int, ...], classes: int) -> Convolutional:
        """Images are [height, width] or [channels, height, width]."""
        if len(feature_shape) not in (2, 3):
            raise BadInput("model", "cnn", f"needs images [C, H, W] or [H, W], not {list(feature_shape)}")
        channels, height, width = (1, *feature_shape)[-3:]
        pad = self.kernel // 2 if self.padding == "same" else 0
        return Convolutional(
            feature_shape, (channels, height, width), self.channels, self.kernel, pad, self.hidden,
            classes, self.init,
        )  # fmt: skip
