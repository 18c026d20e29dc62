"""Comma-separated values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import csv

from shoal.core import BadInput

from .base import datasets
from .table import TableSource

__all__ = ["CsvSource"]

_COMPRESSED = {".gz", ".bz2", ".zst", ".lz4"}


@datasets.register("csv")
@dataclass(frozen=True)
class CsvSource(TableSource):
    """A CSV file, plain or compressed, with a header line.

    Args:
        separator: between the fields.
    """

    separator: str = ","

    def check(self) -> None:
        if len(self.separator) != 1:
            raise BadInput("separator", self.separator, "one character")

    def table(self, path: Path) -> pa.Table:
        wrong: list[csv.InvalidRow] = []
        swell = 20 if path.suffix in _COMPRESSED else 1

        def note(row: csv.InvalidRow) -> str:
            wrong.append(row)
            return "skip"

        try:
            table = csv.read_csv(
                path,
                # One block and one thread: types follow from the whole file, and rows are numbered.
                read_options=csv.ReadOptions(
                    use_threads=False,
                    block_size=min(max(1 << 20, path.stat().st_size * swell + 1), 1 << 30),
                ),
                parse_options=csv.ParseOptions(delimiter=self.separator, invalid_row_handler=note),
                convert_options=csv.ConvertOptions(
                    strings_can_be_null=True, null_values=["", "nan", "NaN", "NA", "N/A", "null", "NULL"]
                ),
            )
        except (pa.ArrowException, OSError) as error:
            raise BadInput("data.path", self.path, f"a CSV file ({str(error).splitlines()[0]})") from None
        if wrong:
            first = wrong[0]
            raise BadInput(
                "data.path",
                self.path,
                f"{first.expected_columns} fields in every line, as in the header; "
                f"{self.place(path, (first.number or 2) - 2)} has {first.actual_columns}",
            )
        return table

    def place(self, path: Path, row: int) -> str:
        """The line, where the file is plain text (empty lines are no rows, but are lines)."""
        if path.suffix in _COMPRESSED:
            return f"row {row}"
        with path.open("rb") as file:
            lines = (number for number, line in enumerate(file, 1) if line.strip(b"\r\n"))
            for position, number in enumerate(lines):
                if position == row + 1:
                    return f"line {number}"
        return f"row {row}"
