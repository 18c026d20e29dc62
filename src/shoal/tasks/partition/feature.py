"""Peers that see the same things differently."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from msgspec import Meta
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from shoal.core import BadInput, Draws

from .base import Partition, partitions

__all__ = ["FeatureSkew"]

_CHUNK = 2048


@partitions.register("feature")
@dataclass(frozen=True)
class FeatureSkew(Partition):
    """Feature distribution skew, rising from peer 0 (none) to peer n - 1 (full).

    Peer i has the level l = i / (n - 1); with ``groups`` g > 0 peers form g groups by i mod g, of the
    levels 0, 1/(g-1), ..., 1. What a row shows is a function of its number, its holder and the seed.

    - ``rotate``: images turned by l x strength x 90 degrees (bilinear, blank outside).
    - ``noise``: Gaussian noise of deviation l x strength x that of all features.
    - ``invert``: mirrored about the middle of the range of all features, at levels l > 1 - strength / 2
      (strength 1: half of the peers, 2: all but peer 0).
    - ``blur``: images smoothed by a Gaussian of deviation l x strength pixels.

    Source: the noise follows Li, Diao, Chen & He (ICDE 2022); rotation by groups Ghosh et al., "An
    Efficient Framework for Clustered Federated Learning" (NeurIPS 2020) (groups = 4, strength = 3:
    0, 90, 180, 270 degrees).

    Args:
        kind: what differs.
        strength: how much, see above.
        groups: number of groups of peers; 0: every peer for itself.
        over: who holds which rows.
    """

    kind: Literal["rotate", "noise", "invert", "blur"] = "rotate"
    strength: Annotated[float, Meta(gt=0)] = 1.0
    groups: Annotated[int, Meta(ge=0)] = 0
    over: Partition = partitions.field("iid")

    def check(self) -> None:
        if self.groups == 1:
            raise BadInput("groups", self.groups, "0, or 2 and more")
        if self.kind == "invert" and self.strength > 2:
            raise BadInput("strength", self.strength, "at most 2 for invert")

    def owner(self, y: Tensor, groups: Tensor | None, n: int, seed: int) -> Tensor:
        return self.over.owner(y, groups, n, seed)

    def level(self, n: int) -> Tensor:
        """l of each peer: float64 [n]."""
        peers = torch.arange(n, dtype=torch.float64)
        if self.groups:
            return peers % self.groups / (self.groups - 1)
        return peers / max(1, n - 1)

    def skew(self, x: Tensor, lists: list[Tensor], seed: int) -> Tensor:
        if self.kind in {"rotate", "blur"} and x.ndim != 4:
            raise BadInput("partition.kind", self.kind, f"noise or invert: {list(x.shape[1:])} is no image")
        x = self.over.skew(x, lists, seed)
        rows = torch.cat(lists)
        level = torch.repeat_interleave(self.level(len(lists)), torch.tensor([len(v) for v in lists]))
        out = x.clone()
        scale = float(x.std(correction=0))
        middle = float(x.amin() + x.amax())
        for some, part in zip(torch.split(rows, _CHUNK), torch.split(level, _CHUNK), strict=True):
            seen = x[some]
            each = (part * self.strength).reshape(-1, *[1] * (x.ndim - 1))
            if self.kind == "noise":
                noise = Draws(seed, "partition/noise", some).normal(*x.shape[1:], dtype=x.dtype)
                out[some] = seen + noise * (scale * each).to(x.dtype)
            elif self.kind == "invert":
                flip = (part > 1 - self.strength / 2).reshape(each.shape)
                out[some] = torch.where(flip, middle - seen, seen)
            elif self.kind == "rotate":
                out[some] = _rotate(seen, each.flatten() * (math.pi / 2))
            else:
                out[some] = _blur(seen, each.flatten())
        return out


def _rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Images [K, C, H, W] turned by ``angle`` [K] (radians); blank is each image's smallest value."""
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    turn = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    blank = x.amin((1, 2, 3), keepdim=True)
    grid = affine_grid(turn.to(x.dtype), list(x.shape), align_corners=False)
    return grid_sample(x - blank, grid, align_corners=False) + blank


def _blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Images [K, C, H, W] smoothed along both axes; at the edge the weights are renormalised."""

    def weights(side: int) -> Tensor:
        place = torch.arange(side, dtype=sigma.dtype)
        distance = (place[:, None] - place[None, :]).square()
        # A deviation of 0 is the identity: every other weight underflows to 0.
        w = torch.exp(-distance / (2 * sigma.clamp(min=1e-3)[:, None, None].square()))
        return (w / w.sum(2, keepdim=True)).to(x.dtype)[:, None]

    return weights(x.shape[2]) @ x @ weights(x.shape[3]).mT
