"""Krum: the message that lies closest to most others."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.core import rules

from .base import Bounded, GramRule
from .gram import distances

__all__ = ["Krum", "scores"]


def scores(products: Tensor, mask: Tensor, f: Tensor) -> Tensor:
    """Krum's score of each message: the squared distances to its n - f - 2 nearest others, summed.

    Args:
        products: Gram matrices, float64 [P, M, M].
        mask: bool [P, M].
        f: int64 [P].

    Returns:
        float64 [P, M]; inf where masked out.
    """
    apart = distances(products).masked_fill(~(mask[:, :, None] & mask[:, None, :]), math.inf)
    torch.diagonal(apart, dim1=1, dim2=2).fill_(math.inf)
    near = torch.arange(mask.shape[1]) < (mask.sum(1) - f - 2)[:, None]
    total = torch.where(near[:, None], apart.sort(dim=2).values, 0.0).sum(2)
    return total.masked_fill(~mask, math.inf)


@rules.register("krum")
@dataclass(frozen=True)
class Krum(Bounded, GramRule):
    """The one message with the least sum of squared distances to its n - f - 2 nearest others.

    Needs n >= 2f + 3 messages, the own value among them. Of equal scores the own value wins, then the
    lowest sender.

    Source: Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine learning with adversaries: Byzantine
    tolerant gradient descent" (NeurIPS 2017), arXiv 1703.02757, section 4.
    """

    margin = 3

    def best(self, number: Tensor, f: Tensor) -> Tensor:
        """How many of ``number`` messages are averaged: int64 [P]."""
        return torch.ones_like(number)

    def weights(self, products: Tensor, mask: Tensor, weight: Tensor, received: Tensor) -> Tensor:
        f = self.count(self.f, received)
        score = scores(products, mask, f)
        rank = score.argsort(dim=1, stable=True).argsort(dim=1)
        best = self.best(mask.sum(1), f)[:, None]
        return ((rank < best) & mask).to(torch.float64) / best.clamp(min=1)
