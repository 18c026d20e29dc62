"""What a sweep's file asks for: one configuration under many settings.

The file is a run's file (see :func:`shoal.experiment.plan_of`) with a table ``[sweep]``. Its keys are
paths of fields, written as for ``--set``; its values are lists of choices, and all combinations of
them run. With several tables ``[[sweep]]`` each is a product of its own (and a value that is no list
is its only choice), so that fields can vary together. ``seeds`` crosses every combination::

    method = "dsgd"
    peers = 16
    seeds = [0, 1, 2]

    [sweep]
    lr = [0.05, 0.1]
    "network.graph" = ["ring", "torus"]
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoal.core import BadInput
from shoal.experiment import merge, plan_of, read_toml
from shoal.runtimes.base import Plan
from shoal.runtimes.session import Session

__all__ = ["Sweep", "Trial", "read_sweep"]

PLAN = ("peers", "rounds", "seed", "every", "dtype", "task", "network", "method")
SEEDS = "seeds"


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Args:
        choice: what distinguishes it: field path -> value, the seed last where seeds vary.
        given: its whole configuration as plain data: the keyword ``system`` and fields for
            :func:`shoal.experiment.plan_of`.
        digest: of the configuration that they make.
    """

    choice: dict[str, Any]
    given: dict[str, Any]
    digest: str

    @property
    def name(self) -> str:
        return " | ".join(shown(path, value) for path, value in self.choice.items()) or self.digest

    def plan(self) -> Plan:
        return plan_of(**self.given)


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep, in the order of the file.

    Args:
        title: for the report.
        trials: each configuration once.
        paths: the fields that vary.
    """

    title: str
    trials: list[Trial]
    paths: list[str] = field(default_factory=list)


def shown(path: str, value: Any) -> str:
    """A choice as a name says it: names alone, numbers with their field (where ``path`` is given)."""
    if isinstance(value, Mapping):
        inside = ",".join(f"{k}={v}" for k, v in value.items() if k != "name")
        return f"{value.get('name', '')}({inside})" if inside else str(value.get("name", ""))
    return value if isinstance(value, str) else f"{path.rpartition('.')[2]}={value}".removeprefix("=")


def digest(plan: Plan) -> str:
    """Of the whole configuration; a method of the user's own counts with the text of its file."""
    text = json.dumps([plan.spec(), type(plan.method).__module__], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def read_sweep(path: Path, extra: Mapping[str, Any] | None = None) -> Sweep:
    """The runs that a file asks for, each checked as far as can be without running.

    Args:
        extra: fields that win over the file's (what ``--set`` gave).

    Raises:
        BadInput: naming the field of the first configuration that cannot be run.
    """
    table = read_toml(path)
    products = table.pop("sweep", None)
    seeds = table.pop(SEEDS, None)
    if products is None and seeds is None:
        raise BadInput("sweep", None, f"{path} has neither a table [sweep] nor a list of seeds")
    products = products if products is not None else {}
    if isinstance(products, Mapping):
        products = [products]
    if not isinstance(products, list) or not all(isinstance(p, Mapping) for p in products):
        raise BadInput("sweep", products, "a table of field = [choices], or several: [[sweep]]")
    if "method" not in table and not all("method" in p for p in products):
        raise BadInput("method", None, f"{path} names no method")
    crossed: dict[str, list[Any]] = {} if seeds is None else {"seed": _choices(SEEDS, seeds)}
    trials: dict[str, Trial] = {}
    for product in products:
        choices = dict(_flat(product)) | crossed
        for values in itertools.product(*choices.values()):
            trial = _trial(table, dict(zip(choices, values, strict=True)), dict(extra or {}))
            trials.setdefault(trial.digest, trial)
    if not trials:
        raise BadInput("sweep", products, "at least one choice for every field")
    every = list(trials.values())
    _check_once(every)
    paths = list(dict.fromkeys(path for trial in every for path in trial.choice))
    return Sweep(path.stem, every, paths)


def _flat(product: Mapping[str, Any], under: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Field path -> choices; tables in a table are longer paths."""
    for key, value in product.items():
        path = f"{under}.{key}" if under else key
        if isinstance(value, Mapping):
            yield from _flat(value, path)
        else:
            yield path, _choices(path, value)


def _choices(path: str, value: Any) -> list[Any]:
    if isinstance(value, list) and not value:
        raise BadInput(path, value, "at least one choice")
    return value if isinstance(value, list) else [value]


def _trial(table: Mapping[str, Any], choice: dict[str, Any], extra: dict[str, Any]) -> Trial:
    system, fields = dict(table), dict[str, Any]()
    for path, value in choice.items():
        head, _, rest = path.partition(".")
        if path == "method":
            system["method"] = value
        elif head == "method" or head not in PLAN:
            fields = merge(fields, _nested(rest if head == "method" else path, value))
        else:
            system = merge(system, _nested(path, value))
    fields = merge(fields, extra.pop("method", {}))
    given = {**extra, "system": system, "method": fields}
    plan = plan_of(**given)
    return Trial(choice, given, digest(plan))


def _nested(path: str, value: Any) -> dict[str, Any]:
    for key in reversed(path.split(".")):
        value = {key: value}
    return dict(value)


def _check_once(trials: list[Trial]) -> None:
    """Open what the plans name (graph, data, model), each different one once."""
    seen: set[str] = set()
    for trial in trials:
        plan = trial.plan()
        spec = plan.spec()
        key = json.dumps([type(plan.method).__name__, spec["task"], spec["network"], spec["peers"]])
        if key not in seen:
            seen.add(key)
            Session.open(plan)
