"""The user's own torch data set, as an object or as the place where it is defined."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shoal.core import BadInput

from .base import Dataset, Source, datasets, targets

__all__ = ["TorchSource"]


@datasets.register("torch")
@dataclass(frozen=True)
class TorchSource(Source):
    """Any map-style ``torch.utils.data.Dataset`` of pairs (x, y), stacked into memory.

    Args:
        dataset: the data set; or, in TOML, ``"package.module:name"`` or ``"file.py:name"``, where
            ``name`` is a data set or a function of no arguments that makes one.
        test: a data set for the test, given in the same ways, or None.
        regression: whether y is a real number; else its values are classes, sorted.
        standardize: each feature to mean 0 and deviation 1, by the training rows' figures.
    """

    dataset: Any
    test: Any = None
    regression: bool = False
    standardize: bool = False

    def load(self) -> Dataset:
        x, y = _stack("data.dataset", self.dataset)
        test_x, test_y = (None, y[:0]) if self.test is None else _stack("data.test", self.test)
        numbers, classes, names = targets(np.concatenate([y, test_y]), self.regression, "data.dataset")
        shown = self.dataset if isinstance(self.dataset, str) else type(self.dataset).__name__
        return Dataset(
            x=x,
            y=numbers[: len(y)],
            classes=classes,
            names=names,
            test_x=test_x,
            test_y=None if test_x is None else numbers[len(y) :],
            source=f"{shown} ({len(x):,} rows of {list(x.shape[1:])})",
            standardize=torch.ones(x.shape[1:], dtype=torch.bool) if self.standardize else False,
        )


def _stack(field: str, given: Any) -> tuple[Tensor, np.ndarray]:
    """x float32 [N, ...] and the raw targets [N]."""
    data = _found(field, given) if isinstance(given, str) else given
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise BadInput(field, given, "a map-style torch data set (with a length and items)")
    if not len(data):
        raise BadInput(field, given, "at least one item; it is empty")
    xs: list[Tensor] = []
    ys: list[float] = []
    for number in range(len(data)):
        item = data[number]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise BadInput(field, given, f"items that are pairs (x, y); item {number} is not")
        try:
            x = torch.as_tensor(item[0]).to(torch.float32)
            y = torch.as_tensor(item[1]).reshape(()).item()
        except (TypeError, ValueError, RuntimeError):
            kinds = ", ".join(type(part).__name__ for part in item)
            raise BadInput(
                field, given, f"items (tensor, number); item {number} is ({kinds}): add a transform"
            ) from None
        if xs and x.shape != xs[0].shape:
            shapes = f"{list(xs[0].shape)} and {list(x.shape)}"
            raise BadInput(field, given, f"items of one shape; items 0 and {number} have {shapes}")
        xs.append(x)
        ys.append(y)
    return torch.stack(xs), np.array(ys)


def _found(field: str, text: str) -> Any:
    """What ``"package.module:name"`` or ``"file.py:name"`` names, called where it is a function."""
    where, colon, name = text.rpartition(":")
    if not colon or not where or not name:
        raise BadInput(field, text, 'written "package.module:name" or "file.py:name"')
    try:
        if where.endswith(".py"):
            path = Path(where).expanduser()
            spec = importlib.util.spec_from_file_location(path.stem, path)
            if not path.is_file() or spec is None or spec.loader is None:
                raise BadInput(field, text, f"a Python file; there is no {where}")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
    except (ImportError, SyntaxError) as error:
        raise BadInput(field, text, f"a module that can be imported ({error})") from None
    if not hasattr(module, name):
        raise BadInput(field, text, f"a name that {where} defines; it has no {name}")
    value = getattr(module, name)
    makes = isinstance(value, type) or (callable(value) and not hasattr(value, "__getitem__"))
    return value() if makes else value
