"""FedZip: top-k, a codebook and lossless coding, layer by layer.

Source: Malekijoo, Fadaeieslam, Malekijou, Homayounfar, Alizadeh-Shabdiz, Rawassizadeh, "FEDZIP: A
compression framework for communication-efficient federated learning" (arXiv 2102.01593).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import Draws, Frames, Layout, codecs
from shoal.core.wire import Coder

from . import huffman
from .bits import bit_width, byte_rows, join, packed_size
from .codebook import cluster
from .huffman import Truncated
from .topk import kept, largest, spans

__all__ = ["FedZip", "decode_layer", "encode_layer"]

Encoding = Literal["shortest", "huffman", "position", "difference"]
_FORMS: tuple[Encoding, ...] = ("huffman", "position", "difference")


def _bucket(gap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(bucket, bits that follow it) of gaps >= 0: two buckets for every power of two of gap + 1."""
    value = gap + 1
    exponent = np.frexp(value)[1].astype(np.int64) - 1
    extra = np.maximum(exponent - 1, 0)
    return 2 * exponent + np.where(exponent > 0, (value >> extra) & 1, 0), extra


def _gap(bucket: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Inverse of :func:`_bucket`, with the value of the bits that follow."""
    exponent = bucket >> 1
    top = np.where(exponent > 0, 2 + (bucket & 1), 1)
    return np.asarray((top << np.maximum(exponent - 1, 0)) + low - 1)


def encode_layer(
    address: np.ndarray, symbol: np.ndarray, size: int, symbols: int, form: Encoding = "shortest"
) -> bytes:
    """Where the kept entries of a layer are and what they are, without loss.

    Args:
        address: int64 [n], ascending, in [0, size).
        symbol: int64 [n], in [0, symbols).
        size: entries of the layer.
        symbols: size of the alphabet.
        form: ``huffman``: one code over all positions, symbol 0 for those not kept. ``position``:
            addresses and symbols in fixed widths. ``difference``: gaps between addresses, in Huffman
            coded buckets and the bits that tell apart what a bucket holds, and Huffman coded symbols.

    Returns:
        One byte for the form, then its bits.
    """
    n = len(address)
    gap = np.diff(address, prepend=-1) - 1
    bucket, extra = _bucket(gap)
    low = (gap + 1) & ((1 << extra) - 1)
    alphabet = int(_bucket(np.array([size - 1]))[0][0]) + 1
    of_symbol = np.bincount(symbol, minlength=symbols)
    of_place = np.concatenate([[size - n], of_symbol])
    of_gap = np.bincount(bucket, minlength=alphabet)
    place_code, symbol_code, gap_code = map(huffman.code_lengths, (of_place, of_symbol, of_gap))

    def dense() -> list[np.ndarray]:
        whole = np.zeros(size, np.int64)
        whole[address] = symbol + 1
        return [huffman.write_table(place_code), huffman.encode(whole, place_code)]

    def position() -> list[np.ndarray]:
        return [
            huffman.write(address, bit_width(size)),
            huffman.write(symbol, bit_width(symbols)),
        ]

    def difference() -> list[np.ndarray]:
        return [
            huffman.write_table(gap_code),
            huffman.encode(bucket, gap_code),
            huffman.write(low, extra),
            huffman.write_table(symbol_code),
            huffman.encode(symbol, symbol_code),
        ]

    writers: dict[Encoding, Callable[[], list[np.ndarray]]] = {
        "huffman": dense,
        "position": position,
        "difference": difference,
    }
    bits = {
        "huffman": 4 * (symbols + 1) + huffman.size(of_place, place_code),
        "position": n * (bit_width(size) + bit_width(symbols)),
        "difference": 4 * (alphabet + symbols)
        + huffman.size(of_gap, gap_code)
        + int(extra.sum())
        + huffman.size(of_symbol, symbol_code),
    }
    if n == 0:
        form = "position"  # nothing to code, and a table of no symbols is none
    elif form == "shortest":
        form = min(_FORMS, key=lambda name: bits[name])
    return bytes([_FORMS.index(form)]) + np.packbits(np.concatenate(writers[form]())).tobytes()


def decode_layer(data: bytes, n: int, size: int, symbols: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Inverse of :func:`encode_layer`: (address [n], symbol [n], bytes read).

    Raises:
        Truncated: the bytes are no encoding of n entries.
    """
    # No form is longer than this, so layers behind are not looked at.
    bits = np.unpackbits(np.frombuffer(data[1 : 1 + _longest(n, size, symbols)], np.uint8))
    form = data[0] if data else 255
    if form == 0:
        lengths, at = huffman.read_table(bits, 0, symbols + 1)
        whole, at = huffman.decode(bits, at, size, lengths)
        address = whole.nonzero()[0]
        symbol = whole[address] - 1
    elif form == 1:
        address, at = huffman.read(bits, 0, n, bit_width(size))
        symbol, at = huffman.read(bits, at, n, bit_width(symbols))
    elif form == 2:
        alphabet = int(_bucket(np.array([size - 1]))[0][0]) + 1
        lengths, at = huffman.read_table(bits, 0, alphabet)
        bucket, at = huffman.decode(bits, at, n, lengths)
        low, at = huffman.read(bits, at, n, np.maximum((bucket >> 1) - 1, 0))
        address = np.cumsum(_gap(bucket, low) + 1) - 1
        lengths, at = huffman.read_table(bits, at, symbols)
        symbol, at = huffman.decode(bits, at, n, lengths)
    else:
        raise Truncated("no such form")
    if len(address) != n or (n and (address[-1] >= size or bool((np.diff(address) <= 0).any()))):
        raise Truncated("addresses out of order or beyond the layer")
    if n and symbol.max() >= symbols:
        raise Truncated("no such symbol")
    used = -(-at // 8)
    if bits[at : 8 * used].any():
        raise Truncated("padding is not 0")
    return address, symbol, 1 + used


def _longest(n: int, size: int, symbols: int) -> int:
    """Bytes that no form exceeds: every code at its longest, 15 bits."""
    gap = 15 + bit_width(size)
    dense = 4 * (symbols + 1) + 15 * size
    return packed_size(max(dense, 4 * (64 + symbols) + n * (gap + 15)), 1)


@codecs.register("fedzip")
@dataclass(frozen=True)
class FedZip(Coder):
    """Keeps the largest entries of each layer, rounds them to the layer's k-means centroids, and codes
    positions and symbols in whichever way is shortest.

    A layer takes 4 min(k, kept) bytes of float32 centroids, one byte that names the form, and its
    bits; how many entries are kept follows from z and is not sent. The parts stand alone as ``topk``
    and ``codebook``; here the symbols are seen before they are packed.

    Deviations: gaps are coded in buckets (two per power of two) and not as symbols of their own, so
    that a table stays below 32 bytes at any size. Error feedback, which the paper has not, is the
    network's (``error_feedback``).

    A frame that no encoder writes (truncated, an address beyond the layer, a centroid that is no
    number, bits left over) is refused.

    Args:
        z: share of each layer that is kept (the paper: 0.6 to 0.001).
        clusters: centroids of a layer.
        encoding: one form for all layers, or the shortest for each.
    """

    z: Annotated[float, Meta(gt=0, le=1)] = 0.01
    clusters: Annotated[int, Meta(ge=1, le=255)] = 3
    encoding: Encoding = "shortest"
    incremental = True

    def _layers(self, length: int, layout: Layout) -> list[tuple[slice, int, int]]:
        """(columns, entries kept, centroids) of each layer that is not empty."""
        layers = [s for s in spans(length, layout) if s.stop > s.start]
        counts = [kept(self.z, s.stop - s.start) for s in layers]
        return [(s, n, min(self.clusters, n)) for s, n in zip(layers, counts, strict=True)]

    def encode(self, x: Tensor, draws: Draws, layout: Layout) -> Frames:
        rows: list[list[bytes]] = [[] for _ in range(len(x))]
        for i, (span, n, symbols) in enumerate(self._layers(x.shape[1], layout)):
            address = largest(x[:, span], n)
            centre, symbol = cluster(x[:, span].gather(1, address), symbols, draws.at(f"{i}"))
            size = span.stop - span.start
            parts = zip(rows, address.numpy(), symbol.numpy(), centre.numpy(), strict=True)
            for row, a, s, c in parts:
                row += [c.tobytes(), encode_layer(a, s, size, symbols, self.encoding)]
        return join([b"".join(row) for row in rows])

    def decode(
        self, frames: Frames, length: int, dtype: torch.dtype, draws: Draws, layout: Layout
    ) -> tuple[Tensor, Tensor]:
        out = np.zeros((len(frames.data), length), np.float32)
        ok = torch.ones(len(out), dtype=torch.bool)
        layers = self._layers(length, layout)
        for i, data in enumerate(byte_rows(frames)):
            try:
                self._decode(data, layers, out[i])
            except Truncated:
                ok[i] = False
        return torch.from_numpy(out).to(dtype), ok

    def _decode(self, data: bytes, layers: list[tuple[slice, int, int]], out: np.ndarray) -> None:
        at = 0
        for span, n, symbols in layers:
            centre = np.frombuffer(data[at : at + 4 * symbols].ljust(4 * symbols, b"\0"), np.float32)
            at += 4 * symbols
            address, symbol, used = decode_layer(data[at:], n, span.stop - span.start, symbols)
            at += used
            if not np.isfinite(centre).all():
                raise Truncated("a centroid is no number")
            out[span.start + address] = centre[symbol]
        if at != len(data):
            raise Truncated("bytes left over")

    def bound(self, length: int, layout: Layout) -> int:
        layers = self._layers(length, layout)
        return sum(4 * k + 1 + _longest(n, s.stop - s.start, k) for s, n, k in layers)
