"""``shoal.run``: the same tree of fields from Python, TOML and the shell."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal.core import BadInput, Method, Report, literal, methods
from shoal.core.load import load_object
from shoal.core.part import fields_of
from shoal.network.dsl import read as read_scheme
from shoal.report.save import save
from shoal.runtimes.base import Plan, Progress, Runtime, runtimes

__all__ = ["merge", "method_of", "plan_of", "prepare_folder", "read_toml", "run", "settings"]

_PLAN = {"task", "network", "peers", "rounds", "seed", "every", "dtype"}


def merge(low: Any, high: Any) -> Any:
    """Tables field by field; ``high`` wins. A table with a name is a whole part and replaces the old
    one; a table without changes some fields of the old one, which may be written as a name."""
    if isinstance(low, Mapping) and isinstance(high, Mapping):
        if "name" in high:
            return dict(high)
        out = dict(low)
        for key, value in high.items():
            out[key] = merge(out[key], value) if key in out else value
        return out
    if isinstance(low, str) and isinstance(high, Mapping) and "name" not in high:
        return merge(fields_of(low), high)
    return high


def method_of(value: Any, fields: Mapping[str, Any] | None = None) -> Method:
    """A method from itself, its class, its slug, or ``file.py:Name`` outside the package."""
    if isinstance(value, Method):
        return value.replace(**fields) if fields else value
    if isinstance(value, str) and ":" in value:
        value = load_object(value)
    if isinstance(value, type) and issubclass(value, Method):
        value.slug = value.slug or value.__name__.lower()
        known = value.known()
        for key in fields or {}:
            if key not in known:
                raise BadInput(key, (fields or {})[key], f"{value.slug} has: {', '.join(known)}")
        return value(**(fields or {}))
    table = merge(fields_of(value) if isinstance(value, str) else value, dict(fields or {}))
    return methods(table)


def plan_of(system: Any, **given: Any) -> Plan:
    """The whole configuration of a run.

    Args:
        system: a method (instance, class, slug or ``file.py:Name``), a TOML file, a mapping with the
            keys of :class:`Plan`, or a scheme (``.dsl``, see :mod:`shoal.network.dsl`).
        given: fields of the plan; ``method`` holds the method's own fields. What is not given comes
            from the file, then from the method's recipe.

    Raises:
        BadInput: naming the field, the value and what is allowed.
    """
    table: dict[str, Any] = {}
    if isinstance(system, str | Path) and str(system).endswith(".toml"):
        table = read_toml(Path(system))
    elif isinstance(system, str | Path) and str(system).endswith(".dsl"):
        table = read_scheme(system).compile()
    elif isinstance(system, Mapping):
        table = dict(system)
    else:
        table = {"method": system}
    if "method" not in table:
        raise BadInput("method", None, f"{system} names no method")
    method = table.pop("method")
    fields = given.pop("method", {})
    chosen = method_of(method, fields)
    for key in table:
        if key not in _PLAN:
            raise BadInput(key, table[key], f"a run has: method, {', '.join(sorted(_PLAN))}")
    settings = merge(merge(dict(chosen.recipe), table), {k: v for k, v in given.items() if v is not None})
    settings.setdefault("task", "supervised")
    return Plan(method=chosen, **settings)


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as plain data.

    Raises:
        BadInput: not readable, or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput("file", str(path), error.strerror or "not readable") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput("file", str(path), f"not TOML: {error}") from None


def settings(pairs: list[str] | None) -> dict[str, Any]:
    """``["network.rule=krum", "lr=0.1"]`` as nested tables; the method's own fields under ``method``."""
    tree: dict[str, Any] = {}
    for pair in pairs or []:
        path, eq, value = pair.partition("=")
        if not eq or not path:
            raise BadInput("--set", pair, "write it as a.b=value")
        keys = path.strip().split(".")
        if keys[0] not in {"task", "network", "runtime", "method", "every", "dtype"}:
            keys.insert(0, "method")
        node = tree
        for depth, key in enumerate(keys[:-1]):
            held = node.setdefault(key, {})
            if not isinstance(held, dict):  # --set network.rule=krum, then --set network.rule.f=2
                held = node[key] = _table(held, ".".join(keys[: depth + 1]))
            node = held
        held = node.get(keys[-1])
        node[keys[-1]] = {**held, "name": value} if isinstance(held, dict) else literal(value)
    return tree


def _table(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, str):
        raise BadInput(path, value, "is a value and has no fields of its own")
    return fields_of(value)


def prepare_folder(out: str | Path, resume: bool = False) -> Path:
    """Make the folder of a run, or find out before anything runs that it cannot be written."""
    folder = Path(out)
    if resume:
        if not (folder / "checkpoint.safetensors").exists():
            raise BadInput("resume", str(folder), "no checkpoint there")
        return folder
    parent = folder
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise BadInput("out", str(folder), f"{parent} is not a folder that can be written")
    return folder


def run(
    system: Any,
    *,
    task: Any = None,
    network: Any = None,
    peers: int | None = None,
    rounds: int | None = None,
    seed: int | None = None,
    every: int | None = None,
    dtype: str | None = None,
    runtime: Any = "local",
    out: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    **fields: Any,
) -> Report:
    """Run one system and report.

    Args:
        system: see :func:`plan_of`.
        task: what one peer can do alone: a Task, its name, or its fields.
        network: a Network or its fields (graph, clock, links, codec, rule, attack, hostile, ...).
        peers, rounds, seed, every, dtype: see :class:`shoal.runtimes.base.Plan`.
        runtime: where it runs.
        out: folder for the report, tables, model and checkpoint; None: nothing is written.
        resume: go on from the checkpoint in ``out``.
        progress: called after every tick.
        **fields: the method's hyper-parameters.

    Raises:
        BadInput: something that was given cannot be used; nothing has run or been written.
        RunFailed: the run could not go on.
    """
    plan = system if isinstance(system, Plan) else plan_of(
        system, task=task, network=network, peers=peers, rounds=rounds, seed=seed, every=every,
        dtype=dtype, method=fields,
    )  # fmt: skip
    where: Runtime = runtimes(runtime)
    folder = None if out is None else prepare_folder(out, resume)
    report = where.run(
        plan,
        progress=progress,
        checkpoint=None if folder is None else folder / "checkpoint.safetensors",
        resume=resume,
    )
    if folder is not None:
        report.out = str(folder)
        save(report, folder)
    return report
