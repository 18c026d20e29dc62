"""System 121, FedZip end to end; the coding itself is tested with the wire."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from shoal.catalog.checks.fedzip import Inverted
from shoal.core import BadInput, Coder, Draws, Frames, Report, RunFailed, codecs
from shoal.experiment import run
from shoal.wire import huffman
from shoal.wire.fedzip import FedZip, decode_layer, encode_layer

COMMON: dict[str, Any] = {
    "task": {
        "name": "supervised",
        "data": "digits",
        "partition": "iid",
        "model": {"name": "mlp", "hidden": [8]},
        "limit": 200,
    },
    "peers": 4,
    "rounds": 3,
    "seed": 5,
}


def zipped(codec: Any, **network: Any) -> Report:
    return run("fedzip", **COMMON, network={"codec": codec, **network})


def up(report: Report) -> int:
    src, _, size = report.links
    return int(size[src < COMMON["peers"]].sum())


def test_everything_kept_in_enough_clusters_is_lossless() -> None:
    draws = Draws(1, "x", torch.arange(3))
    x = draws.integers(200, 400).to(torch.float32) * 0.01
    codec = FedZip(z=1.0, clusters=200)
    told, sound = codec.decode(codec.encode(x, draws, []), 400, torch.float32, draws, [])
    assert sound.all() and torch.equal(told, x)


def test_the_server_averages_what_it_decoded() -> None:
    task: Any = {**COMMON, "rounds": 1}
    report = run("fedzip", **task, network={"codec": "fedzip(z=0.05)"})
    start = run("fedzip", **task, network={"codec": []}, lr=1e-30)
    change = (report.output - start.output)[0]
    # Four updates of at most ceil(5 %) of each layer.
    most = sum(4 * -(-(c.stop - c.start) // 20) for _, c, _ in report.layers)
    assert 0 < int((change != 0).sum()) <= most


@pytest.mark.parametrize("encoding", ["shortest", "huffman", "position", "difference"])
def test_every_message_re_encodes_to_its_bytes(encoding: str) -> None:
    report = zipped([Inverted(z=0.1, encoding=encoding)])  # type: ignore[arg-type]
    assert up(report) == up(zipped(f"fedzip(z=0.1, encoding={encoding})"))


def test_a_decoder_that_does_not_invert_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def off(*layer: Any) -> Any:
        address, symbol, used = decode_layer(*layer)
        return address, symbol[::-1], used

    monkeypatch.setattr("shoal.catalog.checks.fedzip.decode_layer", off)
    with pytest.raises(RunFailed, match="same bytes"):
        zipped([Inverted(z=0.1)])


@pytest.mark.parametrize(
    ("address", "symbol"),
    [
        ([], []),
        ([3], [0]),
        (list(range(50)), [0] * 50),
        (list(range(50)), [i % 3 for i in range(50)]),
        ([0, 49], [2, 2]),
        (list(range(0, 50, 7)), [1, 0, 2, 1, 0, 2, 1, 0]),
    ],
)
@pytest.mark.parametrize("form", ["shortest", "huffman", "position", "difference"])
def test_edge_cases_are_lossless(address: list[int], symbol: list[int], form: Any) -> None:
    a, s = np.array(address, np.int64), np.array(symbol, np.int64)
    data = encode_layer(a, s, 50, 3, form)
    back = decode_layer(data, len(a), 50, 3)
    assert np.array_equal(back[0], a) and np.array_equal(back[1], s) and back[2] == len(data)


def test_dense_huffman_alone_stays_below_32() -> None:
    n, size = 25, 12_544  # 0.2 % of a layer
    address = np.sort(Draws(0, "a", torch.arange(1)).choice(size, n)[0].numpy())
    symbol = np.arange(n) % 3
    counts = np.array([size - n, *np.bincount(symbol)])
    p = counts / size
    entropy = float(-(p * np.log2(p)).sum())
    mean = huffman.size(counts, huffman.code_lengths(counts)) / size
    assert entropy <= mean < entropy + 1
    assert 30 < 4 * size / len(encode_layer(address, symbol, size, 3, "huffman")) < 32
    assert 4 * size / len(encode_layer(address, symbol, size, 3)) > 500


def test_error_feedback_is_off_by_default_and_sends_what_was_dropped() -> None:
    off, explicit = zipped("fedzip(z=0.02)"), zipped("fedzip(z=0.02)", error_feedback=False)
    assert torch.equal(off.output, explicit.output)
    assert not torch.equal(off.output, zipped("fedzip(z=0.02)", error_feedback=True).output)


def test_fewer_entries_take_fewer_bytes() -> None:
    sizes = [up(zipped(f"fedzip(z={z})")) for z in (0.5, 0.1, 0.02)]
    assert sizes == sorted(sizes, reverse=True)
    assert up(zipped([])) > 20 * sizes[-1]


@pytest.mark.parametrize(
    ("field", "name"),
    [("z=0.0", "z"), ("z=1.1", "z"), ("clusters=0", "clusters"), ("clusters=256", "clusters")],
)
def test_bad_fields(field: str, name: str) -> None:
    with pytest.raises(BadInput, match=name):
        zipped(f"fedzip({field})")


def test_damaged_and_nan_messages_are_dropped() -> None:
    codec = codecs("fedzip(z=0.1)")
    assert isinstance(codec, Coder)
    draws = Draws(0, "x", torch.arange(1))
    frames = codec.encode(draws.normal(100, dtype=torch.float32), draws, [])
    cut = Frames(frames.data[:, :-1], frames.length - 1)
    assert not codec.decode(cut, 100, torch.float32, draws, [])[1].any()
    # A huge address in the position form: beyond the layer.
    data = np.zeros(3, np.float32).tobytes() + encode_layer(
        np.arange(91, 101), np.zeros(10, int), 101, 3, "position"
    )
    row = torch.tensor(list(data), dtype=torch.uint8)[None]
    assert not codec.decode(Frames(row, torch.tensor([len(data)])), 100, torch.float32, draws, [])[1].any()
    report = zipped("fedzip(z=0.1)", attack="nan", hostile=(1,))
    assert report.final["refused_messages"] == 3
    assert torch.isfinite(report.output).all()
