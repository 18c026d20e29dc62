"""Rankings from comparisons: the Bradley-Terry model, and what it takes to be let in to compare.

Sources: Bradley and Terry, "Rank analysis of incomplete block designs" (Biometrika 1952); Hunter, "MM
algorithms for generalized Bradley-Terry models" (Annals of Statistics 2004) for the iteration; the
stakes and the capability test are those of Fortytwo (arXiv 2510.24801).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from shoal.core import BadInput

__all__ = ["bradley_terry", "connected", "passing", "required_stake"]

JUDGE_SHARE = 0.06


def connected(wins: Tensor) -> Tensor:
    """Whether the comparisons tie all items together: wins [..., n, n] -> bool [...]."""
    n = wins.shape[-1]
    one = torch.eye(n, dtype=wins.dtype)
    reach = (((wins + wins.transpose(-1, -2)) != 0) | (one != 0)).to(wins.dtype)
    for _ in range(max(1, (n - 1).bit_length())):
        reach = (reach @ reach > 0).to(wins.dtype)
    return (reach > 0).flatten(-2).all(-1)


def bradley_terry(
    wins: Tensor, weights: Tensor | None = None, *, iterations: int = 1000, tolerance: float = 1e-6
) -> Tensor:
    """Strengths s with P(i beats j) = s_i / (s_i + s_j): the maximum of the weighted likelihood.

    Args:
        wins: [..., n, n], how often i beat j (halves for draws); with ``weights`` [..., k, n, n], by
            judge.
        weights: [..., k], what each judge's comparisons count; None: the wins as they are.
        iterations: at most so many of s_i <- sum_j W_ij / sum_j (W_ij + W_ji) / (s_i + s_j).
        tolerance: stop where no s changes by more. An item that never won gets 0; where some item
            never lost, the maximum lies at infinity and the iteration ends on the way.

    Returns:
        [..., n], at least 0, with sum n.

    Raises:
        BadInput: negative or non-finite wins or weights; comparisons that leave items apart, whose
            strengths would then have no common scale.
    """
    if weights is not None:
        if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
            raise BadInput("weights", weights.flatten().tolist(), "finite and at least 0")
        wins = torch.einsum("...k,...kij->...ij", weights.to(wins.dtype), wins)
    if not bool(torch.isfinite(wins).all()) or bool((wins < 0).any()):
        raise BadInput("wins", wins.flatten()[:8].tolist(), "finite and at least 0")
    n = wins.shape[-1]
    wins = wins * (1 - torch.eye(n, dtype=wins.dtype))
    if not bool(connected(wins).all()):
        raise BadInput("wins", n, "comparisons that connect all items")
    s = torch.ones(wins.shape[:-1], dtype=wins.dtype)
    if n == 1:
        return s
    won, met = wins.sum(-1), wins + wins.transpose(-1, -2)
    tiny = torch.finfo(wins.dtype).tiny
    going = torch.ones(s.shape[:-1], dtype=torch.bool)
    for _ in range(iterations):
        both = (s[..., :, None] + s[..., None, :]).clamp(min=tiny)
        after = won / (met / both).sum(-1).clamp(min=tiny)
        after = after * (n / after.sum(-1, keepdim=True).clamp(min=tiny))
        change = (after - s).abs().amax(-1)
        # Each ranking stops by itself, so that it does not depend on what else is in the batch.
        s = torch.where(going[..., None], after, s)
        going = going & (change > tolerance)
        if not bool(going.any()):
            break
    return s


def passing(p: float, tasks: int, mark: float) -> float:
    """The chance that a responder of accuracy p passes: P(Binomial(tasks, p) >= mark * tasks)."""
    least = math.ceil(mark * tasks - 1e-9)
    return sum(math.comb(tasks, k) * p**k * (1 - p) ** (tasks - k) for k in range(least, tasks + 1))


def required_stake(rank: int, answers: int) -> tuple[float, float]:
    """(stake to answer, stake to judge) of a node of that rank where ``answers`` are asked for:
    5 * 1.1^rank * answers, and 6 % of it."""
    answer = 5.0 * 1.1**rank * answers
    return answer, JUDGE_SHARE * answer
