"""Initialisation of affine and convolutional layers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from shoal.core import Draws, Layout

from .rows import slices

__all__ = ["Scheme", "uniform_init"]

Scheme = Literal["kaiming", "xavier", "zeros"]


def uniform_init(
    layers: Layout, fans: dict[str, tuple[int, int]], scheme: Scheme, draws: Draws, dtype: torch.dtype
) -> Tensor:
    """Per-layer initialisation of weights and biases.

    Args:
        fans: (fan in, fan out) by the layer's name (a parameter's, without ``.weight`` or ``.bias``).
        scheme: ``"kaiming"``: weights and biases uniform within 1 / sqrt(fan in), the default of
            torch's Linear and Conv2d; ``"xavier"`` (Glorot and Bengio 2010): weights uniform within
            sqrt(6 / (fan in + fan out)), biases 0; ``"zeros"``.

    Returns:
        [P, D], drawn in float64 and cast.
    """
    out = torch.zeros(len(draws.peers), layers[-1][1].stop, dtype=dtype)
    for name, columns, shape in layers:
        layer, _, kind = name.rpartition(".")
        fan_in, fan_out = fans[layer]
        if scheme == "zeros" or (scheme == "xavier" and kind == "bias"):
            continue
        bound = fan_in**-0.5 if scheme == "kaiming" else (6.0 / (fan_in + fan_out)) ** 0.5
        # The generator's working memory is about 100 bytes a number.
        for rows in slices(len(out), max(1, (1 << 20) // math.prod(shape))):
            u = replace(draws.at(name), peers=draws.peers[rows]).uniform(math.prod(shape))
            out[rows, columns] = ((2.0 * u - 1.0) * bound).to(dtype)
    return out
