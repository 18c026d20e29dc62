"""What the documentation prints runs, and what it names exists."""

from __future__ import annotations

import importlib.util
import re
import runpy
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from shoal.cli import app, main

LIVE = {"peer", "relay"}
"""Commands of real peers, which wait for each other: tested in tests/p2p, here only read."""
ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    "README.md", "CONTRIBUTING.md", "docs/index.md", "docs/getting-started.md", "docs/concepts.md",
    "docs/combining.md", "docs/architecture.md", "docs/peers.md", "docs/cluster.md",
]  # fmt: skip
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
NAMED = re.compile(r"# ([\w.-]+\.(?:py|toml))\n")
PROMISE = re.compile(r"^print\(.*\)  # ([\d. ]+)$", re.M)
SETUP = ("make ", "pip ", "python3 -m venv", "shoal demo", "shoal check", "shoal catalog")
"""Commands that install, or that take minutes; their options are tested in test_cli.py."""


@pytest.fixture(scope="module")
def hooks() -> Any:
    spec = importlib.util.spec_from_file_location("shoal_docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of the fenced blocks that stand at the margin, in their order."""
    return FENCE.findall((ROOT / page).read_text(encoding="utf-8"))


def commands(page: str) -> list[str]:
    lines = [line for kind, text in blocks(page) if kind == "sh" for line in text.splitlines()]
    return [line for line in lines if line.strip() and not line.startswith(SETUP)]


def parse(args: list[str]) -> None:
    """Only read a command line: every option is there, every value of its kind."""
    command: Any = get_command(app)
    while hasattr(command, "commands"):
        name, *args = args
        command = command.commands[name]
    command.make_context(command.name, args)


def perform(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command line, in this process: a new one would spend its time importing torch."""
    name, *args = shlex.split(line, comments=True)
    monkeypatch.setattr(sys, "argv", [name, *args])
    if name == "python":
        runpy.run_path(args[0], run_name="__main__")
        return
    assert name == "shoal", line
    if args[0] in LIVE:
        parse(args)
        return
    try:
        main()
    except SystemExit as done:
        assert not done.code, line


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_prints_runs(
    page: str,
    hooks: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    loaded = set(sys.modules)
    for registry in hooks.REGISTRIES.values():  # what a page registers is gone after its test
        registry.classes()
        monkeypatch.setattr(registry, "_found", dict(registry._found))
    scripts = []
    for kind, text in blocks(page):
        named = NAMED.match(text)
        if kind in {"python", "toml"} and named:
            (tmp_path / named[1]).write_text(text, encoding="utf-8")
            scripts += [named[1]] if f"python {named[1]}" in (ROOT / page).read_text() else []
        elif kind == "toml":
            tomllib.loads(text)
        elif kind == "python" and "import" in text:
            exec(compile(text, page, "exec"), {"__name__": "__main__"})
        elif kind == "python":
            compile(text, page, "exec")
    lines = commands(page)
    try:
        for script in scripts:
            if f"python {script}" not in lines:
                perform(f"python {script}", monkeypatch)
        for line in lines:
            perform(line, monkeypatch)
    finally:
        for name in set(sys.modules) - loaded:
            if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]
    # What the comment behind a print promises is printed: shares to 0.03, counts exactly.
    told = capsys.readouterr().out.splitlines()
    promises = [p for _, text in blocks(page) for p in PROMISE.findall(text)]
    assert promises or page.startswith("docs/")
    for promised in promises:
        assert any(_close(line, [float(v) for v in promised.split()]) for line in told), promised


def _close(line: str, wanted: list[float]) -> bool:
    try:
        found = [float(v) for v in line.split()]
    except ValueError:
        return False
    return len(found) == len(wanted) and all(
        abs(a - b) <= (0.03 if b < 1 else 0) for a, b in zip(found, wanted, strict=True)
    )


def test_the_parts_that_the_readme_lists_exist(hooks: Any) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## What combines")[1]
    rows = re.findall(r"^\| `(?:\w+\.)?(\w+)`[^|]*\| (.+) \|$", text, re.M)
    assert len(rows) == 10
    for kind, names in rows:
        known = hooks.REGISTRIES[kind].classes()
        unknown = [name for name in re.findall(r"`([\w-]+)`", names) if name not in known]
        assert not unknown, f"{kind}: {unknown}"


def test_every_page_is_filled_and_no_part_or_command_is_left_out(hooks: Any) -> None:
    filled = {
        path.name: hooks.fill(path.read_text(encoding="utf-8")) for path in (ROOT / "docs").rglob("*.md")
    }
    for name, text in filled.items():
        assert not re.search(rf"^<!-- (?:{'|'.join(hooks.MARKERS)})\b", text, re.M), name
    for kind, registry in hooks.REGISTRIES.items():
        page = filled["index.md" if kind == "method" else "combining.md"]
        missing = [name for name in registry.classes() if f"`{name}`" not in page]
        assert not missing, f"{kind}: {missing}"
    for command in (
        "run", "compare", "check", "catalog", "conform", "report", "topology", "bench", "demo", "sweep",
        "relay", "peer init", "peer run", "peer invite", "peer status", "peer export",
    ):  # fmt: skip
        assert f"### `shoal {command}" in filled["getting-started.md"]
    assert "`--set a.b=value`" in filled["getting-started.md"]
    assert "::: shoal.core.tick" in filled["core.md"]


def test_every_module_with_public_names_is_in_the_reference(hooks: Any) -> None:
    text = "".join(hooks.fill(p.read_text(encoding="utf-8")) for p in (ROOT / "docs" / "api").glob("*.md"))
    documented = set(re.findall(r"^::: ([\w.]+)$", text, re.M))
    for room in ("core", "tasks", "network", "wire", "defend", "attack", "methods", "trust"):
        for path in (ROOT / "src" / "shoal" / room).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
            if path.name != "__init__.py" and re.search(
                r"^__all__", path.read_text(encoding="utf-8"), re.M
            ):
                assert name in documented


def test_the_layers_drawn_are_those_that_are_enforced() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = contracts["tool"]["importlinter"]["contracts"][0]["layers"]
    enforced = [{name.strip().removeprefix("shoal.") for name in layer.split("|")} for layer in layers]
    picture = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("```text\n")[1]
    lines = [line for line in picture.split("```")[0].splitlines() if "─" not in line]
    drawn = [
        set(re.split(r"\s{2,}", line.strip())[: len(rooms)])
        for line, rooms in zip(lines, enforced, strict=True)
    ]
    assert drawn == enforced


def test_recorded_results_are_shown_with_every_figure(
    hooks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shoal.catalog.results import Measured, Result, save_result

    monkeypatch.setattr(hooks, "results_dir", lambda: tmp_path)
    assert "No results are recorded" in hooks.checks("")
    measured = {
        "gap": Measured([0.5, None], None, 0.1, ">=", False, "0.2"),
        "extra": Measured([1.0, 2.0], 1.5),
    }
    save_result(
        Result(
            "fedavg", 62, "A claim.", [10, 11], measured, False, "abc", "2026-01-01", {}, 1.0, ["Smaller."]
        ),
        tmp_path,
    )
    shown = hooks.checks("")
    assert "0 of 1 measured claims hold" in shown and "062 fedavg: does not hold" in shown
    assert "| gap | 0.5, none | none | >= 0.1 | 0.2 | **does not hold** |" in shown
    assert "| extra | 1, 2 | 1.5 |  |  |  |" in shown and "Smaller." in shown
