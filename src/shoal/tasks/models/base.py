"""Models, stacked: one peer's parameters are one row of ``x`` [P, D].

A :class:`Model` is the configuration; :meth:`Model.build` makes a :class:`Stacked`, which is stateless:
every method takes the parameters. A layer is a view of its columns with batch stride D, so codecs,
mixing and rules see one matrix and batched products work on it in place.

All passes go over the peers in chunks whose parameters and activations fit the processor's cache, and a
chunk takes all its local steps before the next one starts; the result is the same as in one piece.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vmap

from shoal.core import Draws, Layout, Part, Registry

from .criterion import logit_gradient, mean_loss
from .rows import Batch, Rows, pick, side_by_side, slices

__all__ = ["Model", "Stacked", "blend_", "models"]


class Model(Part):
    """The configuration of a model; its fields are the architecture."""

    @abstractmethod
    def build(self, feature_shape: tuple[int, ...], classes: int) -> Stacked:
        """The model for inputs of this shape.

        Args:
            feature_shape: of one example.
            classes: number of classes; 0 for regression on one number.

        Raises:
            BadInput: the architecture does not fit the inputs.
        """


models: Registry[Model] = Registry("model", "shoal.tasks.models", Model)


class Stacked(ABC):
    """P models of one shape. Stateless; float32 or float64, as the parameters are.

    Args:
        parameters: names and shapes, in the order of the columns.
        feature_shape: of one example.
        classes: 0 for regression.
        activations: numbers that a pass holds per example, about; sizes the chunks.
    """

    cache: ClassVar[int] = 4 << 20
    """Bytes that a chunk of peers may take: measured best between 2 and 8 MiB on CPUs."""
    threaded: ClassVar[bool] = True
    """Whether chunks may be worked on at the same time."""

    def __init__(
        self,
        parameters: list[tuple[str, tuple[int, ...]]],
        feature_shape: tuple[int, ...],
        classes: int,
        activations: int,
    ) -> None:
        self.feature_shape, self.classes, self.activations = feature_shape, classes, activations
        self.outputs = classes or 1
        self.layers: Layout = []
        self.dim = 0
        for name, shape in parameters:
            self.layers.append((name, slice(self.dim, self.dim + math.prod(shape)), shape))
            self.dim += math.prod(shape)

    # What a model defines.

    @abstractmethod
    def init(self, draws: Draws, dtype: torch.dtype = torch.float32) -> Tensor:
        """Fresh parameters [P, D], one row for each peer of ``draws``; a peer's row does not depend on
        the others."""

    @abstractmethod
    def functional(self, vector: Tensor, inputs: Tensor) -> Tensor:
        """One peer's outputs as a pure, twice differentiable torch function: [D], [B, *feature] ->
        [B, C]."""

    @abstractmethod
    def forward(self, x: Tensor, inputs: Tensor) -> tuple[Tensor, Any]:
        """One chunk's outputs [p, B, C] and what :meth:`backward_` needs; inputs [p, B, *feature], or
        [B, *feature] for all of them."""

    @abstractmethod
    def backward_(self, x: Tensor, saved: Any, d: Tensor, into: Tensor, alpha: float, beta: float) -> None:
        """``into <- beta into + alpha gradient`` [p, D], from the gradient ``d`` by the outputs.

        ``into`` may be ``x`` itself: that is a fused SGD step. With ``beta`` = 0 what was in ``into``
        does not matter. ``d`` may be overwritten."""

    # What follows for every model.

    def views(self, x: Tensor) -> dict[str, Tensor]:
        """The layers of ``x`` [P, D] as [P, *shape], without copies."""
        return {name: x[:, columns].view(len(x), *shape) for name, columns, shape in self.layers}

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """The layers of one row [D]."""
        return {name: vector[columns].view(shape) for name, columns, shape in self.layers}

    def chunk(self, batch: int, itemsize: int = 4) -> int:
        """How many peers to work on at a time, for batches of this size."""
        return max(1, self.cache // (itemsize * (self.dim + batch * self.activations)))

    def logits(self, x: Tensor, inputs: Tensor) -> Tensor:
        """Outputs [P, B, C] for inputs [P, B, *feature], or [B, *feature] shared by all peers."""
        shared = self._shared(inputs)
        batch = inputs.shape[0 if shared else 1]
        out = x.new_empty(len(x), batch, self.outputs)
        # Long inputs (a test set) are cut as well.
        tile = max(1, self.cache // (2 * x.itemsize * max(1, self.activations)))

        def ask(rows: slice) -> None:
            for part in slices(batch, tile):
                block = inputs[part] if shared else inputs[rows, part]
                out[rows, part] = self.forward(x[rows], self._like(block, x))[0]

        side_by_side(ask, self.threaded, list(slices(len(x), self.chunk(min(batch, tile), x.itemsize))))
        return out

    def loss(self, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Mean loss of each peer [P]; see :func:`.criterion.mean_loss`. Targets [P, B], or [B] for all."""
        return mean_loss(self.logits(x, inputs), *self._spread(len(x), targets, weights), self.classes)

    def score(self, x: Tensor, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """``loss`` and, with classes, ``accuracy`` of each peer: [P] each. Inputs and targets per peer
        or shared by all; never holds more than a chunk's outputs."""
        shared, (targets, _) = self._shared(inputs), self._spread(len(x), targets, None)
        found: dict[str, list[Tensor]] = {"loss": [], **({"accuracy": []} if self.classes else {})}
        width = max(1, self.cache // (x.itemsize * max(1, targets.shape[1] * self.outputs)))
        for rows in slices(len(x), width):
            z = self.logits(x[rows], inputs if shared else inputs[rows])
            found["loss"].append(mean_loss(z, targets[rows], None, self.classes))
            if self.classes:
                found["accuracy"].append((z.argmax(-1) == targets[rows]).to(x.dtype).mean(1))
        return {name: torch.cat(parts) for name, parts in found.items()}

    def grad(
        self,
        x: Tensor,
        inputs: Tensor,
        targets: Tensor,
        weights: Tensor | None = None,
        *,
        active: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Loss [P] and gradient [P, D] of each peer's batch; both 0 where ``active`` (bool [P]) is not."""
        loss, out = x.new_zeros(len(x)), torch.zeros_like(x)
        batch = self._given(inputs, targets, weights, len(x))
        for rows in self._chunks(len(x), targets.shape[-1], x.itemsize, active):
            got = batch(rows, 0)
            block = out[rows]
            z = self._accumulate_(x[rows], got, block, 1.0, 0.0)
            loss[rows] = mean_loss(z, *got[1:], self.classes)
            if isinstance(rows, Tensor):
                out[rows] = block
        return loss, out

    def sgd_(
        self,
        x: Tensor,
        inputs: Tensor,
        targets: Tensor,
        lr: float,
        *,
        weights: Tensor | None = None,
        active: Tensor | None = None,
        momentum: float = 0.0,
        buffer: Tensor | None = None,
        weight_decay: float = 0.0,
    ) -> None:
        """One SGD step of each peer, in place on ``x``; as :class:`torch.optim.SGD`.

        Args:
            x: [P, D]; its rows may be strided, its columns must be contiguous.
            inputs: [P, B, *feature], or [B, *feature] shared by all.
            targets: [P, B], or [B].
            weights: [P, B] or None, see :func:`.criterion.mean_loss`.
            active: bool [P] or None; the other rows (and their buffers) are left as they are, bit by bit.
            momentum: needs ``buffer``.
            buffer: [P, D], starts at 0, changed in place.
            weight_decay: L2, added to the gradient.
        """
        self.train_(
            x, self._given(inputs, targets, weights, len(x)), 1, lr, batch=targets.shape[-1],
            active=active, momentum=momentum, buffer=buffer, weight_decay=weight_decay,
        )  # fmt: skip

    def train_(
        self,
        x: Tensor,
        batches: Callable[[Rows, int], Batch],
        steps: int | Tensor,
        lr: float,
        *,
        batch: int,
        active: Tensor | None = None,
        momentum: float = 0.0,
        buffer: Tensor | None = None,
        weight_decay: float = 0.0,
    ) -> None:
        """Local SGD: ``steps`` steps of each peer, in place on ``x`` [P, D].

        Args:
            batches: (some peers, step) -> their batch; :class:`Batches` for shared data.
            steps: for all, or int64 [P].
            batch: examples in a batch (sizes the chunks).

        The other arguments are those of :meth:`sgd_`.
        """
        if momentum and buffer is None:
            raise ValueError("momentum needs a buffer [P, D]")
        most = steps if isinstance(steps, int) else int(steps.max()) if len(steps) else 0
        count = None if isinstance(steps, int) else steps

        def train(block: slice) -> None:
            for step in range(most):
                live = None if active is None else active[block]
                if count is not None:
                    live = (count[block] > step) if live is None else live & (count[block] > step)
                rows = pick(block, live)
                if rows is None:
                    break  # whoever is out stays out: steps only go up
                part, velocity = x[rows], None if buffer is None or not momentum else buffer[rows]
                self._step_(part, batches(rows, step), lr, momentum, velocity, weight_decay)
                if isinstance(rows, Tensor):
                    x[rows] = part
                    if buffer is not None and velocity is not None:
                        buffer[rows] = velocity

        side_by_side(train, self.threaded, list(slices(len(x), self.chunk(batch, x.itemsize))))

    def _step_(
        self, x: Tensor, batch: Batch, lr: float, momentum: float, buffer: Tensor | None, decay: float
    ) -> None:
        if buffer is None:
            self._accumulate_(x, batch, x, -lr, 1.0 - lr * decay)
            return
        if decay:
            buffer.mul_(momentum).add_(x, alpha=decay)
        self._accumulate_(x, batch, buffer, 1.0, 1.0 if decay else momentum)
        x.add_(buffer, alpha=-lr)

    def _accumulate_(self, x: Tensor, batch: Batch, into: Tensor, alpha: float, beta: float) -> Tensor:
        """:meth:`backward_` from the loss of a batch; returns the outputs [p, B, C]."""
        inputs, targets, weights = batch
        z, saved = self.forward(x, self._like(inputs, x))
        z = z.detach()
        self.backward_(x, saved, logit_gradient(z, targets, weights, self.classes), into, alpha, beta)
        return z

    # Through torch.func, for every model: first and second order of one differentiable function.

    def objective(
        self, vector: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """One peer's loss, a pure torch function of its parameters [D]: a number."""
        z = self.functional(vector, inputs)
        share = None if weights is None else weights[None]
        return mean_loss(z[None], targets[None], share, self.classes)[0]

    def grad_autograd(
        self, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What :meth:`grad` gives, by automatic differentiation: slower, and itself differentiable."""
        targets, weights = self._spread(len(x), targets, weights)
        dims = (0, None if self._shared(inputs) else 0, 0, None if weights is None else 0)
        slope, value = vmap(grad_and_value(self.objective), dims)(
            x, self._like(inputs, x), targets, weights
        )
        return value, slope

    def hvp(
        self, x: Tensor, v: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Hessian of each peer's batch loss at ``x`` [P, D], times ``v`` [P, D]: [P, D].

        Itself differentiable; exact where the second derivative exists (for ReLU: almost everywhere).
        """
        targets, weights = self._spread(len(x), targets, weights)
        dims = (0, 0, None if self._shared(inputs) else 0, 0, None if weights is None else 0)

        def one(w: Tensor, u: Tensor, i: Tensor, t: Tensor, s: Tensor | None) -> Tensor:
            along: Tensor = grad(lambda point: grad(self.objective)(point, i, t, s) @ u)(w)
            return along

        out: Tensor = vmap(one, dims)(x, v, self._like(inputs, x), targets, weights)
        return out

    # Shapes.

    def _shared(self, inputs: Tensor) -> bool:
        return inputs.ndim == len(self.feature_shape) + 1

    @staticmethod
    def _like(inputs: Tensor, x: Tensor) -> Tensor:
        """Floats in the parameters' precision; integers (tokens) as they are."""
        return inputs.to(x.dtype) if inputs.is_floating_point() else inputs

    @staticmethod
    def _spread(peers: int, targets: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
        wide = targets if targets.ndim > 1 else targets.expand(peers, -1)
        return wide, None if weights is None else weights.expand(wide.shape)

    def _given(
        self, inputs: Tensor, targets: Tensor, weights: Tensor | None, peers: int
    ) -> Callable[[Rows, int], Batch]:
        shared, (targets, weights) = self._shared(inputs), self._spread(peers, targets, weights)

        def batch(rows: Rows, step: int) -> Batch:
            part = None if weights is None else weights[rows]
            return inputs if shared else inputs[rows], targets[rows], part

        return batch

    def _chunks(self, peers: int, batch: int, itemsize: int, active: Tensor | None) -> Iterator[Rows]:
        for block in slices(peers, self.chunk(batch, itemsize)):
            rows = pick(block, None if active is None else active[block])
            if rows is not None:
                yield rows


def blend_(into: Tensor, value: Tensor, alpha: float, beta: float) -> None:
    """``into <- beta into + alpha value``; with ``beta`` = 0 ``into`` may hold anything."""
    if beta == 0:
        torch.mul(value, alpha, out=into)
    elif beta == 1:
        into.add_(value, alpha=alpha)
    else:
        into.mul_(beta).add_(value, alpha=alpha)
