"""046 MeritRank: what Sybils gain is bounded by the decays, and honest ranks stay what they were."""

from __future__ import annotations

from itertools import product
from typing import Any, ClassVar, get_args, get_type_hints

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from shoal.attack.sybil import Region
from shoal.catalog.claims import Bound, Claim, Progress, claim
from shoal.core import Draws, Place
from shoal.tasks.reputation import Dealings, Reputation
from shoal.trust.meritrank import MeritRank
from shoal.trust.walks import WalkGraph

MEMBERS = 180
SIZES, ALPHAS, BETAS = (1, 10, 50), (0.05, 0.15, 0.3), (0.0, 0.9)
SHAPES = get_args(get_type_hints(Region)["shape"])


@claim("meritrank")
class MeritRankClaim(Claim):
    """180 pupils of thiers_2012; the attacker is the second-heaviest neighbour of a drawn victim."""

    bounds = (
        Bound("cells_bounded", "==", 72, "gain bounded by the decays, on MakerDAO's forum"),
        Bound("gain_long_walks", ">=", 20.0),
        Bound("spearman", ">=", 0.75),
    )
    config: ClassVar[dict[str, Any]] = {
        "walks": 2000, "sizes": SIZES, "alphas": ALPHAS, "betas": BETAS, "shapes": SHAPES, "weight": 1e4
    }  # fmt: skip
    notes = ("thiers_2012 stands in for the MakerDAO forum; the walks are the scorer's, without gossip",)

    def measure(self, seed: int, progress: Progress) -> dict[str, float]:
        regions = [Region(shape, size) for shape, size in product(SHAPES, SIZES)]
        worst = dict.fromkeys(BETAS, 0.0)
        held = 0
        for at, region in enumerate(regions):
            work = _world(seed, region)
            for alpha in ALPHAS:
                scorer = MeritRank(alpha=alpha, walks=2000)
                walks = scorer.run(_graph(work), torch.tensor([work.victim]), _draws(seed, work.victim))
                attacker = float(scorer.raw(walks)[0, work.attacker])
                for beta in BETAS:
                    fake = float(scorer.replace(beta=beta).merit(walks)[0, MEMBERS:].sum())
                    share = fake / attacker / ((1 - beta) * (1 - alpha) / alpha)
                    held += share <= 1.1
                    worst[beta] = max(worst[beta], share)
            progress("regions", 0.8 * (at + 1) / len(regions))

        path = _world(seed, Region("path", 50))
        long = _view(path, MeritRank(alpha=0.01, beta=0.0, walks=2000), seed)
        gain = float(long[MEMBERS:].sum() / long[path.attacker])
        progress("path of 50, alpha 0.01", 0.9)

        # Only the decays differ: enough walks for the ranks of those rarely visited.
        calm = _world(seed, None)
        victim = path.victim
        others = np.delete(np.arange(MEMBERS), victim)
        decayed, plain = (
            _view(calm, scorer, seed, victim).numpy()[others]
            for scorer in (MeritRank(), MeritRank(alpha=0.05, beta=0.0))
        )
        return {
            "cells_bounded": float(held),
            "gain_long_walks": gain,
            "spearman": float(spearmanr(decayed, plain).statistic),
            **{f"worst_share_beta_{beta:g}": share for beta, share in worst.items()},
        }


def _world(seed: int, region: Region | None) -> Dealings:
    size = region.size if region else 0
    return Reputation("thiers", sybils=region).open(Place.whole(MEMBERS + size, seed))


def _graph(work: Dealings) -> WalkGraph:
    return WalkGraph.of(work.n, *work.edges)


def _draws(seed: int, node: int) -> Draws:
    return Draws(seed, "walks", torch.tensor([node]))


def _view(work: Dealings, scorer: MeritRank, seed: int, node: int | None = None) -> Tensor:
    """How one member sees the others: [n]."""
    root = work.victim if node is None else node
    return scorer.rank(_graph(work), torch.tensor([root]), _draws(seed, root))[0]
