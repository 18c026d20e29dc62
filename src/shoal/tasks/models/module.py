"""Any ``torch.nn.Module`` as a stacked model, through ``torch.func``."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from shoal.core import BadInput, Draws
from shoal.core.load import load_object

from .base import Model, Stacked, blend_, models

__all__ = ["Functional", "Module"]


class Functional(Stacked):
    """P copies of one module. The columns are its trainable parameters, in ``named_parameters`` order.

    Frozen parameters (``requires_grad=False``) and buffers are constants that all peers share.

    Args:
        module: gives the structure and the constants.
        fresh: makes a module with the initialisation of its own, or None: every peer starts from the
            values that ``module`` has.
    """

    cache: ClassVar[int] = 32 << 20
    """Larger than for hand-written models: tracing costs about a millisecond a chunk."""
    threaded: ClassVar[bool] = False
    """One module object lends its code to all peers, and is not made for two callers at once."""

    def __init__(
        self,
        module: nn.Module,
        feature_shape: tuple[int, ...],
        classes: int,
        fresh: Callable[[], nn.Module] | None,
    ) -> None:
        self.module, self.fresh = module, fresh
        trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not trainable:
            raise BadInput("model.path", type(module).__name__, "a module with trainable parameters")
        self.constants = {
            name: value.detach()
            for name, value in (*module.named_parameters(), *module.named_buffers())
            if name not in trainable
        }
        _refuse(module)
        activations = _probe(module, feature_shape, classes or 1)
        shapes = [(name, tuple(p.shape)) for name, p in trainable.items()]
        super().__init__(shapes, feature_shape, classes, activations)

    def init(self, draws: Draws, dtype: torch.dtype = torch.float32) -> Tensor:
        """One construction of the module per peer, under that peer's own seed.

        A module draws from torch's global generator; it is put back as it was."""
        if self.fresh is None:
            return self._row(self.module).to(dtype).repeat(len(draws.peers), 1)
        rows = []
        for peer in draws.peers.tolist():
            own = Draws(draws.seed, draws.purpose, torch.tensor([peer]), draws.tick)
            rows.append(self._row(_seeded(self.fresh, own.generator().initial_seed())))
        return torch.stack(rows).to(dtype)

    def functional(self, vector: Tensor, inputs: Tensor) -> Tensor:
        return self._call(self.unflatten(vector), inputs)

    def forward(self, x: Tensor, inputs: Tensor) -> tuple[Tensor, Any]:
        w = {name: view.detach().requires_grad_() for name, view in self.views(x).items()}
        with torch.enable_grad():
            z = vmap(self._call, (0, None if self._shared(inputs) else 0))(w, inputs)
        return z, (z, w)

    def backward_(self, x: Tensor, saved: Any, d: Tensor, into: Tensor, alpha: float, beta: float) -> None:
        z, w = saved
        slopes = torch.autograd.grad(z, list(w.values()), d, materialize_grads=True)
        for view, slope in zip(self.views(into).values(), slopes, strict=True):
            blend_(view, slope, alpha, beta)

    def _call(self, parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
        dtype = next(iter(parameters.values())).dtype
        constants = {
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in self.constants.items()
        }
        out: Tensor = functional_call(self.module, {**constants, **parameters}, (inputs,))
        return out[:, None] if out.ndim == 1 else out

    def _row(self, module: nn.Module) -> Tensor:
        own = dict(module.named_parameters())
        return torch.cat([own[name].detach().flatten() for name, _, _ in self.layers])


def _refuse(module: nn.Module) -> None:
    """What cannot be a pure function of parameters and inputs.

    Raises:
        BadInput: batch statistics that would be tracked, or dropout: its masks come from torch's global
            generator, so that a peer would draw other numbers in another placement.
    """
    for name, part in module.named_modules():
        where = f"{name or 'the module'} ({type(part).__name__})"
        if getattr(part, "track_running_stats", False):
            raise BadInput(
                "model.path", type(module).__name__,
                f"{where} tracks running statistics: pass track_running_stats=False or use GroupNorm",
            )  # fmt: skip
        rate = part.p if isinstance(part, nn.modules.dropout._DropoutNd) else getattr(part, "dropout", 0.0)
        if isinstance(rate, float | int) and rate > 0:
            raise BadInput(
                "model.path", type(module).__name__,
                f"{where} has dropout {rate}: set it to 0, its masks would not be reproducible",
            )  # fmt: skip


def _probe(module: nn.Module, feature_shape: tuple[int, ...], outputs: int) -> int:
    """Run two copies on two blank examples; the numbers that autograd keeps for one of them.

    Raises:
        BadInput: it fails, or its outputs have another shape.
    """
    own = {p.data_ptr() for p in module.parameters()}
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept.append(tensor.numel())
        return tensor

    first = next(p for p in module.parameters() if p.requires_grad)
    blanks = [torch.zeros(2, *feature_shape, dtype=first.dtype)]
    if any(isinstance(part, nn.Embedding | nn.EmbeddingBag) for part in module.modules()):
        blanks.append(torch.zeros(2, *feature_shape, dtype=torch.int64))
    failures = []
    for blank in blanks:
        try:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                shape = tuple(module(blank).shape)
            stacked = {k: p.detach().expand(2, *p.shape) for k, p in module.named_parameters()}
            vmap(lambda w, i: functional_call(module, w, (i,)), (0, None))(stacked, blank)
        except Exception as error:  # a module may raise anything; what it says is the user's answer
            failures.append(" ".join(str(error).split())[:160])
            continue
        if shape == (2, outputs) or (outputs == 1 and shape == (2,)):
            return sum(kept) // 2
        raise BadInput(
            "model.path", type(module).__name__,
            f"a module that maps [B, {', '.join(map(str, feature_shape))}] to [B, {outputs}]; "
            f"for B = 2 it gave {list(shape)}",
        )  # fmt: skip
    raise BadInput(
        "model.path", type(module).__name__,
        f"a module that runs under vmap on [B, {', '.join(map(str, feature_shape))}]: {failures[-1]}",
    )  # fmt: skip


def _seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


@models.register("module")
@dataclass(frozen=True)
class Module(Model):
    """The user's own network.

    Args:
        path: ``"file.py:Net"`` or ``"pkg.mod:Net"``: an ``nn.Module`` class, a function that returns
            one, or an instance; from Python also the object itself. Classes and functions start from
            their own initialisation, seeded per peer; an instance starts every peer from its weights.
        kwargs: what the class or function is called with. Where it has parameters ``classes`` or
            ``feature_shape`` that are not given here, it gets those of the data.
    """

    path: Any = ""
    kwargs: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        if not (isinstance(self.path, str) or callable(self.path)):
            raise BadInput("path", self.path, "file.py:Net, pkg.mod:Net, an nn.Module, or a function")

    def build(self, feature_shape: tuple[int, ...], classes: int) -> Functional:
        found = load_object(self.path, "model.path") if isinstance(self.path, str) else self.path
        if isinstance(found, nn.Module):
            if self.kwargs:
                raise BadInput("model.kwargs", self.kwargs, "nothing: the path is an instance already")
            return Functional(copy.deepcopy(found), feature_shape, classes, None)
        if not callable(found):
            raise BadInput(
                "model.path", self.path, f"an nn.Module or a function, not {type(found).__name__}"
            )
        known = inspect.signature(found).parameters
        data = {"classes": classes, "feature_shape": feature_shape}
        given = {**{k: v for k, v in data.items() if k in known}, **self.kwargs}
        try:
            module = _seeded(lambda: found(**given), 0)
        except Exception as error:  # the user's constructor may raise anything
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise BadInput("model.kwargs", self.kwargs, f"calling {self.path} failed: {why}") from error
        if not isinstance(module, nn.Module):
            kind = type(module).__name__
            raise BadInput("model.path", self.path, f"something that makes an nn.Module, not a {kind}")
        return Functional(module, feature_shape, classes, lambda: found(**given))
