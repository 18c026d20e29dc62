"""FedZip (system 121): Huffman codes, 1-D k-means, and the lossless layer coding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from shoal.core import Draws, codecs
from shoal.wire import huffman
from shoal.wire.bits import join
from shoal.wire.chain import Chain
from shoal.wire.codebook import cluster, lloyd, plus_plus
from shoal.wire.fedzip import FedZip, decode_layer, encode_layer
from shoal.wire.huffman import Truncated

LAYOUT = [("w", slice(0, 600), (30, 20)), ("b", slice(600, 630), (30,)), ("c", slice(630, 631), (1,))]
DIM = 631


def message(rows: int = 6, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, Draws]:
    draws = Draws(4, "zip", torch.arange(rows))
    return draws.at("x").normal(DIM).to(dtype), draws


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 2000), min_size=2, max_size=60).filter(lambda c: sum(map(bool, c)) > 1))
def test_huffman_is_between_the_entropy_and_one_bit_more(counts: list[int]) -> None:
    count = np.array(counts)
    lengths = huffman.code_lengths(count)
    p = count[count > 0] / count.sum()
    entropy = -(p * np.log2(p)).sum()
    mean = huffman.size(count, lengths) / count.sum()
    assert entropy - 1e-9 <= mean < entropy + 1
    assert (0.5 ** lengths[lengths > 0].astype(float)).sum() == 1
    assert ((lengths > 0) == (count > 0)).all()


def test_huffman_limits_its_lengths() -> None:
    fibonacci = [1, 1]
    while len(fibonacci) < 40:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    lengths = huffman.code_lengths(np.array(fibonacci))
    assert lengths.max() <= 15 and (0.5 ** lengths.astype(float)).sum() == 1


@settings(max_examples=80, deadline=None)
@given(
    st.integers(2, 256), st.integers(1, 500), st.floats(0.05, 1.0), st.integers(0, 30), st.integers(0, 99)
)
def test_huffman_streams_are_lossless(alphabet: int, n: int, skew: float, offset: int, seed: int) -> None:
    u = Draws(seed, "h", torch.arange(1)).uniform(n)[0].numpy()
    symbols = np.minimum((u ** (1 / skew) * alphabet).astype(np.int64), alphabet - 1)
    counts = np.bincount(symbols, minlength=alphabet)
    lengths = huffman.code_lengths(counts)
    bits = huffman.encode(symbols, lengths)
    assert len(bits) == huffman.size(counts, lengths)
    stream = np.concatenate([np.ones(offset, np.uint8), huffman.write_table(lengths), bits, [1, 0, 1]])
    table, at = huffman.read_table(stream, offset, alphabet)
    back, end = huffman.decode(stream, at, n, table)
    assert np.array_equal(back, symbols) and end == offset + 4 * alphabet + len(bits)
    if len(bits):
        with pytest.raises(Truncated):
            huffman.decode(stream[: end - 1], at, n, table)


def test_tables_that_are_no_code_are_refused() -> None:
    for lengths in ([1, 1, 1, 0], [2, 0, 0, 0], [1, 2, 0, 0], [0, 0, 0, 0]):
        with pytest.raises(Truncated):
            huffman.read_table(huffman.write_table(np.array(lengths)), 0, 4)


@pytest.mark.parametrize("k", [1, 2, 3, 8])
def test_lloyd_matches_sklearn_from_the_same_start(k: int) -> None:
    draws = Draws(0, "k", torch.arange(5))
    values = draws.normal(400)
    values[2] = values[2].abs().pow(3)
    ordered = values.sort(1).values
    seeds = plus_plus(ordered, k, draws.at("seed"))
    centre, edges = lloyd(ordered, seeds)
    for i in range(5):
        reference = KMeans(k, init=seeds[i].numpy()[:, None], n_init=1, tol=0, max_iter=300)
        reference.fit(ordered[i].numpy()[:, None])
        label = torch.searchsorted(edges[i, 1:-1].contiguous(), torch.arange(400), right=True)
        inertia = float((ordered[i] - centre[i, label]).square().sum())
        assert inertia == pytest.approx(reference.inertia_, rel=1e-9)
        np.testing.assert_allclose(centre[i], np.sort(reference.cluster_centers_[:, 0]), rtol=1e-9)


def test_seeds_are_different_values_while_there_are_any() -> None:
    draws = Draws(0, "k", torch.arange(50))
    values = draws.integers(4, 60).to(torch.float64).sort(1).values
    seeds = plus_plus(values, 6, draws.at("seed"))
    assert all(
        len(set(row)) == len(set(line)) for row, line in zip(seeds.tolist(), values.tolist(), strict=True)
    )


def test_enough_clusters_are_lossless() -> None:
    draws = Draws(0, "c", torch.arange(20))
    values = draws.integers(9, 300).to(torch.float32) * 1e-3 - 7e3
    centre, symbols = cluster(values, 9, draws.at("seed"))
    assert torch.equal(centre.gather(1, symbols), values)


@settings(max_examples=150, deadline=None)
@given(
    size=st.integers(1, 700),
    share=st.floats(0, 1),
    symbols=st.integers(1, 9),
    used=st.integers(1, 9),
    form=st.sampled_from(["shortest", "huffman", "position", "difference"]),
    bunched=st.booleans(),
    seed=st.integers(0, 99),
)
def test_layers_are_lossless_in_every_form(
    size: int, share: float, symbols: int, used: int, form: str, bunched: bool, seed: int
) -> None:
    draws = Draws(seed, "l", torch.arange(1))
    n = round(share * size)
    address = np.arange(size - n, size) if bunched else np.sort(draws.choice(size, n)[0].numpy())
    symbol = draws.at("s").integers(min(used, symbols), n)[0].numpy()
    data = encode_layer(address, symbol, size, symbols, form)
    a, s, end = decode_layer(data + b"\xff\xff", n, size, symbols)
    assert end == len(data)
    assert np.array_equal(a, address) and np.array_equal(s, symbol)
    assert encode_layer(a, s, size, symbols, form) == data
    if form == "shortest" and n:
        others = [
            encode_layer(address, symbol, size, symbols, f) for f in ("huffman", "position", "difference")
        ]
        assert len(data) == min(map(len, others))
    assert len(data) <= FedZip(z=1.0, clusters=symbols).bound(max(size, symbols), [])


def test_dense_huffman_never_passes_32() -> None:
    size = 4000
    address, symbol = np.array([7]), np.array([0])
    assert len(encode_layer(address, symbol, size, 3, "huffman")) >= size * 4 / 32
    assert len(encode_layer(address, symbol, size, 3)) < 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("encoding", ["shortest", "huffman", "position", "difference"])
def test_every_message_is_inverted(encoding: str, dtype: torch.dtype) -> None:
    codec = FedZip(z=0.1, encoding=encoding)
    x, draws = message(dtype=dtype)
    x[1] = 0
    x[2] = 1
    frames = codec.encode(x, draws, LAYOUT)
    decoded, ok = codec.decode(frames, DIM, dtype, draws, LAYOUT)
    assert ok.all()
    assert ((decoded != 0).sum(1)[3:] == 60 + 3 + 1).all()
    # What was decoded, encoded again layer by layer, gives the same bytes.
    for i in range(len(x)):
        data, at = bytes(frames.data[i, : frames.length[i]].tolist()), 0
        for span, n, k in codec._layers(DIM, LAYOUT):
            at += 4 * k
            size = span.stop - span.start
            address, symbol, used = decode_layer(data[at:], n, size, k)
            assert encode_layer(address, symbol, size, k, encoding) == data[at : at + used]
            at += used
        assert at == len(data)


def test_it_composes_topk_and_codebook() -> None:
    x, draws = message()
    _, zipped, _ = Chain((FedZip(z=0.1, clusters=60),)).roundtrip(x, draws, LAYOUT)
    _, kept, _ = Chain(codecs.many("topk(fraction=0.1, per_layer=true)")).roundtrip(x, draws, LAYOUT)
    assert torch.equal(zipped, kept)  # a centroid for each kept value


def test_all_kept_and_enough_clusters_is_lossless() -> None:
    draws = Draws(1, "x", torch.arange(4))
    x = draws.integers(5, DIM).to(torch.float32) - 1.7
    for layout in (LAYOUT, []):
        _, decoded, ok = Chain((FedZip(z=1.0, clusters=5),)).roundtrip(x, draws, layout)
        assert ok.all() and torch.equal(decoded, x)


def test_ratio_grows_as_less_is_kept() -> None:
    draws = Draws(2, "x", torch.arange(4))
    x = draws.normal(13_000, dtype=torch.float32)
    lengths = [FedZip(z=z).encode(x, draws, []).length for z in (0.5, 0.1, 0.01, 0.002)]
    ratios = [52_000 / float(length.to(torch.float64).mean()) for length in lengths]
    assert ratios == sorted(ratios)
    assert ratios[1] > 45 and ratios[2] > 180


def test_hostile_streams_are_refused() -> None:
    codec = FedZip(z=0.1, clusters=3)
    x, draws = message(1)

    def refused(data: bytes) -> bool:
        out, ok = codec.decode(join([data]), 200, torch.float32, draws, [])
        assert torch.isfinite(out).all()
        return not bool(ok)

    frames = codec.encode(x[:, :200], draws, [])
    good = bytes(frames.data[0, : frames.length[0]].tolist())
    centres, body = good[:12], good[12:]
    assert not refused(good)
    assert refused(good[:-1]) and refused(good + b"\0") and refused(b"") and refused(good[:12])
    assert refused(np.float32("nan").tobytes() + good[4:])
    assert refused(centres + b"\7" + body[1:])  # no such form

    def position(address: list[int], symbol: int) -> bytes:
        fields = [huffman.write(np.array(address), 8), huffman.write(np.full(20, symbol), 2)]
        return centres + b"\1" + np.packbits(np.concatenate(fields)).tobytes()

    fair = [9 * i for i in range(20)]
    assert not refused(position(fair, 0))
    assert refused(position(fair, 3))  # no such symbol
    assert refused(position([*fair[:-1], 200], 0))  # beyond the layer
    assert refused(position([*fair[:-1], fair[-2]], 0))  # twice the same
    assert refused(position(fair[::-1], 0))
    assert refused(centres + encode_layer(np.arange(19), np.zeros(19, np.int64), 200, 3, "huffman"))
