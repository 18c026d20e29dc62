"""121 FedZip: federated averaging whose updates are pruned, clustered and entropy-coded.

Source: Malekijoo et al., "FEDZIP: a compression framework for communication-efficient federated
learning" (arXiv 2102.01593). The compression is the codec ``fedzip``; the method is FedAvg.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from shoal.core import methods

from .fedavg import FedAvg

__all__ = ["FedZip"]


@methods.register("fedzip")
@dataclass(frozen=True)
class FedZip(FedAvg):
    """FedAvg over the wire ``fedzip``: a preset, nothing is overridden."""

    epochs: Annotated[int, Meta(ge=1)] = 1

    recipe: ClassVar[dict[str, Any]] = {
        "task": {
            "name": "supervised",
            "data": "mnist14",
            "partition": {"name": "dirichlet", "alpha": 0.5},
            "model": {"name": "mlp", "hidden": [64]},
        },
        "network": {"codec": "fedzip(z=0.1)", "error_feedback": False},
        "peers": 20,
        "rounds": 30,
    }
    trial: ClassVar[dict[str, Any]] = {"network": {"codec": "fedzip(z=0.1)"}}
