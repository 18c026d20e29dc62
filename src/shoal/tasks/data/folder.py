"""A folder of one's own: what a peer brings to a run with others, who bring theirs."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput

from .base import Dataset, Source, datasets

__all__ = ["FolderSource"]


@datasets.register("folder")
@dataclass(frozen=True)
class FolderSource(Source):
    """``train.npz`` in a folder, and ``test.npz`` where there is one: arrays ``x`` [N, ...] and ``y`` [N].

    Nobody sees all data, so what the columns and classes are must be agreed on beforehand: labels are
    the numbers 0 .. classes - 1, not all of which have to occur here, and features are taken as they
    are. Arrays of Python objects are never unpickled.

    Args:
        path: the folder; ``shoal peer run --data DIR`` sets it.
        classes: number of classes; 0: the targets are real numbers.
    """

    path: str = ""
    classes: Annotated[int, Meta(ge=0)] = 0

    def load(self) -> Dataset:
        folder = Path(self.path).expanduser()
        if not self.path or not folder.is_dir():
            raise BadInput("data.path", self.path, "a folder that holds train.npz")
        x, y = self._arrays(folder / "train.npz")
        test = self._arrays(folder / "test.npz") if (folder / "test.npz").exists() else None
        if test is not None and test[0].shape[1:] != x.shape[1:]:
            raise BadInput("data.path", self.path, "test examples of the training examples' shape")
        return Dataset(
            x=x,
            y=y,
            classes=self.classes,
            names=[str(i) for i in range(self.classes)],
            test_x=None if test is None else test[0],
            test_y=None if test is None else test[1],
            source=f"{folder.name} ({len(x):,} rows of {list(x.shape[1:])})",
            complete=False,
        )

    def _arrays(self, path: Path) -> tuple[Tensor, Tensor]:
        if not path.is_file():
            raise BadInput("data.path", self.path, f"a folder that holds {path.name}")
        try:
            with np.load(path, allow_pickle=False) as file:
                x, y = file["x"], file["y"]
        except KeyError:
            raise BadInput("data.path", str(path), "an archive that holds the arrays x and y") from None
        except (OSError, EOFError, ValueError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
            raise BadInput("data.path", str(path), f"a .npz file of plain arrays ({error})") from None
        if x.ndim < 2 or x.dtype.kind not in "fiub":
            raise BadInput("data.path", str(path), "x: numbers [N, features...]")
        if y.ndim != 1 or len(y) != len(x):
            raise BadInput("data.path", str(path), "y: one target for each row of x")
        if self.classes and (
            y.dtype.kind not in "iu" or (len(y) and not 0 <= y.min() <= y.max() < self.classes)
        ):
            raise BadInput("data.path", str(path), f"y: whole numbers from 0 to {self.classes - 1}")
        target = torch.from_numpy(y.astype(np.int64 if self.classes else np.float32))
        return torch.from_numpy(x.astype(np.float32)), target
