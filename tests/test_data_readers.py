"""CIFAR-10, SVHN, USPS, MNIST: small files in the true formats, wrong ones, none, and a server."""

import bz2
import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import threading
import urllib.error
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import sklearn.datasets
import torch
from scipy.io import savemat

from dither import files, idx, needs, readers, runner
from dither.data import Data, boxed
from dither.errors import DitherError
from dither.figure import Run, Silent
from dither.papers.levi2022 import table1
from dither.table import Table
from dither.train import train

RNG = np.random.default_rng(0)
N = 3  # images in each toy file


def pixels(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


# ------------------------------------------------------------------------- files in their formats


def python2_batch(x: np.ndarray, labels: list[int]) -> bytes:
    """What Python 2 wrote: {'data': array, 'labels': list} with protocol 2, strings as bytes."""

    def text(s: bytes) -> bytes:
        return b"U" + bytes([len(s)]) + s  # SHORT_BINSTRING

    def number(n: int) -> bytes:
        return b"J" + struct.pack("<i", n)  # BININT

    dtype = (
        b"cnumpy\ndtype\n" + text(b"u1") + number(0) + number(1) + b"\x87R"  # dtype('u1', 0, 1)
        + b"(" + number(3) + text(b"|") + b"NNN" + number(-1) * 2 + number(0) + b"tb"
    )  # fmt: skip
    shape = number(x.shape[0]) + number(x.shape[1]) + b"\x86"
    raw = b"T" + struct.pack("<i", x.nbytes) + x.tobytes()  # BINSTRING
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n"
        + b"cnumpy\nndarray\n" + number(0) + b"\x85" + text(b"b") + b"\x87R"
        + b"(" + number(1) + shape + dtype + b"\x89" + raw + b"tb"
    )  # fmt: skip
    entries = text(b"data") + array + text(b"labels") + b"](" + b"".join(map(number, labels)) + b"e"
    return b"\x80\x02}(" + entries + b"u."


