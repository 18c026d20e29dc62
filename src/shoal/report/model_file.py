"""``model.safetensors``: the models that a run ended with, and how to use them again.

Tensors: ``merged.LAYER``, the layers of the mean of the honest peers' models; ``models`` [n, D], each
peer's own model (left out above 50 million numbers). The metadata holds, as JSON, the layers and
what the model is rebuilt from. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from shoal.core import BadInput, Layout, Report

from .metrics import honest

__all__ = ["LARGEST", "LoadedModel", "has_models", "load_model", "model_bytes", "read_models"]

LARGEST = 50_000_000
"""Numbers (n x D) up to which every peer's own model is kept."""


def has_models(report: Report) -> bool:
    """Whether the output is one model a peer, [n, D], with named layers."""
    output = report.output
    return (
        isinstance(output, Tensor)
        and output.ndim == 2
        and len(output) > 0
        and bool(report.layers)
        and max(s.stop for _, s, _ in report.layers) == output.shape[1]
    )


def model_bytes(report: Report) -> bytes:
    """The file's content. Where no peer is honest, the mean is over all."""
    models: Tensor = report.output.detach().cpu()
    kept = honest(report, len(models))
    merged = (models[kept] if bool(kept.any()) else models).mean(0)
    tensors = {
        f"merged.{name}": merged[columns].reshape(shape).clone() for name, columns, shape in report.layers
    }
    if models.numel() <= LARGEST:
        tensors["models"] = models.contiguous()
    layers = [[name, s.start, s.stop, list(shape)] for name, s, shape in report.layers]
    built = report.config.get("model_meta") or report.final.get("model")
    return save(
        tensors,
        metadata={
            "system": report.system,
            "layers": json.dumps(layers),
            "model": json.dumps(built) if built else "",
        },
    )


@dataclass(frozen=True)
class LoadedModel:
    """A trained model: ``model(inputs)`` gives its outputs.

    Args:
        stacked: the architecture.
        x: [1, D], the parameters.
        layers: the named slices of ``x``.
        feature_shape: of one example.
        classes: number of outputs of a classifier; 0 for regression.
    """

    stacked: Any
    x: Tensor
    layers: Layout
    feature_shape: tuple[int, ...]
    classes: int

    def __call__(self, inputs: Any) -> Tensor:
        """Outputs [B, C] for inputs [B, ...], each with as many numbers as ``feature_shape`` holds.

        Raises:
            BadInput: inputs of another size.
        """
        inputs = torch.as_tensor(inputs).to(self.x.dtype)
        if inputs.ndim < 2 or inputs.shape[1:].numel() != math.prod(self.feature_shape):
            wanted = ", ".join(["B", *map(str, self.feature_shape)])
            raise BadInput("inputs", list(inputs.shape), f"the shape of a batch, [{wanted}]")
        inputs = inputs.reshape(len(inputs), *self.feature_shape)
        with torch.no_grad():
            out: Tensor = self.stacked.logits(self.x, inputs)
        return out[0]

    def predict(self, inputs: Any) -> Tensor:
        """The class of each input, int64 [B]; for regression the value, [B]."""
        out = self(inputs)
        return out.argmax(-1) if self.classes else out[..., 0]

    def state_dict(self) -> dict[str, Tensor]:
        """The parameters by layer."""
        return {name: self.x[0, columns].reshape(shape) for name, columns, shape in self.layers}


def load_model(path: str | Path, peer: int | None = None) -> LoadedModel:
    """The model that a run ended with.

    Args:
        path: ``model.safetensors``, or the run's folder.
        peer: whose own model; None: the mean of the honest peers' models.

    Raises:
        BadInput: unreadable file, unknown peer, or a model that the file does not say how to build.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    merged, models, layers, meta = read_models(path)
    try:
        built = json.loads(meta.get("model") or "null")
        feature_shape, classes = tuple(built["feature_shape"]), int(built["classes"])
        spec = built["model"]
    except (ValueError, KeyError, TypeError):
        raise BadInput("model", str(path), "does not say what model it holds") from None
    from shoal.tasks.models.base import models as registry

    stacked = registry(spec).build(feature_shape, classes)
    x = merged
    if peer is not None:
        if models is None:
            raise BadInput("peer", peer, "this file holds the merged model only")
        if not 0 <= peer < len(models):
            raise BadInput("peer", peer, f"peers are numbered 0 to {len(models) - 1}")
        x = models[peer]
    if stacked.dim != len(x):
        raise BadInput("model", str(path), f"holds {len(x)} parameters; {spec} has {stacked.dim}")
    return LoadedModel(stacked, x[None], layers, feature_shape, classes)


def read_models(path: Path) -> tuple[Tensor, Tensor | None, Layout, dict[str, str]]:
    """(merged [D], models [n, D] or None, layers, metadata) of a file.

    Raises:
        BadInput: missing, damaged, or not a model file.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            meta = dict(file.metadata() or {})
            names = set(file.keys())
            layers = [(name, slice(a, b), tuple(shape)) for name, a, b, shape in json.loads(meta["layers"])]
            merged = torch.cat([file.get_tensor(f"merged.{name}").flatten() for name, _, _ in layers])
            models = file.get_tensor("models") if "models" in names else None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BadInput("model", str(path), f"not a readable model file ({error})") from None
    return merged, models, layers, meta
