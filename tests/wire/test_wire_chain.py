"""The pipeline: order, widths, batches, hostile frames."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core import BadInput, Draws, Frames, codecs
from shoal.wire import chain as chain_module
from shoal.wire.bits import byte_rows, join
from shoal.wire.chain import Chain

LAYOUT = [("w", slice(0, 96), (8, 12)), ("b", slice(96, 104), (8,)), ("v", slice(104, 131), (27,))]
DIM = 131

FIXED = [
    "none",
    "fp32",
    "bf16",
    "fp16",
    "topk(fraction=0.1)",
    "topk(k=7)",
    "topk(fraction=0.1, per_layer=true)",
    "topk(fraction=1.0)",
    "randk(fraction=0.1)",
    "randk(fraction=0.3, scale=true)",
    "int8",
    "int8(block=32, stochastic=true)",
    "int4(block=16)",
    "int4(stochastic=true)",
    "qsgd(levels=4)",
    "qsgd(levels=127, block=50)",
    "ternary",
    "ternary(block=20)",
    "sign",
    "sign(per_layer=true)",
    "codebook(clusters=5)",
    "codebook(clusters=3, per_layer=false)",
    "gaussian(clip=1.0, sigma=0.5)",
    "topk(fraction=0.2)+int8(block=8)",
    "topk(fraction=0.2)+bf16",
    "topk(fraction=0.2, per_layer=true)+codebook(clusters=4)",
    "randk(fraction=0.2)+sign",
    "gaussian+topk+fp16",
    "int8+checksum",
    "topk+checksum(kind='blake2b')",
    "checksum",
]
VARYING = [
    "fedzip(z=0.1)",
    "fedzip(z=0.2, encoding='huffman')",
    "fedzip(z=0.2, encoding='position')",
    "fedzip(z=0.2, encoding='difference')",
    "fedzip(z=1.0, clusters=7)",
    "gaussian+fedzip(z=0.1)+checksum",
    "topk(fraction=0.5, per_layer=true)+fedzip(z=0.5)",
    "int4+deflate",
    "deflate(level=9)+checksum",
    "topk+huffman",
    "qsgd(levels=1)+huffman+deflate+checksum",
]


def make(spec: str) -> Chain:
    return Chain(codecs.many(spec))


def message(
    rows: int = 4, dtype: torch.dtype = torch.float32, purpose: str = "x"
) -> tuple[torch.Tensor, Draws]:
    draws = Draws(3, purpose, torch.arange(rows) + 5, 2)
    return draws.at("value").normal(DIM).to(dtype), draws


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spec", FIXED)
def test_frames_have_exactly_the_stated_width(spec: str, dtype: torch.dtype) -> None:
    chain = make(spec)
    x, draws = message(dtype=dtype)
    frames, decoded, ok = chain.roundtrip(x, draws, LAYOUT)
    width = chain.width(DIM, dtype.itemsize, LAYOUT)
    assert frames.data.dtype == torch.uint8
    assert frames.data.shape == (4, width)
    assert frames.length.tolist() == [width] * 4
    assert ok.all() and decoded.dtype == dtype and decoded.shape == x.shape


@pytest.mark.parametrize("spec", VARYING)
def test_frames_of_varying_width(spec: str) -> None:
    chain = make(spec)
    x, draws = message()
    frames, decoded, ok = chain.roundtrip(x, draws, LAYOUT)
    assert chain.width(DIM, 4, LAYOUT) is None
    assert ok.all() and decoded.shape == x.shape
    assert int(frames.length.max()) == frames.data.shape[1]
    for row, length in zip(frames.data, frames.length.tolist(), strict=True):
        assert not row[length:].any()


@pytest.mark.parametrize(
    ("spec", "width"),
    [
        ("none", 524),
        ("fp16", 262),
        ("topk(k=7)", 7 * 4 + 7),  # 7 addresses of 8 bits
        ("topk(fraction=1.0)", 524),
        ("topk(k=10, per_layer=true)", 28 * 4 + 9 + 0 + 7),  # 10 x 7 bits, all 8, 10 x 5 bits
        ("randk(fraction=0.1)", 14 * 4),
        ("int8(block=32)", 131 + 5 * 4),
        ("int4(block=131)", 66 + 4),
        ("qsgd(levels=4)", 4 + 66),  # 4 bits
        ("qsgd(levels=1)", 4 + 33),  # 2 bits
        ("ternary", 4 + 27),
        ("sign", 4 + 17),
        ("sign(per_layer=true)", 12 + 17),
        ("codebook(clusters=3)", 36 + 24 + 2 + 7),
        ("topk(k=16)+int8(block=8)", 16 + 2 * 4 + 16),
        ("int8(block=32)+checksum", 131 + 5 * 4 + 4),
    ],
)
def test_widths_by_hand(spec: str, width: int) -> None:
    assert make(spec).width(DIM, 4, LAYOUT) == width


@pytest.mark.parametrize("spec", FIXED + VARYING)
def test_a_message_alone_equals_its_row_of_the_batch(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = make(spec)
    x, draws = message(5)
    frames, decoded, _ = chain.roundtrip(x, draws, LAYOUT)
    for i in range(5):
        own = Draws(draws.seed, draws.purpose, draws.peers[i : i + 1], draws.tick)
        one, value, ok = chain.roundtrip(x[i : i + 1], own, LAYOUT)
        n = int(one.length[0])
        assert ok.all() and n == int(frames.length[i])
        assert torch.equal(one.data[0, :n], frames.data[i, :n])
        assert torch.equal(value[0], decoded[i])
    monkeypatch.setattr(chain_module, "_CHUNK", 2 * DIM)
    chunked, value, _ = chain.roundtrip(x, draws, LAYOUT)
    assert torch.equal(chunked.data, frames.data) and torch.equal(value, decoded)


def test_no_links_share_memory() -> None:
    x, draws = message()
    frames, decoded, _ = Chain().roundtrip(x, draws, [])
    assert frames.data.data_ptr() == x.data_ptr() == decoded.data_ptr()
    assert Chain().width(DIM, 8, []) == 8 * DIM


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spec", FIXED + VARYING)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_not_finite_are_refused_and_leave_the_others(
    spec: str, wrong: float, dtype: torch.dtype
) -> None:
    chain = make(spec)
    x, draws = message(dtype=dtype)
    _, fair, _ = chain.roundtrip(x, draws, LAYOUT)
    x[1] = wrong
    _, decoded, ok = chain.roundtrip(x, draws, LAYOUT)
    assert ok.tolist() == [True, False, True, True]
    assert not decoded[1].any()
    assert torch.equal(decoded[[0, 2, 3]], fair[[0, 2, 3]])


@pytest.mark.parametrize("spec", ["none", "sign", "int8", "qsgd", "codebook", "fedzip", "topk", "gaussian"])
def test_a_single_entry_that_is_no_number_is_refused(spec: str) -> None:
    x, draws = message()
    x[2, 77] = torch.nan
    _, _, ok = make(spec).roundtrip(x, draws, [])
    assert ok.tolist() == [True, True, False, True]


def test_large_finite_values_pass() -> None:
    x = torch.full((2, 64), 3e38)
    _, decoded, ok = Chain().roundtrip(x, Draws(0, "x", torch.arange(2)), [])
    assert ok.all() and torch.equal(decoded, x)


def sound(chain: Chain, frames: Frames, draws: Draws, dtype: torch.dtype) -> None:
    """Decoding does not raise, and what it passes is finite."""
    decoded, ok = chain.decode(frames, DIM, dtype, draws, LAYOUT)
    assert decoded.shape == (len(frames.data), DIM) and decoded.dtype == dtype
    assert torch.isfinite(decoded).all()
    assert not decoded[~ok].any()


@pytest.mark.parametrize("spec", FIXED + VARYING)
def test_random_frames_never_raise(spec: str) -> None:
    chain = make(spec)
    x, draws = message(24)
    true = chain.encode(x, draws, LAYOUT)
    width = true.data.shape[1]
    for dtype in (torch.float32, torch.float64):
        for held in (0, 1, width // 2, width, width + 9):
            data = draws.at(f"{held}").integers(256, held).to(torch.uint8)
            for length in (held, width, 0, -3, held + 5):
                sound(chain, Frames(data, torch.full((24,), length)), draws, dtype)
    for value in (0, 1, 255):
        sound(chain, Frames(torch.full_like(true.data, value), true.length), draws, torch.float32)


@pytest.mark.parametrize("spec", FIXED + VARYING)
def test_mutated_frames_never_raise(spec: str) -> None:
    chain = make(spec)
    x, draws = message(40)
    true = chain.encode(x, draws, LAYOUT)
    for trial in range(4):
        at = draws.at(f"at{trial}").integers(true.length, 1 + trial)
        byte = draws.at(f"byte{trial}").integers(256, 1 + trial).to(torch.uint8)
        sound(chain, Frames(true.data.clone().scatter_(1, at, byte), true.length), draws, torch.float32)
    for cut in (1, 4):
        sound(chain, Frames(true.data, true.length - cut), draws, torch.float32)
        sound(chain, Frames(true.data[:, :-cut], true.length), draws, torch.float32)


@pytest.mark.parametrize(
    "spec", ["none", "topk", "int8+checksum", "fedzip", "int4+deflate", "sign+huffman"]
)
def test_a_wrong_length_is_refused(spec: str) -> None:
    chain = make(spec)
    x, draws = message()
    frames = chain.encode(x, draws, LAYOUT)
    for change in (-1, 1):
        longer = torch.nn.functional.pad(frames.data, (0, 1))
        decoded, ok = chain.decode(Frames(longer, frames.length + change), DIM, x.dtype, draws, LAYOUT)
        assert not ok.any() and not decoded.any()


@pytest.mark.parametrize(
    "spec", ["checksum", "checksum(kind='blake2b')", "fedzip+checksum", "deflate+checksum"]
)
def test_checksums_find_single_flipped_bits(spec: str) -> None:
    chain = make(spec)
    x, draws = message(64)
    frames = chain.encode(x, draws, LAYOUT)
    at = draws.at("bit").integers(frames.length, 1)
    flipped = frames.data.gather(1, at) ^ (1 << draws.at("which").integers(8, 1)).to(torch.uint8)
    _, ok = chain.decode(
        Frames(frames.data.clone().scatter_(1, at, flipped), frames.length), DIM, x.dtype, draws, LAYOUT
    )
    assert not ok.any()


@pytest.mark.parametrize("packer", ["deflate", "huffman", "checksum", "deflate+huffman+checksum"])
@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.binary(max_size=600), min_size=1, max_size=5))
def test_packers_are_lossless(packer: str, rows: list[bytes]) -> None:
    links = codecs.many(packer)
    frames = join(rows)
    width = frames.data.shape[1]
    bounds = [width]
    for link in links:
        frames = link.pack(frames)
        bounds.append(link.bound(bounds[-1]))
        assert int(frames.length.max()) <= bounds[-1]
    for link, bound in zip(reversed(links), reversed(bounds[:-1]), strict=True):
        frames, ok = link.unpack(frames, bound)
        assert ok.all()
    assert byte_rows(frames) == rows


def test_decompression_is_bounded() -> None:
    bomb = join([bytes(100_000)])
    for slug in ("deflate", "huffman"):
        packer = codecs(slug)
        packed = packer.pack(bomb)
        assert int(packed.length[0]) < 20_000
        out, ok = packer.unpack(packed, 99_999)
        assert not ok.any() and byte_rows(out) == [b""]
        out, ok = packer.unpack(packed, 100_000)
        assert ok.all() and byte_rows(out) == [bytes(100_000)]


@pytest.mark.parametrize(
    "spec",
    [
        "int8+topk",
        "bf16+int8",
        "checksum+topk",
        "fedzip+int8",
        "fedzip+fedzip",
        "sign+gaussian",
        "topk+gaussian",
        "deflate+fedzip",
    ],
)
def test_links_out_of_order_are_bad_input(spec: str) -> None:
    with pytest.raises(BadInput, match="codec"):
        make(spec)


def test_flags() -> None:
    assert make("topk").incremental and make("sign").incremental and make("fedzip").incremental
    assert not make("int8+checksum").incremental and not make("none").incremental
    assert make("gaussian+topk").noisy and not make("topk").noisy


@pytest.mark.parametrize(
    "spec",
    [
        "topk(fraction=0)",
        "topk(fraction=1.5)",
        "topk(k=0)",
        "randk(fraction=-1)",
        "int8(block=0)",
        "qsgd(levels=0)",
        "codebook(clusters=256)",
        "fedzip(z=0.0)",
        "fedzip(clusters=0)",
        "fedzip(encoding='zip')",
        "checksum(kind='md5')",
        "deflate(level=0)",
        "gaussian(clip=0)",
        "gaussian(sigma=-1)",
    ],
)
def test_bad_fields(spec: str) -> None:
    with pytest.raises(BadInput):
        codecs(spec)
