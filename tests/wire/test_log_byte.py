"""The log-byte codec: one byte, its error, its ends."""

from __future__ import annotations

import math

import torch

from shoal.core import Draws, codecs
from shoal.wire.chain import Chain


def through(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    draws = Draws(0, "codec", torch.arange(len(x)))
    frames, decoded, ok = Chain(codecs.many("log-byte")).roundtrip(x, draws, [])
    return decoded, ok, int(frames.length[0])


def test_error_and_size() -> None:
    size = torch.linspace(math.exp(-7), math.exp(7 / 8), 20_001, dtype=torch.float64)
    x = torch.stack([size, -size])
    decoded, ok, length = through(x)
    assert bool(ok.all()) and length == x.shape[1]
    assert float((decoded / x - 1).abs().max()) <= math.exp(1 / 32) - 1 + 1e-12
    assert torch.equal(decoded.sign(), x.sign())


def test_decoded_values_are_fixed_points_in_both_precisions() -> None:
    for dtype in (torch.float32, torch.float64):
        x = Draws(1, "x", torch.arange(4)).normal(500, dtype=dtype)
        once, _, _ = through(x)
        assert torch.equal(through(once)[0], once)


def test_every_byte_but_one_is_a_number() -> None:
    codec = codecs("log-byte")
    byte = torch.arange(256, dtype=torch.uint8)[None]
    value = codec.decode(torch.empty(1, 0), [byte], 256, Draws(0, "d", torch.arange(1)), [])[0]
    assert bool(torch.isfinite(value[:255]).all()) and bool(torch.isnan(value[255]))
    assert len(value[:255].unique()) == 255


def test_ends() -> None:
    x = torch.tensor([[0.0, 1e-30, 1e30, -1e30]], dtype=torch.float64)
    decoded, ok, _ = through(x)
    low, high = math.exp(-7), math.exp(-7 + 127 / 16)
    assert bool(ok.all())
    assert torch.allclose(decoded[0], torch.tensor([low, low, high, -high * math.exp(-1 / 16)]).double())


def test_not_finite_is_refused() -> None:
    x = torch.tensor([[1.0], [torch.nan], [torch.inf], [-torch.inf]])
    assert through(x)[1].tolist() == [True, False, False, False]
