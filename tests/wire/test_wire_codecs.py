"""Each codec's mathematics."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core import Draws, codecs
from shoal.wire.bits import bit_width, pack, pack_trits, packed_size, unpack, unpack_trits
from shoal.wire.chain import Chain
from shoal.wire.randk import subset
from shoal.wire.topk import largest

DIM = 96


def through(spec: str, x: torch.Tensor, seed: int = 0, layout: list | None = None) -> torch.Tensor:
    draws = Draws(seed, "codec", torch.arange(len(x)))
    _, decoded, ok = Chain(codecs.many(spec)).roundtrip(x, draws, layout or [])
    assert ok.all()
    return decoded


def normal(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return Draws(seed, "values", torch.arange(shape[0])).normal(*shape[1:], dtype=dtype)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 32), st.integers(0, 70), st.integers(0, 1000))
def test_packing_is_lossless_and_little_endian(width: int, count: int, seed: int) -> None:
    values = Draws(seed, "v", torch.arange(3)).words(count) & ((1 << width) - 1)
    data = pack(values, width)
    assert data.shape == (3, packed_size(count, width))
    assert torch.equal(unpack(data, count, width).to(torch.int64), values)
    for row, bytes_ in zip(values.tolist(), data.tolist(), strict=True):
        number = sum(v << (i * width) for i, v in enumerate(row))
        assert list(number.to_bytes(len(bytes_), "little")) == bytes_


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(0, 1000))
def test_trits(count: int, seed: int) -> None:
    values = Draws(seed, "v", torch.arange(3)).integers(3, count)
    data = pack_trits(values)
    assert data.shape == (3, -(-count // 5))
    back, valid = unpack_trits(data, count)
    assert valid.all() and torch.equal(back, values)
    data[1, 0] = 243
    assert unpack_trits(data, count)[1].tolist() == [True, False, True]


def test_bit_width() -> None:
    assert [bit_width(n) for n in (1, 2, 3, 4, 5, 256, 257)] == [0, 1, 2, 2, 3, 8, 9]


@pytest.mark.parametrize(("spec", "relative"), [("bf16", 2**-8), ("fp16", 2**-11), ("fp32", 2**-24)])
def test_casts_round_to_nearest(spec: str, relative: float) -> None:
    x = normal(4, 500)
    y = through(spec, x)
    bound = relative * x.abs() + (2**-25 if spec == "fp16" else 0)
    assert ((y - x).abs() <= bound * (1 + 1e-6)).all()
    assert torch.equal(through(spec, y), y)


def test_fp16_holds_values_beyond_its_range() -> None:
    assert through("fp16", torch.tensor([[1e6, -1e6, 3.0]])).tolist() == [[65504.0, -65504.0, 3.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [50, 9000])
@pytest.mark.parametrize("kind", ["normal", "ties", "zeros", "few", "clustered"])
def test_largest_against_a_stable_sort(kind: str, length: int, dtype: torch.dtype) -> None:
    x = normal(5, length).to(dtype)
    if kind == "ties":
        x = x.round()
    elif kind == "zeros":
        x = torch.zeros_like(x)
    elif kind == "few":
        x[:, 7:] = 0
    elif kind == "clustered":  # all large entries where a sample of every 31st sees none or all
        x[:, ::31] = 0
        x[2:, ::31] = 100
    for count in (1, 20, length // 2, length - 1, length):
        expected = torch.argsort(x.abs(), dim=1, descending=True, stable=True)[:, :count].sort(1).values
        assert torch.equal(largest(x, count), expected)


def test_topk_keeps_the_largest_and_contracts() -> None:
    x = normal(6, DIM)
    y = through("topk(k=10)", x)
    assert ((y != 0).sum(1) == 10).all()
    assert torch.equal(y[y != 0], x[y != 0])
    smallest = torch.where(y != 0, x.abs(), torch.inf).amin(1)
    assert (torch.where(y == 0, x.abs(), 0).amax(1) <= smallest).all()
    assert ((y - x).square().sum(1) <= (1 - 10 / DIM) * x.square().sum(1)).all()


def test_topk_per_layer_keeps_a_share_of_each() -> None:
    layout = [("a", slice(0, 80), (80,)), ("b", slice(80, 96), (16,))]
    x = normal(3, DIM)
    x[:, :80] *= 1000
    y = through("topk(fraction=0.25, per_layer=true)", x, layout=layout)
    assert ((y[:, :80] != 0).sum(1) == 20).all() and ((y[:, 80:] != 0).sum(1) == 4).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(0, 10_000), st.data())
def test_subsets_are_distinct_and_in_range(length: int, seed: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, length))
    index = subset(Draws(seed, "s", torch.arange(4)), length, count)
    assert index.shape == (4, count) and int(index.min()) >= 0 and int(index.max()) < length
    assert all(len(set(row)) == count for row in index.tolist())


def test_subsets_are_uniform() -> None:
    rows, length, count = 20_000, 11, 4
    index = subset(Draws(0, "s", torch.arange(rows)), length, count)
    hits = torch.zeros(rows, length).scatter_(1, index, 1.0)
    p = count / length
    assert ((hits.mean(0) - p).abs() < 5 * math.sqrt(p * (1 - p) / rows)).all()
    pair = count * (count - 1) / (length * (length - 1))
    joint = (hits.T @ hits / rows)[~torch.eye(length, dtype=torch.bool)]
    assert ((joint - pair).abs() < 6 * math.sqrt(pair * (1 - pair) / rows)).all()


UNBIASED = {
    "randk(fraction=0.25, scale=true)": lambda d: 3.0,
    "qsgd(levels=1)": lambda d: min(d, math.sqrt(d)),
    "qsgd(levels=4)": lambda d: min(d / 16, math.sqrt(d) / 4),
    "qsgd(levels=16, block=32)": lambda d: min(32 / 256, math.sqrt(32) / 16),
    "ternary": None,
    "int8(stochastic=true)": lambda d: d / (4 * 127**2),
    "int4(block=32, stochastic=true)": lambda d: d / (4 * 49),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spec", UNBIASED)
def test_unbiased_within_the_variance_bound(spec: str, dtype: torch.dtype) -> None:
    rows = 4000
    one = normal(1, DIM)[0].to(dtype)
    y = through(spec, one.expand(rows, DIM))
    error = (y - one).to(torch.float64)
    deviation = y.to(torch.float64).std(0)
    # Entries that are all but never rounded up show no deviation: allow for the few that are.
    rare = 10 * float(y.abs().max()) / rows
    assert (error.mean(0).abs() <= 5 * deviation / math.sqrt(rows) + rare).all()
    bound = UNBIASED[spec]
    second = float(error.square().sum(1).mean() / one.square().sum())
    # TernGrad: E|Q(x) - x|^2 = |x|_1 max|x| - |x|_2^2, exactly.
    limit = bound(DIM) if bound else float(one.abs().sum() * one.abs().max() / one.square().sum() - 1)
    assert second <= limit * 1.05
    if "randk" in spec or spec == "ternary":
        assert second >= limit * 0.95


def test_different_senders_and_ticks_round_differently() -> None:
    x = normal(1, DIM).expand(2, DIM)
    y = through("int4(stochastic=true)", x)
    assert not torch.equal(y[0], y[1])
    assert not torch.equal(y, through("int4(stochastic=true)", x, seed=1))
    assert torch.equal(y, through("int4(stochastic=true)", x))


@pytest.mark.parametrize(
    ("spec", "levels", "block"), [("int8(block=32)", 127, 32), ("int4(block=20)", 7, 20)]
)
def test_blockwise_error_is_half_a_step(spec: str, levels: int, block: int) -> None:
    x = normal(5, DIM) * torch.logspace(-3, 3, DIM, dtype=torch.float64)
    y = through(spec, x)
    for start in range(0, DIM, block):
        part = slice(start, start + block)
        step = x[:, part].abs().amax(1, keepdim=True) / levels
        assert ((y - x)[:, part].abs() <= step / 2 * (1 + 1e-5)).all()


@pytest.mark.parametrize("spec", ["int8", "int4", "qsgd", "ternary", "sign", "topk", "codebook", "fedzip"])
def test_zero_stays_zero(spec: str) -> None:
    for x in (torch.zeros(3, DIM), torch.full((3, DIM), 1e-42)):
        assert through(spec, x).abs().max() <= 1.1e-42


def test_sign_is_the_scaled_sign() -> None:
    x = normal(4, DIM)
    y = through("sign", x)
    expected = torch.sign(x) * x.abs().mean(1, keepdim=True)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=0)
    left = 1 - x.abs().sum(1).square() / (DIM * x.square().sum(1))
    torch.testing.assert_close((y - x).square().sum(1), left * x.square().sum(1), rtol=1e-5, atol=0)


def test_sign_per_layer() -> None:
    layout = [("a", slice(0, 90), (90,)), ("b", slice(90, 96), (6,))]
    x = normal(4, DIM)
    x[:, 90:] *= 100
    y = through("sign(per_layer=true)", x, layout=layout)
    for part in (slice(0, 90), slice(90, 96)):
        expected = torch.sign(x[:, part]) * x[:, part].abs().mean(1, keepdim=True)
        torch.testing.assert_close(y[:, part], expected, rtol=1e-6, atol=0)


def test_chained_stages_quantise_what_is_kept() -> None:
    x = normal(4, DIM)
    kept = through("topk(k=16)", x)
    for rounding in ("int8", "bf16"):
        y = through(f"topk(k=16)+{rounding}", x)
        assert torch.equal(y != 0, kept != 0)
        assert ((y - kept).abs() <= kept.abs().amax(1, keepdim=True) / 127).all()
    gathered = kept[kept != 0].view(4, 16)
    assert torch.equal(through("topk(k=16)+sign", x)[kept != 0], through("sign", gathered).flatten())
