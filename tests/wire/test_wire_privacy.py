"""The Gaussian mechanism and its accountant."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import norm

from shoal.core import BadInput, Draws
from shoal.wire.chain import Chain
from shoal.wire.privacy.accountant import epsilon, sigma_for
from shoal.wire.privacy.gaussian import Gaussian


def exact(sigma: float, delta: float) -> float:
    """Epsilon of one Gaussian release: Balle and Wang (2018), theorem 8."""

    def gap(e: float) -> float:
        a, b = 1 / (2 * sigma), e * sigma
        return norm.cdf(a - b) - math.exp(e) * norm.cdf(-a - b) - delta

    return brentq(gap, 0, 200)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_messages_are_clipped(dtype: torch.dtype) -> None:
    draws = Draws(0, "g", torch.arange(4))
    x = draws.normal(50, dtype=dtype)
    x[0] *= 1e-3
    y, side = Gaussian(clip=0.5, sigma=0.0).encode(x, draws, [])
    assert side == []
    assert torch.equal(y[0], x[0])
    torch.testing.assert_close(y[1:], 0.5 * x[1:] / x[1:].norm(dim=1, keepdim=True))
    assert (y.norm(dim=1) <= 0.5 * (1 + 1e-6)).all()


def test_noise_has_the_stated_variance_and_leaves_its_input() -> None:
    draws = Draws(0, "g", torch.arange(200))
    x = torch.zeros(200, 500, dtype=torch.float64)
    _, y, ok = Chain((Gaussian(clip=2.0, sigma=0.7),)).roundtrip(x, draws, [])
    assert ok.all() and not x.any()
    assert float(y.std()) == pytest.approx(1.4, rel=0.01)
    assert abs(float(y.mean())) < 5 * 1.4 / math.sqrt(100_000)
    assert abs(float(torch.corrcoef(y[:2])[0, 1])) < 0.25


@pytest.mark.parametrize("sigma", [0.7, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("releases", [1, 16, 100])
def test_epsilon_is_an_upper_bound_and_a_close_one(sigma: float, releases: int) -> None:
    delta = 1e-5
    # n releases at sigma are one at sigma / sqrt(n).
    truth = exact(sigma / math.sqrt(releases), delta)
    rho = releases / (2 * sigma**2)
    assert truth <= epsilon(sigma, releases, delta) <= rho + 2 * math.sqrt(rho * math.log(1 / delta)) + 1e-9
    assert epsilon(sigma, releases, delta) <= 1.12 * truth


def test_epsilon_composes_and_falls_with_sampling() -> None:
    assert epsilon(2.0, 4, 1e-6) == pytest.approx(epsilon(1.0, 1, 1e-6), rel=1e-6)
    assert epsilon(1.0, 0, 1e-5) == 0 and epsilon(0.0, 1, 1e-5) == math.inf
    known = epsilon(1.1, 14_063, 1e-5, sampling=256 / 60_000)
    assert 2.5 < known < 3.1  # MNIST with DP-SGD, 60 epochs: 3.0 in TensorFlow Privacy's tutorial
    assert epsilon(1.0, 10, 1e-5, sampling=0.1) < epsilon(1.0, 10, 1e-5) / 2


@pytest.mark.parametrize("target", [0.5, 3.0, 10.0])
def test_sigma_for_inverts_epsilon(target: float) -> None:
    sigma = sigma_for(target, 1e-5, 30)
    assert epsilon(sigma, 30, 1e-5) <= target < epsilon(0.999 * sigma, 30, 1e-5)
    assert sigma_for(target, 1e-5, 0) == 0


def test_bad_input() -> None:
    for call in (
        lambda: epsilon(-1.0, 1, 1e-5),
        lambda: epsilon(math.nan, 1, 1e-5),
        lambda: epsilon(1.0, -1, 1e-5),
        lambda: epsilon(1.0, 1, 0.0),
        lambda: epsilon(1.0, 1, 1e-5, sampling=0.0),
        lambda: sigma_for(0.0, 1e-5, 1),
        lambda: sigma_for(math.inf, 1e-5, 1),
    ):
        with pytest.raises(BadInput):
            call()
