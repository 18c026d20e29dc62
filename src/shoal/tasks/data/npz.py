"""NumPy archives."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from shoal.core import BadInput

from .base import Dataset, Source, datasets, targets

__all__ = ["NpzSource"]


@datasets.register("npz")
@dataclass(frozen=True)
class NpzSource(Source):
    """A ``.npz`` file with the arrays ``x`` [N, ...] and ``y`` [N]; optionally ``groups`` [N], and
    ``test_x`` with ``test_y``. Arrays of Python objects are never unpickled.

    Args:
        path: the file.
        regression: whether ``y`` holds real numbers; else its values are classes, sorted.
        standardize: each feature to mean 0 and deviation 1, by the training rows' figures.
    """

    path: str
    regression: bool = False
    standardize: bool = False

    def load(self) -> Dataset:
        path = Path(self.path).expanduser()
        if not path.is_file():
            raise BadInput("data.path", self.path, "a file; there is none")
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {k: file[k] for k in ("x", "y", "groups", "test_x", "test_y") if k in file}
        except (OSError, EOFError, ValueError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
            raise BadInput("data.path", self.path, f"a .npz file of plain arrays ({error})") from None
        for name in ("x", "y", *(("test_x", "test_y") if arrays.keys() & {"test_x", "test_y"} else ())):
            if name not in arrays:
                raise BadInput("data.path", self.path, f"an archive that holds the array {name}")
        for name, array in arrays.items():
            if name.endswith("x") and (array.ndim < 2 or array.dtype.kind not in "fiub"):
                raise BadInput("data.path", self.path, f"{name}: numbers [N, features...]")
            if not name.endswith("x") and array.ndim != 1:
                raise BadInput("data.path", self.path, f"{name}: one value a row, [N]")
        length = len(arrays["y"])
        joined = np.concatenate([arrays[k] for k in ("y", "test_y") if k in arrays])
        y, classes, names = targets(joined, self.regression, "data.y")
        x = torch.from_numpy(arrays["x"].astype(np.float32))
        test_x = arrays.get("test_x")
        groups = arrays.get("groups")
        return Dataset(
            x=x,
            y=y[:length],
            classes=classes,
            groups=None if groups is None else torch.from_numpy(_number(groups)),
            names=names,
            test_x=None if test_x is None else torch.from_numpy(test_x.astype(np.float32)),
            test_y=None if test_x is None else y[length:],
            source=f"{path.name} ({len(x):,} rows of {list(x.shape[1:])})",
            standardize=torch.ones(x.shape[1:], dtype=torch.bool) if self.standardize else False,
        )


def _number(values: np.ndarray) -> np.ndarray:
    return np.unique(values, return_inverse=True)[1].reshape(-1).astype(np.int64)
