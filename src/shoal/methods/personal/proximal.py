"""The proximal hook: local steps on f_i(theta) + (lambda/2) |theta - anchor|^2."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from shoal.core import Differentiable

__all__ = ["descend"]


def descend(
    task: Differentiable,
    theta: Tensor,
    anchor: Tensor,
    tick: int,
    batches: Iterable[int],
    lr: float,
    lam: float,
    active: Tensor,
) -> Tensor:
    """theta <- theta - lr (grad f_i(theta; batch) + lam (theta - anchor)), once for each batch.

    Args:
        theta, anchor: [P, D].
        batches: number of the tick's batch that each step works on; the same number is the same batch.
        lam: 0 is plain SGD.
        active: bool [P]; the others' rows stay.

    Returns:
        [P, D], anew.
    """
    moves = active[:, None]
    for batch in batches:
        pull = task.grad(theta, tick, step=batch, active=active) + lam * (theta - anchor)
        theta = theta - lr * pull * moves
    return theta
