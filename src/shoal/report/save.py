"""A run on disk: written whole or not at all, read back as the same report.

``report.json`` (summary, configuration, final figures, notes), the Parquet tables, ``config.toml``,
``model.safetensors`` or ``output.safetensors``, and ``report.html``. ``report.json`` goes first and
comes last: where it is, the rest is complete.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import tomli_w
from torch import Tensor

from shoal.core import BadInput, Report, tree

from .model_file import LARGEST, has_models, model_bytes, read_models
from .page import page
from .table import read_tables, tables

__all__ = ["load", "save"]

_FORMAT = 1
_FILES = (
    "report.json",
    "report.html",
    "config.toml",
    "model.safetensors",
    "output.safetensors",
    "metrics.parquet",
    "peers.parquet",
    "links.parquet",
    "graph.parquet",
)
_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def save(report: Report, folder: str | Path) -> Path:
    """Write the report into the folder (made where missing; other files in it are left alone).

    A report without output keeps the model file that is there: one that was loaded from a folder with
    the merged model only is saved again without loss.

    Sets ``report.out``. Adds a note where something could not be kept (very many models, outputs
    that are not data).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    report.out = str(folder)
    parts: dict[str, Path] = {}

    def part(name: str) -> Path:
        parts[name] = folder / f"{name}.part"
        return parts[name]

    try:
        _write_output(report, part)
        for name, table in tables(report).items():
            pq.write_table(table, part(name))
        part("config.toml").write_bytes(tomli_w.dumps(_toml(report.config)).encode())
        part("report.html").write_text(page(report), encoding="utf-8")
        part("report.json").write_text(json.dumps(_head(report), indent=1) + "\n", encoding="utf-8")
        for name in _FILES:
            if name not in parts and not (name == "model.safetensors" and report.output is None):
                (folder / name).unlink(missing_ok=True)  # of an earlier run in this folder
        for name, path in parts.items():
            path.replace(folder / name)
    finally:
        for path in parts.values():
            path.unlink(missing_ok=True)
    return folder


def load(folder: str | Path) -> Report:
    """Read a saved report. The output is [n, D] where models were kept, else its leaves by path.

    Raises:
        BadInput: no report there, or one that is damaged.
    """
    folder = Path(folder)
    path = folder / "report.json"
    if not path.is_file():
        raise BadInput("report", str(folder), "a folder that a run has written (it has no report.json)")
    try:
        head = json.loads(path.read_text(encoding="utf-8"))
        if head["format"] != _FORMAT:
            raise BadInput("report", str(path), f"format {_FORMAT}, not {head['format']}")
        report = Report(
            system=head["system"],
            config=_back(head["config"]),
            final=_back(head["final"]),
            notes=list(head["notes"]),
            status=head["status"],
            wall_s=float(head["wall_s"]),
            layers=[(name, slice(a, b), tuple(shape)) for name, a, b, shape in head["layers"]],
            out=str(folder),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput("report", str(path), f"not a readable report ({error!r})") from None
    read_tables(folder, report)
    if (folder / "model.safetensors").is_file():
        report.output = read_models(folder / "model.safetensors")[1]
    elif (folder / "output.safetensors").is_file():
        report.output = tree.read(folder / "output.safetensors")
        if report.output.keys() == {""}:
            report.output = report.output[""]
    return report


def _head(report: Report) -> dict[str, Any]:
    head: dict[str, Any] = _plain(
        {
            "format": _FORMAT,
            "system": report.system,
            "status": report.status,
            "wall_s": report.wall_s,
            "summary": report.summary(),
            "notes": report.notes,
            "final": report.final,
            "layers": [[name, s.start, s.stop, list(shape)] for name, s, shape in report.layers],
            "config": report.config,
        }
    )
    return head


def _write_output(report: Report, part: Any) -> None:
    if has_models(report):
        part("model.safetensors").write_bytes(model_bytes(report))
        if report.output.numel() > LARGEST:
            _note(report, f"only the merged model was kept: {report.output.numel():,} numbers in all")
        return
    kept: dict[str, Any] = {}
    for name, leaf in tree.leaves(report.output).items():
        if isinstance(leaf, Tensor | list | str | int | float) and _is_data(leaf):
            kept[name] = leaf
        elif leaf is not None:
            _note(report, f"output {name or 'value'} was not kept: a {type(leaf).__name__} is not data")
    if kept:
        # tree.save writes beside its target and renames; here the target itself is still a part.
        tree.save(kept, part("output.safetensors"))


def _is_data(leaf: Any) -> bool:
    if isinstance(leaf, Tensor):
        return True
    try:
        json.dumps(leaf)
    except TypeError:
        return False
    return True


def _note(report: Report, text: str) -> None:
    if text not in report.notes:
        report.notes.append(text)


def _plain(value: Any) -> Any:
    """As strict JSON holds it: numbers that are not finite become their names."""
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    if isinstance(value, str | int | float | bool | type(None)):
        return value
    return str(value)


def _back(value: Any) -> Any:
    """The inverse of :func:`_plain` for numbers."""
    if isinstance(value, str):
        return _FINITE.get(value, value)
    if isinstance(value, dict):
        return {k: _back(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_back(v) for v in value]
    return value


def _toml(value: Any) -> Any:
    """As TOML holds it: it has no null, so fields that are None (their default) are left out."""
    if isinstance(value, Tensor):
        return _toml(value.tolist())
    if isinstance(value, Mapping):
        return {str(k): _toml(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_toml(v) for v in value if v is not None]
    if isinstance(value, str | int | float | bool):
        return value
    return str(value)