def archive(batches: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, payload in {"readme.html": b"<html>", **batches}.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
    return buffer.getvalue()


def matlab(x: np.ndarray, y: list[int]) -> bytes:
    buffer = io.BytesIO()
    held = {"X": x.transpose(2, 3, 1, 0), "y": np.array(y, dtype=np.uint8)[:, None]}
    savemat(buffer, held, do_compression=True)
    return buffer.getvalue()


def libsvm_text(x: np.ndarray, y: list[int]) -> bytes:
    """Pixels 0 … 255 as −1 … 1, six decimals; labels from 1."""
    values = x.reshape(len(x), -1) / 255 * 2 - 1
    lines = (
        f"{label} " + " ".join(f"{i + 1}:{v:.6f}" for i, v in enumerate(row)) + " \n"
        for row, label in zip(values, y, strict=True)
    )
    return bz2.compress("".join(lines).encode())


def idx_file(values: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return head + values.tobytes()


CIFAR = {name: (pixels(N, 3072), [9, 0, i]) for i, name in enumerate(readers.BATCHES)}
BATCHES = {name: python2_batch(*batch) for name, batch in CIFAR.items()}
SVHN = {"train_32x32.mat": (pixels(N, 32, 3, 32).transpose(0, 2, 1, 3), [10, 1, 9])}
SVHN["test_32x32.mat"] = (pixels(N, 32, 3, 32).transpose(0, 2, 1, 3), [2, 10, 3])
USPS = {"usps.bz2": (pixels(N, 16, 16), [1, 10, 5]), "usps.t.bz2": (pixels(N, 16, 16), [7, 2, 10])}
MNIST = {
    "train-images-idx3-ubyte": pixels(N, 28, 28),
    "train-labels-idx1-ubyte": np.array([4, 0, 9], dtype=np.uint8),
    "t10k-images-idx3-ubyte": pixels(N, 28, 28),
    "t10k-labels-idx1-ubyte": np.array([1, 1, 2], dtype=np.uint8),
}
TOYS = {
    "cifar-10": {readers.TAR: archive(BATCHES)},
    "svhn": {name: matlab(*part) for name, part in SVHN.items()},
    "usps": {name: libsvm_text(*part) for name, part in USPS.items()},
    "mnist": {name: idx_file(part) for name, part in MNIST.items()},
}
IMAGES = {
    "cifar-10": (15, 3, (3, 32, 32)),
    "svhn": (3, 3, (3, 32, 32)),
    "usps": (3, 3, (1, 28, 28)),
    "mnist": (3, 3, (1, 28, 28)),
}


def md5(payload: bytes) -> str:
    return hashlib.md5(payload).hexdigest()


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A machine without data, where the sets are toy files."""
    for name, toys in TOYS.items():
        monkeypatch.setitem(files.SUMS, name, {file: md5(toys[file]) for file in toys})
        monkeypatch.setitem(files.MIRRORS, name, ())
    monkeypatch.setattr(readers, "BATCHES", {name: md5(BATCHES[name]) for name in BATCHES})
    monkeypatch.setattr(files, "PACKAGED", {})
    monkeypatch.setattr(files, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path / "sklearn"))
    monkeypatch.delenv("DITHER_DATA", raising=False)
    return tmp_path


def write(folder, name: str, **replaced: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file, payload in TOYS[name].items():
        payload = replaced.get(file, payload)
        remote = files.compressed(file)
        (folder / remote).write_bytes(payload if remote == file else gzip.compress(payload))


def raw(name: str) -> tuple[np.ndarray, ...]:
    return idx.load(name) if name == "mnist" else readers.load(name)


# -------------------------------------------------------------------------------------- contents


def test_cifar_is_read_as_python_2_wrote_it(world):
    write(world / "cache/cifar-10", "cifar-10")
    x_train, y_train, x_test, y_test = readers.load("cifar-10")
    *train, test = CIFAR.values()
    assert x_train.tobytes() == b"".join(x.tobytes() for x, _ in train)
    assert y_train.tolist() == [label for _, labels in train for label in labels]
    assert (x_test.tobytes(), y_test.tolist()) == (test[0].tobytes(), test[1])
    assert x_train.shape == (15, 3, 32, 32)  # 3072 bytes are three planes of 32 rows
    assert x_train[0, 2, 1, 5] == train[0][0][0, 2 * 1024 + 32 + 5]


def test_cifar_may_lie_there_unpacked(world, monkeypatch):
    monkeypatch.setenv("DITHER_DATA", str(world))
    folder = world / "cifar-10-batches-py"
    folder.mkdir()
    for name, payload in BATCHES.items():
        (folder / name).write_bytes(payload)
    assert readers.load("cifar-10")[0].shape == (15, 3, 32, 32)
    assert needs.found("cifar-10") == str(world)


@pytest.mark.parametrize("spoil", ["lost", "changed"])
def test_a_spoilt_unpacked_folder_says_which_batch(world, spoil):
    folder = world / "cache/cifar-10/cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, payload in BATCHES.items():
        (folder / name).write_bytes(payload)
    bad = folder / "data_batch_4"
    if spoil == "lost":
        bad.unlink()
    else:
        bad.write_bytes(BATCHES["test_batch"])
    message = {
        "lost": r"cifar-10-batches-py lacks data_batch_4: unpack .* there again",
        "changed": r"data_batch_4 is not the file it should be: the md5 .* replace it",
    }
    with pytest.raises(DitherError, match=message[spoil]):
        readers.load("cifar-10")


def test_a_pickle_runs_nothing(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    payload = pickle.dumps({b"data": Bomb(), b"labels": []})
    with pytest.raises(DitherError, match=r"no batch of CIFAR-10 \(it asks for io.open.*replace"):
        readers.unpickle(payload)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_may_not_hide_behind_numpys_name():
    payload = b"\x80\x02cnumpy.testing._private.utils\nrunstring\n(U\x011}tR."
    with pytest.raises(DitherError, match=r"asks for numpy.testing\S+runstring"):
        readers.unpickle(payload)


def test_svhn_writes_zero_as_ten(world):
    write(world / "cache/svhn", "svhn")
    x_train, y_train, x_test, y_test = readers.load("svhn")
    assert (y_train.tolist(), y_test.tolist()) == ([0, 1, 9], [2, 0, 3])
    x, _ = SVHN["train_32x32.mat"]
    assert x_train.shape == (N, 3, 32, 32)
    # X[row, column, colour, image], as Matlab holds it
    held = x.transpose(2, 3, 1, 0)
    assert x_train[1, 2, 30, 4] == held[30, 4, 2, 1]
    assert x_test.dtype == np.uint8


def test_usps_has_labels_from_1_and_values_from_minus_1(world):
    write(world / "cache/usps", "usps")
    x_train, y_train, _, y_test = readers.load("usps")
    assert (y_train.tolist(), y_test.tolist()) == ([0, 9, 4], [6, 1, 9])
    np.testing.assert_array_equal(x_train[:, 0], USPS["usps.bz2"][0])


def test_what_a_line_of_libsvm_leaves_out_is_zero():
    x, y = readers.libsvm(bz2.compress(b"3 2:1 256:-1\n"))
    assert y.tolist() == [2]
    assert x.ravel()[[0, 1, 2, 255]].tolist() == [128, 255, 128, 0]


@pytest.mark.parametrize("name", TOYS)
def test_images_keep_their_channels_when_asked(world, name):
    write(world / "cache" / name, name)
    n, n_test, shape = IMAGES[name]
    data = Data(name, standardise=False, flat=False).load()
    assert data.x_train.shape == (n, *shape)
    assert data.x_test.shape == (n_test, *shape)
    flat = Data(name, standardise=False).load()
    assert torch.equal(flat.x_train, data.x_train.flatten(1))
    assert 0 <= data.x_train.min() < data.x_train.max() <= 1
    assert data.classes == 10
    assert not Data(name, subset_seed=None).per_seed
    few = Data(name, train=2, test=1, subset_seed=1, standardise=False).load()
    rows = {tuple(x): y for x, y in zip(flat.x_train.tolist(), flat.y_train.tolist(), strict=True)}
    assert [rows[tuple(x)] for x in few.x_train.tolist()] == few.y_train.tolist()


def test_usps_digits_sit_in_mnists_box(world):
    write(world / "cache/usps", "usps")
    x = Data("usps", standardise=False, flat=False).load().x_train
    assert x[:, :, :4].abs().sum() + x[:, :, 24:].abs().sum() == 0
    assert x[..., :4].abs().sum() + x[..., 24:].abs().sum() == 0
    ones = boxed(torch.ones(1, 1, 16, 16))
    assert ones.sum() == 20 * 20


def test_grey_images_become_three_equal_channels(world):
    write(world / "cache/mnist", "mnist")
    grey = Data("mnist", standardise=False, flat=False).load()
    colour = Data("mnist-rgb", standardise=False, flat=False).load()
    assert colour.x_train.shape == (N, 3, 32, 32)
    for channel in range(3):
        assert torch.equal(colour.x_test[:, channel, 2:30, 2:30], grey.x_test[:, 0])
    assert torch.isclose(colour.x_train.sum(), 3 * grey.x_train.sum())
    assert torch.equal(colour.y_train, grey.y_train)
    assert Data("mnist-rgb").load().x_train.shape == (N, 3072)
    assert needs.found("mnist-rgb") == needs.found("mnist")


# ---------------------------------------------------------------------------------- wrong or none


@pytest.mark.parametrize("name", TOYS)
def test_a_wrong_file_is_an_error(world, name):
    file = next(iter(TOYS[name]))
    write(world / "cache" / name, name, **{file: TOYS[name][file] + b"\0"})
    with pytest.raises(DitherError, match=rf"{file}.* is not the file .* replace it or delete it"):
        raw(name)


@pytest.mark.parametrize("name", TOYS)
def test_a_truncated_file_is_an_error(world, name):
    write(world / "cache" / name, name)
    file = next(iter(TOYS[name]))
    path = world / "cache" / name / files.compressed(file)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DitherError, match=rf"{path.name} is (damaged|not the file).* replace it"):
        raw(name)


@pytest.mark.parametrize("name", TOYS)
def test_a_missing_file_is_one_sentence_that_says_where_it_goes(world, name):
    with pytest.raises(DitherError) as error:
        Data(name).load()
    sentence = str(error.value)
    file = files.compressed(next(iter(TOYS[name])))
    assert f"put {file}" in sentence
    assert str(world / "cache" / name) in sentence
    assert "DITHER_DATA" in sentence
    assert "\n" not in sentence
    assert f"put {file}" in needs.absent(name)
    assert needs.absent(name).startswith("not run: data absent")
    assert needs.fetchable(name)


def test_without_scikit_learns_copy_california_says_where_it_goes(world, monkeypatch):
    with pytest.raises(DitherError, match=r"california: .*sklearn/cal_housing_py3.pkz is missing"):
        Data("california").load()
    assert needs.found("california") is None
    assert f"put cal_housing_py3.pkz into {world / 'sklearn'}" in needs.advice("california")

    def offline(*, download_if_missing, **_):
        assert download_if_missing
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(sklearn.datasets, "fetch_california_housing", offline)
    with pytest.raises(DitherError, match=r"no network.* put it there, or set SCIKIT_LEARN_DATA"):
        needs.bring("california")


def test_california_is_a_table_like_boston(monkeypatch):
    tables = RNG.normal(size=(50, 8)), RNG.normal(size=50)
    monkeypatch.setattr(readers, "california", lambda: tables)
    data = Data("california").load()
    assert (data.x_train.shape, data.y_test.shape) == ((40, 8), (10, 1))
    torch.testing.assert_close(data.x_train.mean(0), torch.zeros(8), atol=1e-5, rtol=0)


def test_mnist_is_not_taken_for_fashion_mnist(world, monkeypatch):
    """The two have files of the same names."""
    monkeypatch.setenv("DITHER_DATA", str(world / "mine"))
    write(world / "mine", "mnist")
    assert needs.found("mnist") is None
    write(world / "mine/mnist", "mnist")
    assert raw("mnist")[1].tolist() == [4, 0, 9]


@pytest.mark.parametrize(
    ("parse", "payload", "message"),
    [
        (readers.unpickle, b"", "no batch of CIFAR-10"),
        (readers.unpickle, pickle.dumps({b"data": 1}), r"no batch of CIFAR-10 \(b'labels'\)"),
        (readers.unpickle, python2_batch(pixels(2, 12), [1, 2]), r"expected uint8 \[n, 3072\]"),
        (readers.unpickle, python2_batch(pixels(2, 3072), [1]), "2 images, but 1 labels"),
        (readers.unpickle, python2_batch(pixels(1, 3072), [10]), "labels from 10 to 10, expected"),
        (readers.mat, b"nothing like it", "no file of SVHN"),
        (readers.mat, matlab(pixels(2, 3, 8, 8), [1, 2]), r"expected uint8 \[32, 32, 3, n\]"),
        (readers.mat, matlab(pixels(2, 3, 32, 32), [1]), "2 images, but 1 labels"),
        (readers.libsvm, b"no bzip2", "no file of USPS"),
        (readers.libsvm, bz2.compress(b"1 1;2\n"), "no file of USPS"),
        (readers.libsvm, bz2.compress(b"1 257:0.5\n"), "no file of USPS"),
        (readers.libsvm, bz2.compress(b"1 1:2.5\n"), r"values in \[0, 2.5\], expected \[−1, 1\]"),
        (readers.libsvm, bz2.compress(b"0 1:0.5\n"), "labels from -1 to -1"),
    ],
)
def test_what_is_no_such_file_says_so(parse, payload, message):
    with pytest.raises(DitherError, match=message):
        parse(payload, "toy")


def test_an_archive_without_a_batch_says_so(world, monkeypatch):
    tar = archive({"data_batch_1": b"only one"})
    monkeypatch.setitem(files.SUMS, "cifar-10", {readers.TAR: md5(tar)})
    path = world / "cache/cifar-10" / readers.TAR
    path.parent.mkdir(parents=True)
    path.write_bytes(tar)
    with pytest.raises(DitherError, match=r"is no archive of CIFAR-10 \('data_batch_2'\)"):
        readers.load("cifar-10")


# ----------------------------------------------------------------------------------------- server


@pytest.fixture
def serve(world, monkeypatch):
    """serve(name, folder, …): mirrors of these folders, in this order; → what was asked of them."""
    servers, asked = [], []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    def start(name, *folders):
        urls = []
        for folder in folders:
            server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            servers.append(server)
            urls.append(f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setitem(files.MIRRORS, name, tuple(urls))
        return asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("name", TOYS)
def test_what_is_missing_is_fetched_once_from_the_first_good_mirror(world, serve, name):
    write(world / "wrong", name, **dict.fromkeys(TOYS[name], b"\x1f\x8bspoilt"))
    write(world / "good", name)
    asked = serve(name, world / "wrong", world / "good")
    assert needs.bring(name) == str(world / "cache" / name)
    assert len(asked) == 2 * len(TOYS[name])
    assert len(Data(name).load().y_train) == IMAGES[name][0]
    assert len(asked) == 2 * len(TOYS[name])  # from the cache now
    assert not needs.fetchable(name)


@pytest.mark.parametrize("name", TOYS)
def test_no_wrong_file_gets_into_the_cache(world, serve, name):
    write(world / "wrong", name, **dict.fromkeys(TOYS[name], b"another file"))
    serve(name, world / "wrong")
    with pytest.raises(DitherError, match=r"can't be fetched .* is not the file it should be"):
        raw(name)
    assert not [path for path in (world / "cache").rglob("*") if path.is_file()]


# -------------------------------------------------------------------------- figures that use them


def test_table_1_goes_from_mnist_to_usps_where_both_are(world):
    assert not any("usps" in repr(run) for run in table1.figure.at("smoke").values())
    for name in table1.THEIRS:
        write(world / "cache" / name, name)
    table1.usps.cache_clear()
    run = table1.figure.at("smoke")["FC none"]
    assert isinstance(run, Run)
    run = replace(run, data=replace(run.data, train=3, test=3))
    rows = train(run, [0], Silent())[0]
    assert table1.usps()[0].shape == (2 * N, 1, 28, 28)
    seen = Table.of({"FC none": {0: rows}})
    assert table1.target(seen) == "accuracy/usps"
    assert table1.shifted(seen, "FC none")[0] * 2 * N == pytest.approx(round(rows[-1][2] * 2 * N))
    table1.usps.cache_clear()


def test_figure_9_says_which_file_goes_where(world):
    results = runner.reproduce("levi2022/fig9", scale="smoke", out=world / "results")
    study = results.figures["levi2022/fig9"]
    assert study.problem.startswith("data absent: cifar-10")
    assert "put cifar-10-python.tar.gz into" in study.problem
    assert {claim["holds"] for claim in study.claims} == {None}
    assert "cifar-10-python.tar.gz" in results.page.read_text(encoding="utf-8")
