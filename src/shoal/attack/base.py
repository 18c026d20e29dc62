"""What adversaries share: what they know of the others, and how their messages replace honest ones."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from shoal.core import Attack, Draws, Scene

__all__ = ["Crafted", "Informed", "Knowledge"]

Knowledge = Literal["omniscient", "coalition", "self"]


class Crafted(Attack):
    """An attack that makes its messages from those that the hostile peers would have sent honestly."""

    def message(self, scene: Scene) -> Tensor:
        who = (scene.hostile & scene.speaking).nonzero()[:, 0]
        sent = self.craft(scene.honest[who], scene.base[who], scene, who)
        if sent is None:
            return scene.honest
        out = scene.honest.clone()
        out[who] = sent.to(out)
        return out

    @abstractmethod
    def craft(self, own: Tensor, base: Tensor, scene: Scene, who: Tensor) -> Tensor | None:
        """What the hostile speakers ``who`` (int64 [h]) send.

        Args:
            own: [h, D], what each would have sent honestly.
            base: [h, D], what that is an update of.

        Returns:
            [h, D], or rows that broadcast to it; None: what they would have sent.
        """

    @staticmethod
    def draws(scene: Scene, who: Tensor) -> Draws:
        """The random numbers of the peers ``who``."""
        return replace(scene.draws, peers=scene.draws.peers[who])


@dataclass(frozen=True)
class Informed(Crafted):
    """An attack that estimates what the honest peers say.

    Args:
        knowledge: ``"omniscient"`` sees the messages of all honest speakers; ``"coalition"`` only what
            the hostile speakers would have sent honestly, pooled among them; ``"self"`` only its own.
    """

    knowledge: Knowledge = "omniscient"

    @property
    def informed(self) -> bool:
        return self.knowledge != "self"

    def informants(self, scene: Scene) -> Tensor:
        """The peers whose honest messages a common estimate is made from: int64 [k]."""
        hostile = self.knowledge == "coalition"
        return (scene.speaking & (scene.hostile == hostile)).nonzero()[:, 0]
