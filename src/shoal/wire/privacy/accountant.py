"""What Gaussian releases have cost, by Renyi accounting (library dp-accounting)."""

from __future__ import annotations

import math

from shoal.core import BadInput, need

__all__ = ["epsilon", "sigma_for"]


def _check(releases: int, delta: float, sampling: float) -> None:
    if releases < 0:
        raise BadInput("releases", releases, "0 or more")
    if not 0 < delta < 1:
        raise BadInput("delta", delta, "above 0 and below 1")
    if not 0 < sampling <= 1:
        raise BadInput("sampling", sampling, "above 0, at most 1")


def epsilon(sigma: float, releases: int, delta: float, sampling: float = 1.0) -> float:
    """The epsilon of (epsilon, delta)-differential privacy after some Gaussian releases.

    Source: Mironov, "Renyi differential privacy" (CSF 2017); sampled: Mironov, Talwar, Zhang (2019).

    Args:
        sigma: noise multiplier (standard deviation over sensitivity); 0 gives infinity.
        releases: how many messages were sent.
        delta: in (0, 1).
        sampling: chance with which each release includes the data (Poisson sampling, unseen by the
            adversary).

    Raises:
        BadInput: an argument out of range.
        MissingExtra: dp-accounting is not installed.
    """
    _check(releases, delta, sampling)
    if not sigma >= 0:
        raise BadInput("sigma", sigma, "0 or more")
    if releases == 0:
        return 0.0
    if sigma == 0:
        return math.inf
    dp = need("dp_accounting", "privacy")
    rdp = need("dp_accounting.rdp", "privacy")
    event = dp.GaussianDpEvent(sigma)
    if sampling < 1:
        event = dp.PoissonSampledDpEvent(sampling, event)
    return float(rdp.RdpAccountant().compose(event, releases).get_epsilon(delta))


def sigma_for(target: float, delta: float, releases: int, sampling: float = 1.0) -> float:
    """The smallest noise multiplier (to 1e-4, relative) with which ``releases`` messages cost at most
    ``target`` = epsilon.

    Raises:
        BadInput: an argument out of range.
        MissingExtra: dp-accounting is not installed.
    """
    _check(releases, delta, sampling)
    if not 0 < target < math.inf:
        raise BadInput("epsilon", target, "above 0 and finite")
    if releases == 0:
        return 0.0
    low, high = 0.0, 1.0
    while epsilon(high, releases, delta, sampling) > target:
        low, high = high, 2 * high
        if high > 1e9:
            raise BadInput("epsilon", target, "an epsilon that can be reached at this delta")
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        if epsilon(middle, releases, delta, sampling) > target:
            low = middle
        else:
            high = middle
    return high
