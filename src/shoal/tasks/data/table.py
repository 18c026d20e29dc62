"""Tables: a target column, numbers standardised, words as one-hot columns."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from shoal.core import BadInput

from .base import Dataset, Source, targets

__all__ = ["TableSource"]


@dataclass(frozen=True)
class TableSource(Source):
    """The user's own table. The test set is split off by the task.

    Args:
        path: the file.
        target: the column to predict; empty: the last.
        group: the column that says whose row it is (the natural user); empty: none.
        drop: columns that are left out.
        regression: whether the target is a real number; else its values are classes, sorted.
        standardize: numeric columns to mean 0 and deviation 1, by the training rows' figures.
        most_values: a column of words with more different values is refused rather than made one-hot.
    """

    path: str
    target: str = ""
    group: str = ""
    drop: tuple[str, ...] = ()
    regression: bool = False
    standardize: bool = True
    most_values: int = 100

    @abstractmethod
    def table(self, path: Path) -> pa.Table:
        """The whole file.

        Raises:
            BadInput: not readable.
        """

    def place(self, path: Path, row: int) -> str:
        """Where row number ``row`` (from 0) stands in the file, in words."""
        return f"row {row}"

    def load(self) -> Dataset:
        path = Path(self.path).expanduser()
        if not path.is_file():
            raise BadInput("data.path", self.path, "a file; there is none")
        table = self.table(path)
        names = table.column_names
        if len(set(names)) < len(names):
            twice = sorted({n for n in names if names.count(n) > 1})
            raise BadInput(
                "data.path", self.path, f"columns with different names; twice: {', '.join(twice)}"
            )
        if not table.num_rows:
            raise BadInput("data.path", self.path, "at least one row; the table is empty")
        target = self.target or names[-1]
        for field, name in [("target", target), ("group", self.group), *(("drop", d) for d in self.drop)]:
            if name and name not in names:
                raise BadInput(f"data.{field}", name, f"one of the columns {', '.join(names)}")
        features = [n for n in names if n not in {target, self.group, *self.drop}]
        if not features:
            raise BadInput("data.path", self.path, "at least one column besides target, group and drop")
        columns: list[np.ndarray] = []
        numeric: list[bool] = []
        for name in features:
            values = self._column(path, table, name)
            if values.dtype.kind == "U":
                columns += self._one_hot(name, values)
            else:
                columns.append(values.astype(np.float64))
            numeric += [values.dtype.kind != "U"] * (len(columns) - len(numeric))
        y, classes, labels = targets(self._column(path, table, target), self.regression, f"data.{target}")
        groups = None
        if self.group:
            users = np.unique(self._column(path, table, self.group), return_inverse=True)[1]
            groups = torch.from_numpy(users.reshape(-1).astype(np.int64))
        return Dataset(
            x=torch.from_numpy(np.stack(columns, 1)),
            y=y,
            classes=classes,
            groups=groups,
            names=labels,
            source=f"{path.name} ({table.num_rows:,} rows, {len(columns)} features, target {target})",
            standardize=torch.tensor(numeric) if self.standardize else False,
        )

    def _column(self, path: Path, table: pa.Table, name: str) -> np.ndarray:
        """Numbers (bool, int64, float64) or strings."""
        column = table[name].combine_chunks()
        kind = column.type
        if pa.types.is_dictionary(kind):
            column, kind = pc.cast(column, kind.value_type), kind.value_type
        missing = pc.is_null(column, nan_is_null=pa.types.is_floating(kind))
        if pa.types.is_decimal(kind) or pa.types.is_floating(kind):
            column = pc.cast(column, pa.float64())
            missing = pc.or_(missing, pc.invert(pc.fill_null(pc.is_finite(column), False)))
        gaps = np.flatnonzero(missing.to_numpy(zero_copy_only=False))
        if len(gaps):
            row = int(gaps[0])
            where = self.place(path, row)
            shown = column[row].as_py()
            value = "empty" if shown is None else str(shown)
            raise BadInput(
                "data.path", self.path, f"finite values everywhere; {where}, column {name} is {value}"
            )
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return np.array(column.to_pylist(), dtype=np.str_)
        if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(column.type):
            return np.asarray(column.to_numpy(zero_copy_only=False))
        raise BadInput("data.drop", list(self.drop), f"also {name}: columns of {kind} cannot be used")

    def _one_hot(self, name: str, values: np.ndarray) -> list[np.ndarray]:
        kinds = np.unique(values)
        if len(kinds) > self.most_values:
            raise BadInput(
                "data.drop",
                list(self.drop),
                f"also {name}: it holds {len(kinds)} different words, more than most_values = "
                f"{self.most_values} (a number that is misspelt makes its column one of words)",
            )
        return [(values == kind).astype(np.float64) for kind in kinds]
