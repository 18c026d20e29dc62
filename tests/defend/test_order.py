"""The sorting network, and the median on it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.defend import order


@pytest.mark.parametrize("size", range(1, 13))
def test_the_network_sorts_every_pattern_of_zeros_and_ones(size):
    """The 0-1 principle: a network that sorts those sorts everything."""
    patterns = torch.tensor(list(itertools.product([0.0, 1.0], repeat=size)))
    out = order.ascending(patterns.T[None], torch.ones(1, size, dtype=torch.bool))[0].T
    assert torch.equal(out, patterns.sort(1).values)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 5), number=st.integers(1, 70))
def test_padding_goes_last_and_the_rest_ascends(seed, rows, number):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, number, 3, generator=generator)
    mask = torch.rand(rows, number, generator=generator) < 0.7
    before = values.clone()
    out = order.ascending(values, mask)
    assert torch.equal(values, before)
    middle = order.median(values, mask)
    for i in range(rows):
        kept = values[i, mask[i]]
        assert torch.equal(out[i, : len(kept)], kept.sort(0).values)
        assert bool(torch.isposinf(out[i, len(kept) :]).all())
        if len(kept):
            expected = torch.quantile(kept.double(), 0.5, dim=0)
            torch.testing.assert_close(middle[i].double(), expected, atol=1e-6, rtol=0)
        else:
            assert middle[i].tolist() == [math.inf] * 3


def test_many_messages_take_the_library_sort():
    values = torch.randn(2, order.WIDEST + 3, 2, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(values.shape[:2], dtype=torch.bool)
    assert torch.equal(order.ascending(values, mask), values.sort(1).values)


def test_the_median_of_two_large_values_does_not_overflow():
    values = torch.full((1, 2, 1), 3e38)
    assert order.median(values, torch.ones(1, 2, dtype=torch.bool)).tolist() == values[:, 0].tolist()
