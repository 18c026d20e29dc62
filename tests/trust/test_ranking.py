"""Bradley-Terry against its reference and its closed form; the capability test."""

from __future__ import annotations

import choix
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core import BadInput, Draws
from shoal.trust.ranking import bradley_terry, connected, passing, required_stake


def _wins(n: int, seed: int) -> torch.Tensor:
    wins = 1.0 + Draws(seed, "wins", torch.arange(n)).integers(6, n).to(torch.float64)
    return wins * (1 - torch.eye(n, dtype=torch.float64))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 7), st.integers(0, 1000))
def test_equals_choix(n: int, seed: int) -> None:
    wins = _wins(n, seed)
    data = [(i, j) for i in range(n) for j in range(n) for _ in range(int(wins[i, j]))]
    theirs = np.exp(choix.ilsr_pairwise(n, data, tol=1e-12))
    ours = bradley_terry(wins, iterations=5000, tolerance=1e-12).numpy()
    assert np.allclose(ours, theirs * n / theirs.sum(), rtol=1e-6)
    assert ours.sum() == pytest.approx(n)


def test_two_items_have_the_odds_of_their_wins() -> None:
    s = bradley_terry(torch.tensor([[0.0, 3.0], [1.0, 0.0]]))
    assert s.tolist() == pytest.approx([1.5, 0.5], abs=1e-5)


def test_weights_count_judges_and_uniform_ones_change_nothing() -> None:
    wins = torch.stack([_wins(5, seed) for seed in range(3)])
    plain = bradley_terry(wins.sum(0))
    assert torch.allclose(bradley_terry(wins, torch.full((3,), 0.7)), plain, atol=1e-9)
    one = bradley_terry(wins, torch.tensor([0.0, 1.0, 0.0]))
    assert torch.equal(one, bradley_terry(wins[1]))


def test_a_ranking_does_not_depend_on_its_batch() -> None:
    wins = torch.stack([_wins(5, seed) for seed in range(6)])
    both = bradley_terry(wins)
    for alone, together in zip(wins, both, strict=True):
        assert torch.equal(bradley_terry(alone), together)


def test_an_item_that_never_wins_has_no_strength() -> None:
    wins = torch.tensor([[0.0, 2.0, 2.0], [2.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    assert bradley_terry(wins).tolist() == pytest.approx([1.5, 1.5, 0.0])
    assert bradley_terry(torch.tensor([[0.0, 2.0], [0.0, 0.0]])).tolist() == [2.0, 0.0]


def test_bad_input() -> None:
    apart = torch.zeros(4, 4)
    apart[0, 1] = apart[2, 3] = 1.0
    assert not connected(apart)
    with pytest.raises(BadInput, match="connect"):
        bradley_terry(apart)
    with pytest.raises(BadInput, match="at least 0"):
        bradley_terry(-_wins(3, 0))
    with pytest.raises(BadInput, match="weights"):
        bradley_terry(_wins(3, 0)[None], torch.tensor([torch.nan]))


def test_a_path_of_comparisons_connects() -> None:
    for n in (1, 2, 5, 9):
        path = torch.diag(torch.ones(n - 1), 1)
        assert connected(path)


def test_passing_is_the_binomial_tail() -> None:
    assert passing(0.25, 2, 0.5) == pytest.approx(1 - 0.75**2)
    assert passing(0.3, 10, 0.0) == pytest.approx(1.0)
    draws = Draws(3, "exam", torch.arange(20_000)).uniform(10)
    share = ((draws < 0.25).sum(1) >= 6).double().mean()
    assert float(share) == pytest.approx(passing(0.25, 10, 0.6), abs=0.003)


def test_stake_grows_by_a_tenth_a_rank() -> None:
    assert required_stake(0, 1) == pytest.approx((5.0, 0.3))
    assert required_stake(2, 3)[0] == pytest.approx(5 * 1.21 * 3)
