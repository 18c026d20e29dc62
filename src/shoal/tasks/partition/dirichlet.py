"""Label skew by Dirichlet draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from msgspec import Meta
from scipy.special import gammaincinv, logsumexp
from torch import Tensor

from shoal.core import BadInput, Draws

from .base import Partition, deal, labels_of, partitions

__all__ = ["Dirichlet", "log_dirichlet"]

_TRIES = 200


def log_dirichlet(draws: Draws, alpha: float, k: int) -> np.ndarray:
    """Logarithms of symmetric Dirichlet draws, float64 [P, k]: exact also where alpha is tiny.

    A Gamma(alpha) variable is one of Gamma(alpha + 1), by the inverse of its distribution function,
    times U^(1/alpha) (Marsaglia & Tsang, TOMS 2000).
    """
    u = draws.uniform(2, k).numpy() + 2.0**-33
    log_gamma = np.log(gammaincinv(alpha + 1, u[:, 0])) + np.log(u[:, 1]) / alpha
    return np.asarray(log_gamma - logsumexp(log_gamma, axis=1, keepdims=True))


@partitions.register("dirichlet")
@dataclass(frozen=True)
class Dirichlet(Partition):
    """Label distribution skew of concentration ``alpha`` (small: few classes a peer).

    Without ``size``, each class is split over the peers by a draw of Dir_n(alpha); a peer that already
    has its even share of all rows gets none of the later classes, and all is drawn again until every
    peer has ``min_size`` rows. Source: Yurochkin et al. (ICML 2019); Li, Diao, Chen & He, "Federated
    Learning on Non-IID Data Silos" (ICDE 2022).

    With ``size``, peer i draws class proportions q_i ~ Dir_C(alpha) and then ``size`` rows without
    replacement, each of a class drawn from q_i; a class that is used up is left out and q_i renormalised.
    Peers draw in the order of their numbers, so the last of them see what is left. Source: Hsu, Qi &
    Brown (arXiv:1909.06335).

    Args:
        alpha: concentration.
        min_size: rows that every peer must hold.
        size: rows of each peer; None: all rows are dealt out, sizes differ.
    """

    alpha: Annotated[float, Meta(gt=0)] = 0.5
    min_size: Annotated[int, Meta(ge=1)] = 1
    size: Annotated[int, Meta(ge=1)] | None = None

    def owner(self, y: Tensor, groups: Tensor | None, n: int, seed: int) -> Tensor:
        label, classes = labels_of(y, self.slug)
        stock = np.bincount(label, minlength=classes)
        counts = self._fill(stock, n, seed) if self.size else self._split(stock, n, seed)
        return deal(y, counts, seed, "partition/order")

    def _split(self, stock: np.ndarray, n: int, seed: int) -> np.ndarray:
        """Counts [n, C] of the first draw that leaves nobody below ``min_size``."""
        if n * self.min_size > stock.sum():
            raise BadInput(
                "partition.min_size", self.min_size, f"at most {stock.sum() // n} with {n} peers"
            )
        even = stock.sum() / n
        for attempt in range(_TRIES):
            draws = Draws(seed, "partition/dirichlet", torch.arange(len(stock)), attempt)
            log_q = log_dirichlet(draws, self.alpha, n)
            counts = np.zeros((n, len(stock)), np.int64)
            held = np.zeros(n, np.int64)
            for c in np.flatnonzero(stock):
                log_p = np.where(held < even, log_q[c], -np.inf)
                cut = np.rint(np.cumsum(np.exp(log_p - logsumexp(log_p))) * stock[c]).astype(np.int64)
                cut[-1] = stock[c]
                counts[:, c] = np.diff(cut, prepend=0)
                held += counts[:, c]
            if held.min() >= self.min_size:
                return counts
        raise BadInput(
            "partition.alpha",
            self.alpha,
            f"a value for which {n} peers get {self.min_size} rows each in one of {_TRIES} draws; "
            "or give size, the rows of each peer",
        )

    def _fill(self, stock: np.ndarray, n: int, seed: int) -> np.ndarray:
        """Counts [n, C] whose rows sum to ``size``."""
        size = self.size or 0
        if n * size > stock.sum():
            raise BadInput("partition.size", size, f"at most {stock.sum() // n} with {n} peers")
        peers = torch.arange(n)
        log_q = log_dirichlet(Draws(seed, "partition/dirichlet", peers), self.alpha, len(stock))
        uniform: list[np.ndarray] = []  # [n, size] of each attempt
        left = stock.copy()
        counts = np.zeros((n, len(stock)), np.int64)
        for i in range(n):
            missing, attempt = size, 0
            while missing:
                if attempt == len(uniform):
                    uniform.append(Draws(seed, "partition/fill", peers, attempt).uniform(size).numpy())
                u = uniform[attempt][i, :missing]
                log_p = np.where(left > 0, log_q[i], -np.inf)
                edge = np.cumsum(np.exp(log_p - log_p.max()))
                drawn = np.bincount(np.searchsorted(edge, u * edge[-1], "right"), minlength=len(stock))
                taken = np.minimum(drawn, left)
                counts[i] += taken
                left -= taken
                missing = int((drawn - taken).sum())
                attempt += 1
        return counts
