"""Full-size image sets in MNIST's four files: Fashion-MNIST, and the user's own MNIST."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import int64

from shoal.core import BadInput

from .base import Dataset, datasets
from .download import cache_folder, download
from .idx import read_idx
from .images import Images

__all__ = ["FashionMnist", "MnistFiles"]

_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@datasets.register("mnist-idx")
@dataclass(frozen=True)
class MnistFiles(Images):
    """A folder with MNIST's four IDX files (``train-images-idx3-ubyte``, ...), plain or ``.gz``.

    Searched in this order: ``folder``; ``$SHOAL_DATA/NAME``; ``/usr/share/datasets/NAME``; the cache
    folder, to which ``url`` downloads what is missing.

    Args:
        folder: where the files lie; nothing else is searched then.
        url: the address to which ``/train-images-idx3-ubyte.gz`` and so on are appended.
        sha256: digests of the four ``.gz`` files: training images, training labels, test images,
            test labels.
    """

    folder: str = ""
    url: str = ""
    sha256: tuple[str, ...] = ()

    names: ClassVar[tuple[str, ...]] = tuple(str(d) for d in range(10))
    hint: ClassVar[str] = "folder = the folder with MNIST's four IDX files"

    def check(self) -> None:
        if self.url and (len(self.sha256) != 4 or any(len(d) != 64 for d in self.sha256)):
            raise BadInput("sha256", self.sha256, "four SHA-256 digests, one a file, where url is given")

    def load(self) -> Dataset:
        folder = self._find()
        arrays = []
        for number, name in enumerate(_FILES):
            path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
            if path is None:
                raise BadInput("data.folder", str(folder), f"a folder that holds {name} or {name}.gz")
            arrays.append(read_idx(path, 1 if number % 2 else 3))
        x, y, test_x, test_y = arrays
        if int(max(y.max(), test_y.max())) >= len(self.names):
            raise BadInput("data.folder", str(folder), f"labels 0..{len(self.names) - 1}")
        return Dataset(
            x=self.shape(x, 255.0),
            y=y.to(int64),
            classes=len(self.names),
            names=list(self.names),
            test_x=self.shape(test_x, 255.0),
            test_y=test_y.to(int64),
            source=f"{self.slug} ({folder}, {len(x):,} + {len(test_x):,} images)",
            standardize=self.standardize,
        )

    def _find(self) -> Path:
        if self.folder:
            folder = Path(self.folder).expanduser()
            if not folder.is_dir():
                raise BadInput("data.folder", self.folder, "a folder")
            return folder
        cached = cache_folder() / self.slug
        if self.url:
            for name, digest in zip(_FILES, self.sha256, strict=True):
                download(f"{self.url.rstrip('/')}/{name}.gz", cached / f"{name}.gz", digest)
            return cached
        places = [Path("/usr/share/datasets") / self.slug, cached]
        if home := os.environ.get("SHOAL_DATA"):
            places.insert(0, Path(home) / self.slug)
        for place in places:
            if place.is_dir():
                return place
        searched = ", ".join(str(p) for p in places)
        raise BadInput("data.folder", self.folder, f"{self.hint}; searched: {searched}")


@datasets.register("fashion-mnist")
@dataclass(frozen=True)
class FashionMnist(MnistFiles):
    """60,000 + 10,000 images of clothes, 28 x 28.

    Source: Xiao, Rasul & Vollgraf, "Fashion-MNIST" (2017). Debian ships it as a package; ``url``
    fetches the authors' own files, whose digests are known.
    """

    sha256: tuple[str, ...] = (
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    )

    names: ClassVar[tuple[str, ...]] = (
        "T-shirt", "Trouser", "Pullover", "Dress", "Coat",
        "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip
    hint: ClassVar[str] = "apt install dataset-fashion-mnist, or folder or url of its four IDX files"
