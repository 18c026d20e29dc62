"""What the documentation takes from the code: parts, commands, modules and results of the checks.

A page holds ``<!-- name: argument -->`` on a line of its own; the line becomes what the function of
that name returns. Only the build of the documentation imports this file.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import typer

from shoal.catalog.results import read_result, results_dir
from shoal.catalog.systems import rows as catalog_rows
from shoal.cli import app
from shoal.core import Registry, attacks, clocks, codecs, methods, rules, tasks, topologies
from shoal.core.part import Part
from shoal.network.links import Links
from shoal.network.network import Network
from shoal.network.weights import weightings
from shoal.runtimes.base import Plan, runtimes
from shoal.tasks.data.base import datasets
from shoal.tasks.models.base import models
from shoal.tasks.partition.base import partitions

ROOT = Path(__file__).resolve().parent.parent
REGISTRIES: dict[str, Registry[Any]] = {
    "method": methods, "task": tasks, "data": datasets, "partition": partitions, "model": models,
    "graph": topologies, "weights": weightings, "clock": clocks, "codec": codecs, "rule": rules,
    "attack": attacks, "runtime": runtimes,
}  # fmt: skip
CONFIGURED: dict[str, type[Part]] = {"plan": Plan, "network": Network, "links": Links}


def table(head: list[str], body: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines)


def first_sentence(thing: Any) -> str:
    """What a docstring begins with, on one line, roles of the markup left out."""
    text = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")
    return re.split(r"(?<=[^.]\.)\s+(?=[A-Z`])", text)[0].rstrip(":")


def value_of(value: Any) -> str:
    """A default as TOML writes it."""
    if isinstance(value, Part):
        return value.slug or "{}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(value_of(v) for v in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and len(value) > 24:
        return value[:8] + "..."
    return "none" if value is None else repr(value) if value == "" else str(value)


def fields_of(cls: type[Part]) -> str:
    """``name = default`` of every field."""
    shown = []
    for field in dataclasses.fields(cls):
        made = field.default
        if made is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            made = field.default_factory()
        given = made is not dataclasses.MISSING
        shown.append(f"`{field.name} = {value_of(made)}`" if given else f"`{field.name}` (required)")
    return ", ".join(shown)


def parts(kind: str) -> str:
    """Every registered part of a kind: its names, what it is, its fields with their defaults."""
    classes = REGISTRIES[kind].classes()
    body = []
    for name, cls in classes.items():
        if name != cls.slug:
            continue
        also = [n for n, c in classes.items() if c is cls and n != name]
        names = f"`{name}`" + "".join(f", `{n}`" for n in also)
        body.append([names, first_sentence(cls), fields_of(cls)])
    return table([kind, "what it is", "fields"], body)


def arguments(kind: str) -> str:
    """The fields of a configuration, with what its docstring says of each."""
    cls = CONFIGURED[kind]
    text = (inspect.getdoc(cls) or "").split("Args:\n", 1)[1]
    told = {
        name: " ".join(said.split()).replace("``", "`")
        for name, said in re.findall(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", text, re.M | re.S)
    }
    body = []
    for field in dataclasses.fields(cls):
        made = field.default
        if made is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            made = "" if field.name in CONFIGURED else field.default_factory()
        shown = "" if made is dataclasses.MISSING or made == "" else f"`{value_of(made)}`"
        body.append([f"`{field.name}`", shown, told[field.name]])
    return table(["field", "default", ""], body)


def commands(_: str) -> str:
    """Every command of the shell with its options, from the functions that it calls."""
    out = []
    groups = [
        ("", app),
        *((f"{g.name or g.typer_instance.info.name} ", g.typer_instance) for g in app.registered_groups),
    ]
    for group, command in [(name, c) for name, g in groups if g is not None for c in g.registered_commands]:
        assert command.callback is not None
        hints = get_type_hints(command.callback, include_extras=True)
        usage, body = group + (command.name or command.callback.__name__), []
        for name, given in inspect.signature(command.callback).parameters.items():
            info = hints[name].__metadata__[0]
            kind = str(get_args(hints[name])[0])
            needed = given.default is inspect.Parameter.empty
            if isinstance(info, typer.models.ArgumentInfo):
                many = "..." if "list" in kind else ""
                label = f"{name.upper()}{many}" if needed else f"[{name.upper()}{many}]"
                usage += f" {label}"
            else:
                # Inside Annotated the first name that is given stands where a default would.
                named = [d for d in (info.default, *(info.param_decls or ())) if isinstance(d, str)]
                label = next(iter(named), f"--{name.replace('_', '-')}")
                if "bool" not in kind:
                    words = {"int": "N", "Path": "PATH"}
                    word = next((w for k, w in words.items() if k in kind), "TEXT")
                    label += f" {info.metavar or word}"
            shown = "" if needed or given.default in (None, False) else f"`{given.default}`"
            body.append([f"`{label}`", info.help or "", shown])
        out.append(f"### `shoal {usage}`\n\n{inspect.getdoc(command.callback)}\n")
        if body:
            out.append(table(["", "", "default"], body) + "\n")
    return "\n".join(out)


def modules(packages: str) -> str:
    """One mkdocstrings block for each documented module of some packages or modules."""
    names = []
    for package in packages.split():
        found = importlib.import_module(package)
        inside = pkgutil.walk_packages(getattr(found, "__path__", []), package + ".")
        names += [package, *(m.name for m in inside)]
    made = [n for n in names if getattr(importlib.import_module(n), "__all__", None)]
    return "\n\n".join(f"::: {name}" for name in made)


def checks(_: str) -> str:
    """The recorded results of the checks, each with its figures."""
    found = [read_result(path) for path in sorted(results_dir().glob("*.json"))]
    if not found:
        return "No results are recorded yet: `make check` writes them to `results/checks/`."
    holding = sum(r.holds for r in found)
    out = [f"{holding} of {len(found)} measured claims hold."]
    for r in sorted(found, key=lambda r: r.number):
        verdict = "holds" if r.holds else "does not hold"
        seeds = ", ".join(map(str, r.seeds))
        out.append(f"### {r.number:03d} {r.system}: {verdict}\n\n{r.claim}\n")
        body = []
        for name, m in r.measured.items():
            each = ", ".join("none" if v is None else f"{v:.4g}" for v in m.per_seed)
            mean = "none" if m.mean is None else f"{m.mean:.4g}"
            bound = f"{m.relation} {m.threshold:g}" if m.relation and m.threshold is not None else ""
            mark = "" if m.holds is None else "holds" if m.holds else "**does not hold**"
            body.append([name, each, mean, bound, m.published or "", mark])
        out.append(table(["quantity", f"seeds {seeds}", "mean", "claim", "published", ""], body))
        out += [f"\n{note}" for note in r.notes]
        config = msgspec.json.encode(r.config).decode()
        out.append(f"\nMeasured {r.date} at `{r.commit}` in {r.wall_s:.0f} s with `{config}`.\n")
    return "\n".join(out)


def systems(_: str) -> str:
    """The catalogue."""
    body = [
        [f"{r['number']:03d}", f"`{r['slug']}`", r["status"], r["family"], r["title"]]
        for r in catalog_rows()
    ]
    return table(["no.", "slug", "status", "family", "title"], body)


def extras(_: str) -> str:
    """The extras of the package that its modules, or building and testing it, need."""
    told = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    users: dict[str, list[str]] = {"docs": ["`make docs`"], "dev": ["`make test`"]}
    for path in sorted((ROOT / "src" / "shoal").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
        for extra in dict.fromkeys(re.findall(r'need\("[\w.]+", "(\w+)"\)', path.read_text("utf-8"))):
            users.setdefault(extra, []).append(f"`{module}`")
    body = [
        [f"`{extra}`", ", ".join(re.split(r"[<>=]=", need)[0] for need in needs), ", ".join(users[extra])]
        for extra, needs in told["project"]["optional-dependencies"].items()
        if extra in users
    ]
    return table(["extra", "brings", "used by"], body)


def include(name: str) -> str:
    """A file of the root, its links made those of a page."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.sub(r"\]\(docs/", "](", text)


MARKERS: dict[str, Callable[[str], str]] = {
    f.__name__: f for f in (parts, arguments, commands, modules, checks, systems, extras, include)
}


def fill(markdown: str) -> str:
    """A page with its markers replaced."""
    line = re.compile(rf"^<!-- ({'|'.join(MARKERS)})(?:: ([\w. -]+?))? -->$", re.M)
    return line.sub(lambda found: MARKERS[found[1]](found[2] or ""), markdown)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for every page."""
    return fill(markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings name other things as ``:func:`name```: the role's name is left out."""
    return re.sub(r":(?:func|meth|class|mod|attr|data):(?=<code>)", "", html)
