"""Philox against its published vectors; draws by peer, purpose and tick."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.core import Draws, philox

# kat_vectors of Random123 (philox4x32, 10 rounds): counter, key, output.
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_known_answers(counter, key, expected):
    words = philox(tuple(torch.tensor(c) for c in counter), key)
    assert tuple(int(w) for w in words) == expected


def reference(counter, key):
    """The algorithm in Python integers."""
    low = 0xFFFFFFFF
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & low, (p0 >> 32) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    return c0, c1, c2, c3


WORD = st.integers(0, 2**32 - 1)


@given(st.tuples(WORD, WORD, WORD, WORD), st.tuples(WORD, WORD))
def test_equals_the_integer_algorithm(counter, key):
    words = philox(tuple(torch.tensor(c) for c in counter), key)
    assert tuple(int(w) for w in words) == reference(counter, key)


def test_a_peer_draws_the_same_alone_and_in_a_batch():
    batch = Draws(3, "x", torch.arange(10), 4)
    for peer in (0, 7):
        alone = Draws(3, "x", torch.tensor([peer]), 4)
        for draw in (
            lambda d: d.normal(5),
            lambda d: d.uniform(2, 3),
            lambda d: d.integers(9, 4),
            lambda d: d.permutation(6),
        ):
            assert torch.equal(draw(batch)[peer], draw(alone)[0])


@pytest.mark.parametrize("change", [{"seed": 4}, {"purpose": "y"}, {"tick": 5}])
def test_streams_differ(change):
    base = {"seed": 3, "purpose": "x", "tick": 4}
    one = Draws(peers=torch.arange(4), **base).words(8)
    two = Draws(peers=torch.arange(4), **{**base, **change}).words(8)
    assert not torch.equal(one, two) and (one == two).float().mean() < 0.01


def test_moments():
    d = Draws(0, "moments", torch.arange(200))
    n = d.normal(1000)
    assert abs(float(n.mean())) < 0.01 and abs(float(n.var()) - 1) < 0.02
    assert abs(float((n**4).mean()) - 3) < 0.1
    u = d.at("u").uniform(1000)
    assert float(u.min()) >= 0 and float(u.max()) < 1 and abs(float(u.mean()) - 0.5) < 0.01
    e = d.at("e").exponential(1000)
    assert abs(float(e.mean()) - 1) < 0.02 and float(e.min()) >= 0
    f = d.at("f").normal(1000, dtype=torch.float32)
    assert torch.isfinite(f).all() and abs(float(f.var()) - 1) < 0.02


def test_integers_and_permutations_are_uniform():
    d = Draws(1, "i", torch.arange(400))
    counts = torch.bincount(d.integers(7, 100).flatten(), minlength=7)
    assert float(((counts - 40000 / 7) ** 2 / (40000 / 7)).sum()) < 25  # chi^2, 6 degrees of freedom
    bounds = torch.tensor([0, 1, 5]).repeat(100)
    drawn = Draws(1, "j", torch.arange(300)).integers(bounds, 20)
    assert bool((drawn <= (bounds[:, None] - 1).clamp(min=0)).all()) and bool((drawn >= 0).all())
    order = d.permutation(5)
    assert bool((order.sort(1).values == torch.arange(5)).all())
    first = torch.bincount(order[:, 0], minlength=5)
    assert float(((first - 80) ** 2 / 80).sum()) < 20
    assert math.isclose(float(d.choice(6, 2).double().mean()), 2.5, abs_tol=0.2)
