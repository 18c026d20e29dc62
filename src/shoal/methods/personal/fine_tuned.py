"""Fine-tuned FedAvg: what a peer's own local work makes of the shared model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from shoal.core import methods
from shoal.methods.federated.fedavg import FedAvg, Served

__all__ = ["FineTuned"]


@methods.register("fedavg-fine-tuned")
@dataclass(frozen=True)
class FineTuned(FedAvg):
    """FedAvg whose peers use the model that their last local work ended with, from the shared one."""

    def output(self, s: Served) -> Tensor:
        """The peers' models after their own local work, before they were averaged."""
        return s.x
