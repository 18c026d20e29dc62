"""Counter-based randomness: Philox4x32-10 on tensors, vectorised over peers.

A draw is a pure function of (seed, purpose, peer, tick, position). A peer therefore draws the same
numbers wherever it runs, in whatever order, alone or in a batch; nothing has to be saved to resume.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

__all__ = ["Draws", "philox"]

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF


def _mulhilo(constant: int, x: Tensor) -> tuple[Tensor, Tensor]:
    # The product wraps modulo 2^64, so its bits are those of the unsigned product; the mask removes
    # the sign that the arithmetic shift copies in.
    product = x * constant
    return (product >> 32) & _LOW, product & _LOW


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Ten rounds of Philox4x32.

    Args:
        counter: four int64 tensors that broadcast together, each word in [0, 2^32).
        key: two words in [0, 2^32).

    Returns:
        Four int64 tensors of words in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        hi0, lo0 = _mulhilo(_M0, c0)
        hi1, lo1 = _mulhilo(_M1, c2)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return [c0, c1, c2, c3]


@cache
def _key(seed: int, purpose: str) -> tuple[int, int]:
    digest = hashlib.blake2b(f"{seed}\0{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


@dataclass(frozen=True)
class Draws:
    """The random numbers of some peers for one purpose at one tick.

    Every method returns a tensor whose leading axis is the peers: ``[P, *shape]``. The same call
    gives the same numbers again; two different draws need two purposes (see :meth:`at`).

    Args:
        seed: of the run.
        purpose: what they are for, in words; different purposes are independent streams.
        peers: int64 [P], the peers' numbers.
        tick: when, an int in [0, 2^31).
    """

    seed: int
    purpose: str
    peers: Tensor
    tick: int = 0

    def at(self, purpose: str) -> Draws:
        """An independent stream: the same peers and tick, a further purpose."""
        return replace(self, purpose=f"{self.purpose}/{purpose}")

    def words(self, count: int) -> Tensor:
        """Words in [0, 2^32): int64 [P, count]."""
        groups = (count + 3) // 4
        position = torch.arange(groups, device=self.peers.device)
        peer = self.peers[:, None]
        tick = torch.full_like(peer, self.tick)
        zero = torch.zeros_like(peer)
        out = philox((position[None, :], tick, peer & _LOW, zero), _key(self.seed, self.purpose))
        return torch.stack(out, dim=-1).reshape(len(self.peers), groups * 4)[:, :count]

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Uniform in [0, 1) on a grid of 2^-32 (2^-24 in float32)."""
        words = self.words(math.prod(shape)).reshape(len(self.peers), *shape)
        if dtype == torch.float32:
            return (words >> 8).to(dtype) * 2.0**-24
        return words.to(dtype) * 2.0**-32

    def normal(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Standard normal, by Box and Muller."""
        count = math.prod(shape)
        half = (count + 1) // 2
        u = (self.words(2 * half).to(dtype) + 0.5) * 2.0**-32
        radius = torch.sqrt(-2.0 * torch.log(u[:, :half].clamp(max=1 - 2.0**-24)))
        angle = (2.0 * math.pi) * u[:, half:]
        both = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
        return both[:, :count].reshape(len(self.peers), *shape)

    def integers(self, high: int | Tensor, *shape: int) -> Tensor:
        """Uniform integers in [0, high): int64. ``high`` is one bound or one per peer, [P].

        A bound of 0 gives 0. The bias of the multiply-shift is below high / 2^32.
        """
        words = self.words(math.prod(shape)).reshape(len(self.peers), *shape)
        if isinstance(high, Tensor):
            high = high.reshape(-1, *[1] * len(shape))
        return (words * high) >> 32

    def permutation(self, n: int) -> Tensor:
        """A random order of 0..n-1 for each peer: int64 [P, n]."""
        # Ties of the 32-bit words are broken by position: their chance is n^2 / 2^33.
        return torch.argsort(self.words(n), dim=1, stable=True)

    def choice(self, n: int, k: int) -> Tensor:
        """k different numbers from 0..n-1 for each peer, in random order: int64 [P, k]."""
        return self.permutation(n)[:, :k]

    def exponential(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Exponential with mean 1."""
        words = self.words(math.prod(shape)).reshape(len(self.peers), *shape)
        return -torch.log((words.to(dtype) + 0.5) * 2.0**-32)

    def generator(self) -> torch.Generator:
        """A torch generator seeded from this stream, for libraries that want one (one peer's worth).

        Slower and not vectorised: only for set-up work such as ``nn.Module`` initialisation.
        """
        first = self.words(2)[0]
        return torch.Generator().manual_seed(int((first[0] << 31) ^ first[1]))
