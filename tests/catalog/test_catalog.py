"""The catalogue of systems, and the judging of claims."""

from __future__ import annotations

import importlib
import math
import re
import sys
import types
from pathlib import Path

import pytest

from shoal.catalog import claims, results, systems
from shoal.catalog.claims import Bound, Claim, Progress, claim, find_claim, judge, run_claim
from shoal.catalog.results import Result, read_result, save_result
from shoal.core import BadInput, RunFailed, ShoalError


class Fake(Claim):
    """Measures what the test says."""

    slug = "fedavg"
    bounds = (Bound("ratio", ">=", 4.0, "10 to 100"), Bound("gap", "<=", 0.1), Bound("bytes", "==", 8.0))
    config = {"peers": 40}
    notes = ("smaller than the paper",)
    table: dict[int, dict[str, float]] = {
        10: {"ratio": 3.0, "gap": 0.05, "bytes": 8.0, "rounds": 12.0},
        11: {"ratio": 6.0, "gap": 0.15, "bytes": 8.0, "rounds": 14.0},
        12: {"ratio": 4.5, "gap": 0.05, "bytes": 8.0, "rounds": 16.0},
    }

    def measure(self, seed: int, progress: Progress) -> dict[str, float]:
        progress("half", 0.5)
        return self.table[seed]


def fake(**changes: dict[str, float]) -> Fake:
    made = Fake()
    made.table = {seed: dict(row) for seed, row in Fake.table.items()}
    for seed, row in changes.items():
        made.table[int(seed[1:])] |= row
    return made


# The catalogue.


def test_every_system_is_there_once() -> None:
    found = systems.systems()
    assert [s.number for s in found] == list(range(1, 147))
    assert len({s.slug for s in found}) == len({s.title for s in found}) == 146
    for s in found:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", s.slug)
        assert re.fullmatch(r"shoal(\.[a-z0-9_]+)+", s.home)
        assert s.title == s.title.strip() and s.source and s.family
        assert 40 <= len(s.claim) <= 200 and s.claim.endswith(".")


def test_systems_are_found_by_slug_and_number() -> None:
    assert systems.system("fedavg") is systems.system(62) is systems.system("062") is systems.system("62")
    with pytest.raises(BadInput, match="did you mean fedavg"):
        systems.system("fedagv")
    for bad in (0, 147, "0", "", "³"):
        with pytest.raises(BadInput):
            systems.system(bad)


def test_rows_have_the_fields_that_scripts_rely_on() -> None:
    rows = systems.rows()
    assert len(rows) == 146
    assert list(rows[0]) == ["number", "slug", "title", "family", "module", "status", "claim"]
    assert {row["status"] for row in rows} <= {"works", "partial", "absent"}


def test_recorded_results_are_readable_and_agree_with_the_catalogue() -> None:
    for path in sorted(results.results_dir().glob("*.json")):
        found = read_result(path)
        assert found.number == systems.system(found.system).number


def test_the_status_is_what_the_recorded_result_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systems, "results_dir", lambda: tmp_path)
    fedavg = systems.system("fedavg")
    assert systems.status(fedavg) == "absent"
    save_result(judge(fake()), tmp_path)
    assert systems.status(fedavg) == "works"
    save_result(judge(fake(s10={"gap": 1.0})), tmp_path)
    assert systems.status(fedavg) == "partial"


def test_results_lie_in_the_source_tree_or_beside_the_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "src" / "shoal" / "catalog"
    monkeypatch.setattr(results, "__file__", str(home / "results.py"))
    assert results.results_dir() == home / "results"
    (tmp_path / "pyproject.toml").touch()
    assert results.results_dir() == tmp_path / "results" / "checks"


# Bounds.


@pytest.mark.parametrize(
    ("bound", "values", "holds"),
    [
        (Bound("x", ">=", 1.0), [0.5, 1.5], True),
        (Bound("x", ">=", 1.0), [0.5, 1.4], False),
        (Bound("x", "<=", 1.0), [0.5, 1.5], True),
        (Bound("x", "<=", 1.0), [1.1], False),
        (Bound("x", "==", 0.1), [0.1, 0.1, 0.1], True),
        (Bound("x", "==", 0.0), [-1.0, 1.0], False),
        (Bound("x", ">=", 0.0), [1.0, math.nan], False),
        (Bound("x", "<=", 0.0), [math.nan], False),
        (Bound("x", ">=", 0.0), [math.inf], False),
        (Bound("x", ">=", 0.0), [], False),
    ],
)
def test_bounds_are_judged_on_the_mean_and_never_on_nan(
    bound: Bound, values: list[float], holds: bool
) -> None:
    assert bound.holds(values) is holds


# Claims.


