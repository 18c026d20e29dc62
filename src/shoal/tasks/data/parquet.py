"""Apache Parquet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from shoal.core import BadInput

from .base import datasets
from .table import TableSource

__all__ = ["ParquetSource"]


@datasets.register("parquet")
@dataclass(frozen=True)
class ParquetSource(TableSource):
    """A Parquet file with flat columns."""

    def table(self, path: Path) -> pa.Table:
        try:
            return parquet.ParquetFile(path).read()
        except (pa.ArrowException, OSError) as error:
            raise BadInput(
                "data.path", self.path, f"a Parquet file ({str(error).splitlines()[0]})"
            ) from None
