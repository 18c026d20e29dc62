"""What the peers minimise, each over its own batch: cross-entropy, or squared error without classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["logit_gradient", "mean_loss"]


def mean_loss(logits: Tensor, targets: Tensor, weights: Tensor | None, classes: int) -> Tensor:
    """The mean loss of each peer: [P].

    Args:
        logits: [P, B, C]; with ``classes`` = 0 the predictions [P, B, 1].
        targets: [P, B], int64 classes, or floats where ``classes`` = 0.
        weights: [P, B], non-negative, or None: the result is the weighted mean sum(w l) / sum(w),
            and 0 for a peer whose weights are all 0 (padding, an empty shard).
        classes: 0 for the mean of (prediction - target)^2, in which case there is no factor 1/2.
    """
    if classes:
        each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(
            targets.shape
        )
    else:
        each = (logits[..., 0] - targets.to(logits.dtype)).square()
    return each.mean(1) if weights is None else (each * _share(weights, each)).sum(1)


def logit_gradient(logits: Tensor, targets: Tensor, weights: Tensor | None, classes: int) -> Tensor:
    """The gradient of :func:`mean_loss` by the logits: a new tensor [P, B, C]."""
    if classes:
        d = torch.softmax(logits, -1)
        d.scatter_add_(2, targets[..., None], d.new_full((1, 1, 1), -1.0).expand(*targets.shape, 1))
    else:
        d = 2.0 * (logits - targets.to(logits.dtype)[..., None])
    return d.div_(logits.shape[1]) if weights is None else d.mul_(_share(weights, d)[..., None])


def _share(weights: Tensor, like: Tensor) -> Tensor:
    weights = weights.to(like.dtype)
    total = weights.sum(1, keepdim=True)
    return torch.where(total > 0, weights / total, 0.0)