def test_a_claim_is_measured_on_each_seed_and_judged_on_the_mean() -> None:
    told: list[tuple[str, float]] = []
    found = judge(fake(), progress=lambda text, share: told.append((text, share)))
    assert found.holds and (found.system, found.number, found.seeds) == ("fedavg", 62, [10, 11, 12])
    ratio = found.measured["ratio"]
    assert (ratio.per_seed, ratio.mean, ratio.threshold, ratio.relation, ratio.holds, ratio.published) == (
        [3.0, 6.0, 4.5], 4.5, 4.0, ">=", True, "10 to 100",
    )  # fmt: skip
    rounds = found.measured["rounds"]
    assert (rounds.mean, rounds.holds, rounds.threshold) == (14.0, None, None)
    assert found.claim == systems.system("fedavg").claim and found.config == {"peers": 40}
    assert found.commit and re.fullmatch(r"\d{4}-\d\d-\d\d", found.date)
    assert told[0] == ("seed 10: starts", 0.0) and told[-1] == ("seed 12: done", 1.0)
    assert ("seed 11: half", 0.5) in told
    assert [share for _, share in told] == sorted(share for _, share in told)


def test_one_seed_that_is_not_a_number_fails_the_claim() -> None:
    found = judge(fake(s11={"ratio": math.nan}))
    assert not found.holds and found.measured["ratio"].holds is False
    assert found.measured["gap"].holds is True


def test_a_run_that_diverges_fails_the_claim_and_is_named() -> None:
    class Diverging(Fake):
        def measure(self, seed: int, progress: Progress) -> dict[str, float]:
            if seed == 11:
                raise RunFailed("diverged")
            return super().measure(seed, progress)

    found = judge(Diverging())
    assert not found.holds
    assert found.notes == ["smaller than the paper", "seed 11: diverged"]
    assert found.measured["ratio"].per_seed[0] == 3.0 and math.isnan(found.measured["rounds"].per_seed[1])


def test_a_claim_that_forgets_a_quantity_is_an_error() -> None:
    broken = fake()
    broken.table = {seed: {"ratio": 1.0} for seed in (10, 11, 12)}
    with pytest.raises(ShoalError, match="did not measure gap, bytes"):
        judge(broken)


@pytest.mark.parametrize("seeds", [[], [10, 10], [-1]])
def test_odd_seeds_are_refused(seeds: list[int]) -> None:
    with pytest.raises(BadInput, match="seeds"):
        judge(fake(), seeds)


def test_claims_are_found_by_the_module_named_after_the_slug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_CLAIMS", {})
    name = "shoal.catalog.checks.fedavg"
    module = types.ModuleType(name)

    def load(wanted: str) -> types.ModuleType:
        if wanted != name:
            raise ModuleNotFoundError(f"No module named {wanted!r}", name=wanted)
        module.Found = claim("fedavg")(type("Found", (Fake,), {}))  # type: ignore[attr-defined]
        return module

    monkeypatch.setattr(importlib, "import_module", load)
    assert isinstance(find_claim("fedavg"), Fake)
    told = run_claim("fedavg", range(10, 12))
    assert told["seeds"] == [10, 11] and told["measured"]["ratio"]["mean"] == 4.5
    with pytest.raises(BadInput, match="has no check"):
        find_claim("dice")
    with pytest.raises(BadInput, match="unknown system"):
        find_claim("nothing-like-it")
    assert name not in sys.modules or sys.modules[name] is not module


def test_a_check_whose_own_imports_are_missing_is_not_taken_for_no_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(wanted: str) -> types.ModuleType:
        raise ModuleNotFoundError("No module named 'ray'", name="ray")

    monkeypatch.setattr(claims, "_CLAIMS", {})
    monkeypatch.setattr(importlib, "import_module", load)
    with pytest.raises(ModuleNotFoundError):
        find_claim("fedavg")


def test_two_claims_of_one_system_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_CLAIMS", {"fedavg": Fake})
    other = type("Other", (Fake,), {"__module__": "elsewhere"})
    with pytest.raises(ShoalError, match="twice"):
        claim("fedavg")(other)


def test_every_check_in_the_package_has_a_system() -> None:
    folder = Path(claims.__file__).parent / "checks"
    modules = {p.stem for p in folder.glob("*.py")} - {"__init__"}
    known = {s.slug.replace("-", "_") for s in systems.systems()}
    assert modules <= known
    assert {slug.replace("-", "_") for slug in claims.claimed()} >= modules


# The files.


def test_a_result_is_written_whole_and_reads_back(tmp_path: Path) -> None:
    found = judge(fake())
    path = save_result(found.plain(), tmp_path / "new")
    assert path.name == "fedavg.json" and [p.name for p in path.parent.iterdir()] == ["fedavg.json"]
    assert read_result(path) == found
    failed = judge(fake(s11={"ratio": math.nan}))
    again = read_result(save_result(failed, tmp_path))
    assert again.measured["ratio"].per_seed == [3.0, None, 4.5] and again.measured["ratio"].mean is None


def test_results_that_contradict_themselves_or_their_name_are_refused(tmp_path: Path) -> None:
    failed: Result = judge(fake(s10={"gap": 1.0}))
    failed.holds = True
    with pytest.raises(BadInput, match="gap does not"):
        read_result(save_result(failed, tmp_path))
    (tmp_path / "dice.json").write_bytes(save_result(judge(fake()), tmp_path).read_bytes())
    with pytest.raises(BadInput, match="of system fedavg"):
        read_result(tmp_path / "dice.json")
    (tmp_path / "fedavg.json").write_text("{")
    with pytest.raises(BadInput, match="not a readable"):
        read_result(tmp_path / "fedavg.json")
