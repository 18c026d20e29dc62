"""Data sets: their one form, their checks, and the split into what is learnt from and what is tested on."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from shoal.core import BadInput, Draws, Part, Registry

__all__ = ["Dataset", "Source", "check", "datasets", "split", "stratified", "targets"]


@dataclass(frozen=True)
class Dataset:
    """Labelled examples.

    Args:
        x: float32 [N, *feature_shape] (float64 where a file's columns need it, until :func:`split`).
        y: int64 [N] in 0..classes-1; float32 [N] for regression.
        classes: number of classes; 0 for regression.
        groups: int64 [N], the natural user of each row, 0..G-1; or None.
        names: the classes' names.
        test_x: [M, *feature_shape], a test set given with the data, or None.
        test_y: [M], its targets.
        source: a line for the report: what this is and where it was read.
        standardize: what :func:`split` brings to mean 0 and deviation 1 by the training rows: True,
            all features by one mean and one deviation (images); a bool mask of the feature shape,
            each marked feature by its own (columns).
        complete: whether every class occurs; False for one peer's own part of what many hold.
    """

    x: Tensor
    y: Tensor
    classes: int
    groups: Tensor | None = None
    names: list[str] = field(default_factory=list)
    test_x: Tensor | None = None
    test_y: Tensor | None = None
    source: str = ""
    standardize: bool | Tensor = False
    complete: bool = True

    def __len__(self) -> int:
        return len(self.x)

    @property
    def feature_shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])

    def take(self, rows: Tensor) -> Dataset:
        """These rows (int64 [K] or bool [N]) alone, without the given test set."""
        groups = None if self.groups is None else self.groups[rows]
        return replace(self, x=self.x[rows], y=self.y[rows], groups=groups, test_x=None, test_y=None)

    def head(self, count: int, seed: int) -> Dataset:
        """At most ``count`` rows, drawn with every class in proportion."""
        if count >= len(self):
            return self
        return self.take(stratified(self.y, count, seed, "data/head"))


class Source(Part):
    """Where a data set comes from."""

    @abstractmethod
    def load(self) -> Dataset:
        """The data set, as it lies there.

        Raises:
            BadInput: missing, truncated or otherwise not usable.
            MissingExtra: it is in a package that is not installed.
        """


def targets(values: np.ndarray, regression: bool, field: str) -> tuple[Tensor, int, list[str]]:
    """Targets as they are stored: classes sorted and numbered from 0, or real numbers.

    Args:
        values: [N] numbers, booleans or strings.
        regression: whether they are real numbers.
        field: what an error names.

    Returns:
        (y [N], classes, names).

    Raises:
        BadInput: numbers where classes were expected, or the other way round.
    """
    if regression:
        if values.dtype.kind not in "fiub":
            raise BadInput(field, str(values[:1]), "numbers, because regression = true")
        return torch.from_numpy(values.astype(np.float32)), 0, []
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values))[0])
            raise BadInput(field, float(values[row]), f"row {row}: every target finite")
        fraction = np.flatnonzero(values != np.round(values))
        if len(fraction):
            raise BadInput(
                field, float(values[fraction[0]]), "whole numbers as classes, or regression = true"
            )
        values = values.astype(np.int64)
    kinds, y = np.unique(values, return_inverse=True)
    return torch.from_numpy(y.reshape(-1).astype(np.int64)), len(kinds), [str(k) for k in kinds]


def _finite(x: Tensor, data: Dataset, what: str) -> None:
    if bool(torch.isfinite(x.sum())):  # NaN and inf survive a sum
        return
    bad = ~torch.isfinite(x.reshape(len(x), -1))
    if bool(bad.any()):
        row, column = bad.nonzero()[0].tolist()
        where = f"{what} row {row}" + (f", feature {column}" if x.ndim > 1 else "")
        value = float(x.reshape(len(x), -1)[row, column])
        raise BadInput("data", data.source, f"finite numbers; {where} is {value}")


def check(data: Dataset) -> Dataset:
    """The same data set, checked.

    Raises:
        BadInput: empty, of different lengths, not finite (with the first such row), fewer than two
            classes, or labels that are not 0..classes-1.
    """
    parts = [("x", data.x, "y", data.y)]
    if data.test_x is not None and data.test_y is not None:
        parts.append(("test_x", data.test_x, "test_y", data.test_y))
        if data.test_x.shape[1:] != data.x.shape[1:]:
            shapes = f"{list(data.feature_shape)} and {list(data.test_x.shape[1:])}"
            raise BadInput("data", data.source, f"test examples of the training examples' shape; {shapes}")
    for x_name, x, y_name, y in parts:
        if len(x) != len(y):
            raise BadInput("data", data.source, f"{x_name} has {len(x)} rows, {y_name} has {len(y)}")
        if x.numel() == 0:
            raise BadInput("data", data.source, f"at least one row and one feature; {x_name} is empty")
        _finite(x, data, x_name)
        _finite(y, data, y_name)
    if data.groups is not None and len(data.groups) != len(data.x):
        raise BadInput("data", data.source, f"groups has {len(data.groups)} rows, x has {len(data.x)}")
    if data.classes:
        y = torch.cat([part[3] for part in parts])
        found = torch.unique(y)
        if data.classes < 2:
            raise BadInput("data", data.source, f"at least 2 classes; every row is {data.names}")
        if data.complete and not torch.equal(found, torch.arange(data.classes)):
            raise BadInput(
                "data", data.source, f"labels 0..{data.classes - 1}, each held; found {found.tolist()}"
            )
    return data


def stratified(y: Tensor, count: int, seed: int, purpose: str) -> Tensor:
    """``count`` rows drawn at random, every class in proportion to within one row.

    Args:
        y: [N]; real numbers count as one class.

    Returns:
        int64 [count], ascending.
    """
    label = np.zeros(len(y), np.int64) if y.is_floating_point() else y.numpy()
    key = Draws(seed, purpose, torch.zeros(1, dtype=torch.int64)).words(len(y))[0].numpy()
    order = np.lexsort((key, label))
    size = np.bincount(label)
    start = np.cumsum(size) - size
    rank = np.empty(len(y), np.int64)
    rank[order] = np.arange(len(y)) - np.repeat(start, size)
    # Largest remainders: every class within one row of its share.
    share = count * size / max(1, len(y))
    quota = np.floor(share).astype(np.int64)
    rest = count - int(quota.sum())
    quota[np.argsort(quota - share, kind="stable")[:rest]] += 1
    return torch.from_numpy(np.flatnonzero(rank < quota[label]))


def split(data: Dataset, test: float, seed: int) -> tuple[Dataset, Dataset]:
    """Checked training and test sets: the given split, else ``test`` of every class, drawn by ``seed``.

    What the source asks to be standardised is, by the training rows' figures alone.

    Raises:
        BadInput: see :func:`check`; or a side would be empty.
    """
    check(data)
    if data.test_x is not None and data.test_y is not None:
        train = replace(data, test_x=None, test_y=None)
        held = replace(train, x=data.test_x, y=data.test_y, groups=None)
    else:
        count = round(test * len(data))
        if not 0 < count < len(data):
            raise BadInput("test", test, f"a share that leaves both sides some of the {len(data)} rows")
        inside = torch.zeros(len(data), dtype=torch.bool)
        inside[stratified(data.y, count, seed, "data/split")] = True
        train, held = data.take(~inside), data.take(inside)
    mean, deviation = _figures(train)
    return tuple(  # type: ignore[return-value]
        replace(part, x=((part.x - mean) / deviation).float(), standardize=False)
        if mean is not None
        else replace(part, x=part.x.float(), standardize=False)
        for part in (train, held)
    )


def _figures(train: Dataset) -> tuple[Tensor | None, Tensor]:
    one = torch.ones((), dtype=train.x.dtype)
    if isinstance(train.standardize, bool):
        if not train.standardize:
            return None, one
        deviation, mean = torch.std_mean(train.x, correction=0)
        return mean, torch.where(deviation > 0, deviation, one)
    deviation, mean = torch.std_mean(train.x, 0, correction=0)
    marked = train.standardize
    return torch.where(marked, mean, 0.0), torch.where(marked & (deviation > 0), deviation, one)


datasets: Registry[Source] = Registry("data", "shoal.tasks.data", Source)
