"""Backdoors: a small pattern in the input that a poisoned model takes for the target class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Draws, Scene, attacks

from .base import Crafted

__all__ = ["Backdoor"]


@attacks.register("backdoor")
@dataclass(frozen=True)
class Backdoor(Crafted):
    """Hostile peers train on samples with a bright square in the last corner, labelled ``target``.

    Args:
        size: side of the square, in pixels.
        value: what its pixels are set to, in the units of the data.
        target: the class that it should mean.
        fraction: chance of each sample of a hostile peer's batch to be poisoned, in (0, 1].
        scale: factor on the hostile updates, base + scale * (x - base); n of them replaces the mean of
            n by the attacker's own model.

    Source: Gu, Dolan-Gavitt, Garg, "BadNets" (2017), arXiv 1708.06733 (pattern and poisoning);
    Bagdasaryan, Veit, Hua, Estrin, Shmatikov, "How to backdoor federated learning" (AISTATS 2020),
    arXiv 1807.00459 (scale).
    """

    size: Annotated[int, Meta(ge=1)] = 3
    value: float = 1.0
    target: Annotated[int, Meta(ge=0)] = 0
    fraction: Annotated[float, Meta(gt=0, le=1)] = 0.5
    scale: Annotated[float, Meta(gt=0)] = 1.0

    def pattern(self, shape: tuple[int, ...]) -> Tensor:
        """Where the trigger is, bool of the shape of one sample: [H, W], [C, H, W] or flat [F].

        A flat sample whose length is a square is read as an image; any other has the trigger in its
        last ``size``^2 features.

        Raises:
            BadInput: samples too small for the trigger, or of another number of axes.
        """
        mask = torch.zeros(shape, dtype=torch.bool)
        flat = len(shape) == 1
        side = math.isqrt(shape[0]) if flat else min(shape[-2:], default=0)
        image = mask.view(side, side) if flat and side * side == shape[0] else mask
        room = mask.numel() >= self.size**2 if image.ndim == 1 else side >= self.size
        if not 1 <= len(shape) <= 3 or not room:
            raise BadInput("size", self.size, f"a square that fits into samples of shape {list(shape)}")
        if image.ndim == 1:
            image[-(self.size**2) :] = True
        else:
            image[..., -self.size :, -self.size :] = True
        return mask

    def batch(
        self, x: Tensor, y: Tensor, hostile: Tensor, draws: Draws, classes: int
    ) -> tuple[Tensor, Tensor]:
        self._within(classes)
        poisoned = hostile[:, None] & (draws.at("backdoor").uniform(y.shape[1]) < self.fraction)
        where = poisoned.reshape(*poisoned.shape, *[1] * (x.ndim - 2)) & self.pattern(x.shape[2:])
        return x.masked_fill(where, self.value), y.masked_fill(poisoned, self.target)

    def probe(self, x: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor, int]:
        """The test samples of all other classes, with the trigger; success is to call them ``target``."""
        self._within(classes)
        other = y != self.target
        return x[other].masked_fill(self.pattern(x.shape[1:]), self.value), y[other], self.target

    def craft(self, own: Tensor, base: Tensor, scene: Scene, who: Tensor) -> Tensor | None:
        return None if self.scale == 1 else base + self.scale * (own - base)

    def _within(self, classes: int) -> None:
        if self.target >= classes:
            raise BadInput("target", self.target, f"a class below {classes}")
