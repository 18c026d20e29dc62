"""Exponential graphs and the hypercube: exact averaging in log2 n ticks.

Source: Ying, Yuan, Chen, Hu, Pan, Yin, "Exponential graph is provably efficient for decentralized
deep training" (NeurIPS 2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from shoal.core import BadInput, Topology, topologies

from .base import Edges, equal_weights

__all__ = ["Exponential", "Hypercube", "OnePeerExponential"]


def hops(n: int) -> int:
    """tau = ceil(log2 n), the number of different hops 2^k < n."""
    return (n - 1).bit_length()


@topologies.register("exponential")
@dataclass(frozen=True)
class Exponential(Topology):
    """Peer i speaks to i + 2^k mod n, k < tau, with weight 1 / (tau + 1). Directed.

    Doubly stochastic, not symmetric. For even n, |lambda_2| = 1 - 2 / (1 + tau).
    """

    def edges(self, n: int, seed: int, tick: int) -> Edges:
        i, k = torch.arange(n), torch.arange(hops(n))
        dst = (i[None, :] + (1 << k)[:, None]) % n
        return i.repeat(len(k)), dst.flatten()

    def weights(self, n: int, src: Tensor, dst: Tensor) -> tuple[Tensor, Tensor]:
        return equal_weights(n, dst)


@topologies.register("one-peer-exponential")
@dataclass(frozen=True)
class OnePeerExponential(Topology):
    """At tick t peer i speaks to i + 2^(t mod tau) mod n, with weight 1/2. Directed.

    For n = 2^tau the product of tau consecutive mixing matrices is J exactly; for other n they
    average only in the limit.
    """

    static: ClassVar[bool] = False

    def edges(self, n: int, seed: int, tick: int) -> Edges:
        i = torch.arange(n)
        if n == 1:
            return i[:0], i[:0]
        return i, (i + (1 << tick % hops(n))) % n

    def weights(self, n: int, src: Tensor, dst: Tensor) -> tuple[Tensor, Tensor]:
        return equal_weights(n, dst)


@topologies.register("hypercube")
@dataclass(frozen=True)
class Hypercube(Topology):
    """At tick t peer i pairs with i xor 2^(t mod tau): J exactly after tau ticks, symmetric.

    Raises:
        BadInput: n is not a power of two.
    """

    static: ClassVar[bool] = False

    def edges(self, n: int, seed: int, tick: int) -> Edges:
        if n & (n - 1):
            raise BadInput("peers", n, "a power of two, for the exact averaging of a hypercube")
        i = torch.arange(n)
        return (i, i ^ (1 << tick % hops(n))) if n > 1 else (i[:0], i[:0])
