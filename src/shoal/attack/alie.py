"""A little is enough: hide within the spread of the honest messages."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

from torch import Tensor

from shoal.core import BadInput, Scene, attacks

from .base import Informed

__all__ = ["Alie", "deviation"]


def deviation(n: int, f: int) -> float:
    """The largest z at which s honest messages of n - f are expected to lie further out than the
    attackers: z = Phi^-1((n - f - s) / (n - f)), s = floor(n/2 + 1) - f, so that f + s are a majority.

    Where the quantile would be infinite (the attackers are a majority already, or need every honest
    message), it is taken half a message inside.
    """
    honest = n - f
    supporters = n // 2 + 1 - f
    share = (honest - supporters) / honest
    return NormalDist().inv_cdf(min(max(share, 0.5 / honest), 1 - 0.5 / honest))


@attacks.register("alie", "lie")
@dataclass(frozen=True)
class Alie(Informed):
    """All hostile peers send mu - z sd, coordinate by coordinate, of the honest messages.

    sd is that of the population (divided by their number), as in the authors' code. Where no honest
    peer speaks, there is nobody to hide among and hostile peers send their honest messages.

    Args:
        z: deviations from the mean; None: :func:`deviation` of the numbers of all and of hostile
            speakers (the paper's experiments use 1.5). Small n give z <= 0 by that formula.

    Source: Baruch, Baruch, Goldberg, "A little is enough: circumventing defenses for distributed
    learning" (NeurIPS 2019), arXiv 1902.06156, algorithm 3 and equation for z_max.
    """

    z: float | None = None

    def check(self) -> None:
        if self.knowledge == "self":
            raise BadInput("knowledge", self.knowledge, "omniscient or coalition: one has no spread")

    def craft(self, own: Tensor, base: Tensor, scene: Scene, who: Tensor) -> Tensor | None:
        known = self.informants(scene)
        speakers = int(scene.speaking.sum())
        if not len(known) or len(who) == speakers:
            return None
        z = deviation(speakers, len(who)) if self.z is None else self.z
        seen = scene.honest[known]
        return seen.mean(0) - z * seen.std(0, correction=0)
