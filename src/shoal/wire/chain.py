"""The wire pipeline: messages [M, D] to frames of bytes and back.

A frame is the side bytes of all stages in their order, then the floats that are left (raw, or
through a coder); packers transform it whole. Rows are worked on in chunks that fit the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from shoal.core import BadInput, Draws, Frames, Layout, Link, Packer, Stage
from shoal.core.wire import Coder

from .bits import floats

__all__ = ["Chain"]

_CHUNK = 1 << 19
"""Floats worked on at a time."""


@dataclass(frozen=True)
class _Step:
    """A stage in its place: what it is given and what it leaves."""

    stage: Stage
    length: int
    layout: Layout
    widths: list[int]


@dataclass(frozen=True)
class _Plan:
    """All steps of a chain for one kind of message; ``left`` floats remain, with ``layout``."""

    steps: list[_Step]
    left: int
    layout: Layout

    @property
    def side(self) -> int:
        """Bytes before the floats."""
        return sum(sum(step.widths) for step in self.steps)


def _finite(x: Tensor) -> Tensor:
    """Bool [M]: rows of finite numbers only. One pass: a sum is finite only if its terms are."""
    good = torch.isfinite(x.sum(1))
    if not bool(good.all()):
        doubtful = ~good  # not finite, or finite and overflowing
        good[doubtful] = torch.isfinite(x[doubtful]).all(1)
    return good


@dataclass(frozen=True)
class Chain:
    """A sequence of links as one codec.

    Args:
        links: stages, then at most one coder, then packers. Empty: the raw floats.

    Raises:
        BadInput: a link stands where it cannot.
    """

    links: tuple[Link, ...] = ()

    def __post_init__(self) -> None:
        full: Link | None = None  # the link that left no floats
        side: Stage | None = None  # the first stage that emits bytes
        packer: Packer | None = None
        for link in self.links:
            if isinstance(link, Packer):
                packer = packer or link
                continue
            if packer is not None:
                raise self._bad(link, f"a packer ({packer.slug}) works on bytes: put it last")
            if full is not None:
                raise self._bad(link, f"{full.slug} leaves no floats: nothing but packers can follow it")
            if link.noisy and side is not None:
                raise self._bad(link, f"{side.slug} sends what is not yet private: put it behind")
            if isinstance(link, Coder):
                full = link
            elif isinstance(link, Stage):
                full = link if link.final else None
                side = side or (link if any(link.sizes(64, 4, [])[1]) else None)
            else:
                raise self._bad(link, "a stage, coder or packer")

    def _bad(self, link: Link, why: str) -> BadInput:
        names = "+".join(getattr(each, "slug", "") or type(each).__name__ for each in self.links)
        return BadInput("codec", names, f"{getattr(link, 'slug', '') or type(link).__name__}: {why}")

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        return tuple(link for link in self.links if isinstance(link, Stage))

    @cached_property
    def coder(self) -> Coder | None:
        return next((link for link in self.links if isinstance(link, Coder)), None)

    @cached_property
    def packers(self) -> tuple[Packer, ...]:
        return tuple(link for link in self.links if isinstance(link, Packer))

    @property
    def incremental(self) -> bool:
        """Whether it wants differences instead of whole values."""
        return any(link.incremental for link in self.links)

    @property
    def noisy(self) -> bool:
        """Whether what it sends is a private release that has to be accounted for."""
        return any(link.noisy for link in self.links)

    def width(self, dim: int, itemsize: int, layout: Layout) -> int | None:
        """Bytes of every frame of ``dim`` floats of ``itemsize`` bytes; None where they differ."""
        if self.coder is not None or not all(packer.fixed for packer in self.packers):
            return None
        return self.most(dim, itemsize, layout)

    def most(self, dim: int, itemsize: int, layout: Layout) -> int:
        """The most bytes that a frame of ``dim`` floats of ``itemsize`` bytes can take."""
        return self._bounds(self._plan(dim, itemsize, layout), itemsize)[-1]

    def encode(self, x: Tensor, draws: Draws, layout: Layout) -> Frames:
        """Messages to bytes.

        Args:
            x: [M, D], float32 or float64. A row that is not finite becomes a frame that is refused
                (or, under a sparsifier, may lose those entries).
            draws: the senders' random numbers, leading axis M.
            layout: named slices of the D columns, or [].

        Returns:
            Frames. Without links they share the memory of ``x``.
        """
        x = x.detach().contiguous()
        plan = self._plan(x.shape[1], x.element_size(), layout)
        frames = self._encode_floats(x, draws, plan)
        for packer in self.packers:
            frames = packer.pack(frames)
        return frames

    def decode(
        self, frames: Frames, dim: int, dtype: torch.dtype, draws: Draws, layout: Layout
    ) -> tuple[Tensor, Tensor]:
        """Bytes to messages; hostile bytes never raise.

        Args:
            dim: D.
            dtype: of the messages.
            draws, layout: as in :meth:`encode`.

        Returns:
            ([M, D], ok bool [M]). Rows that are damaged, of the wrong length or not finite are not
            ok, and 0. Without links the memory of the frames is shared.
        """
        plan = self._plan(dim, dtype.itemsize, layout)
        ok = torch.ones(len(frames.data), dtype=torch.bool)
        bounds = self._bounds(plan, dtype.itemsize)
        for packer, bound in zip(reversed(self.packers), reversed(bounds[:-1]), strict=True):
            frames, sound = packer.unpack(frames, bound)
            ok &= sound
        side, held = plan.side, frames.data.shape[1]
        if self.coder is None:
            ok &= frames.length == bounds[0]
        else:
            ok &= (frames.length >= side) & (frames.length <= min(bounds[0], held))
        needed = bounds[0] if self.coder is None else side
        if held < needed or not bool(ok.any()):
            return torch.zeros(len(frames.data), dim, dtype=dtype), torch.zeros_like(ok)
        x, sound = self._decode_floats(frames, dim, dtype, draws, plan)
        ok &= sound & _finite(x)
        return (x if bool(ok.all()) else x.masked_fill(~ok[:, None], 0)), ok

    def roundtrip(self, x: Tensor, draws: Draws, layout: Layout) -> tuple[Frames, Tensor, Tensor]:
        """The frames of :meth:`encode` and what a receiver of them decodes: (frames, [M, D], ok [M])."""
        frames = self.encode(x, draws, layout)
        decoded, ok = self.decode(frames, x.shape[1], x.dtype, draws, layout)
        return frames, decoded, ok

    def _plan(self, dim: int, itemsize: int, layout: Layout) -> _Plan:
        length, steps = dim, []
        for stage in self.stages:
            left, widths = stage.sizes(length, itemsize, layout)
            steps.append(_Step(stage, length, layout, widths))
            length, layout = left, stage.after(length, layout)
        return _Plan(steps, length, layout)

    def _bounds(self, plan: _Plan, itemsize: int) -> list[int]:
        """The most bytes before the first packer, and behind each of them."""
        floats_size = plan.left * itemsize
        if self.coder is not None:
            floats_size = self.coder.bound(plan.left, plan.layout)
        sizes = [plan.side + floats_size]
        for packer in self.packers:
            sizes.append(packer.bound(sizes[-1]))
        return sizes

    def _chunks(self, rows: int, dim: int, draws: Draws) -> Iterator[tuple[slice, list[Draws]]]:
        """Slices of the rows, with the random numbers of each stage (and of the coder) for them."""
        step = max(1, _CHUNK // max(1, dim))
        for start in range(0, rows, step):
            at = slice(start, min(start + step, rows))
            local = replace(draws, peers=draws.peers[at])
            yield at, [local.at(f"{i}") for i in range(len(self.stages) + 1)]

    def _encode_floats(self, x: Tensor, draws: Draws, plan: _Plan) -> Frames:
        rows, side = len(x), plan.side
        if not self.stages and self.coder is None:
            data = x.view(torch.uint8)
            return Frames(data, torch.full((rows,), data.shape[1], dtype=torch.int64))
        raw = 0 if self.coder is not None else plan.left * x.element_size()
        data = torch.empty(rows, side + raw, dtype=torch.uint8)
        coded: list[Frames] = []
        for at, local in self._chunks(rows, x.shape[1], draws):
            value, offset = x[at], 0
            for step, own in zip(plan.steps, local, strict=False):
                value, parts = step.stage.encode(value, own, step.layout)
                for part in parts:
                    data[at, offset : offset + part.shape[1]] = part
                    offset += part.shape[1]
            if self.coder is not None:
                coded.append(self.coder.encode(value, local[-1], plan.layout))
            elif raw:
                data[at, side:] = value.contiguous().view(torch.uint8)
        if self.coder is None or not coded:
            return Frames(data, torch.full((rows,), data.shape[1], dtype=torch.int64))
        length = torch.cat([frames.length for frames in coded])
        out = torch.zeros(rows, side + int(length.max()), dtype=torch.uint8)
        out[:, :side] = data
        start = 0
        for frames in coded:
            stop = start + len(frames.data)
            out[start:stop, side : side + frames.data.shape[1]] = frames.data
            start = stop
        return Frames(out, length + side)

    def _decode_floats(
        self, frames: Frames, dim: int, dtype: torch.dtype, draws: Draws, plan: _Plan
    ) -> tuple[Tensor, Tensor]:
        rows, side = len(frames.data), plan.side
        ok = torch.ones(rows, dtype=torch.bool)
        raw = plan.left * dtype.itemsize
        if not self.stages and self.coder is None:
            return floats(frames.data[:, :raw], dtype), ok
        out = torch.empty(rows, dim, dtype=dtype)
        for at, local in self._chunks(rows, dim, draws):
            data = frames.data[at]
            if self.coder is not None:
                rest = Frames(data[:, side:], frames.length[at] - side)
                value, ok[at] = self.coder.decode(rest, plan.left, dtype, local[-1], plan.layout)
            else:
                value = floats(data[:, side : side + raw], dtype)
            end = side
            for i in reversed(range(len(plan.steps))):
                step, parts = plan.steps[i], []
                for width in reversed(step.widths):
                    parts.append(data[:, end - width : end])
                    end -= width
                value = step.stage.decode(value, parts[::-1], step.length, local[i], step.layout)
            out[at] = value
        return out, ok
