"""CIFAR-10, SVHN, USPS, MNIST: wrong files, missing ones, a server; figures that use them."""

import bz2
import gzip
import pickle
import threading
import tracemalloc
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from toys import (
    BATCHES,
    IMAGES,
    TOYS,
    N,
    archive,
    matlab,
    md5,
    pixels,
    python2_batch,
    raw,
    without_data,
    write,
)

from dither.errors import DitherError
from dither.lab import reproduce as runner
from dither.lab.data import files, needs, readers
from dither.lab.data.sets import Data
from dither.lab.figure import Run, Silent
from dither.lab.table import Table
from dither.lab.training.loop import train
from dither.papers.levi2022 import table1


@pytest.fixture
def world(tmp_path, monkeypatch):
    without_data(tmp_path, monkeypatch)
    return tmp_path


# ---------------------------------------------------------------------------------- wrong or none


@pytest.mark.parametrize("name", TOYS)
def test_a_wrong_file_is_an_error(world, name):
    file = next(iter(TOYS[name]))
    others = {  # of these the content counts, not the bytes
        "cifar-10": archive(dict.fromkeys(BATCHES, BATCHES["test_batch"])),
        "usps": TOYS["usps"]["usps.t.bz2"],
    }
    wrong = others.get(name, TOYS[name][file] + b"\0")
    write(world / "cache" / name, name, **{file: wrong})
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
    assert str(Path.home()) not in needs.absent(name)
    assert needs.fetchable(name)


def batch_of(labels) -> bytes:
    return pickle.dumps({b"data": pixels(2, 3072), b"labels": labels})


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
        (
            readers.unpickle,
            pickle.dumps({b"data": 1, b"labels": 2}),
            "data are a int, labels a int",
        ),
        (readers.unpickle, batch_of([[[0]] * 9]), "a label is no whole number"),
        (readers.unpickle, batch_of(np.zeros((2, 9), int)), r"labels are int64 \(2, 9\)"),
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


def bombs() -> dict[str, tuple[str, str, bytes]]:
    """Small files that hold hundreds of megabytes: data set → (file, limit, payload)."""
    zeros = bytes(300_000_000)
    return {
        "mnist": ("train-images-idx3-ubyte.gz", "damaged", gzip.compress(zeros, 1)),
        "cifar-10": (readers.TAR, "not the file", gzip.compress(zeros, 1)),
        "usps": ("usps.bz2", "not the file", bz2.compress(zeros, 1)),
    }


@pytest.mark.parametrize("name", ["mnist", "cifar-10", "usps"])
def test_a_file_that_unpacks_without_end_is_stopped_at_a_limit(world, monkeypatch, name):
    file, said, payload = bombs()[name]
    write(world / "cache" / name, name)
    (world / "cache" / name / file).write_bytes(payload)
    for limit in ("LARGEST_TAR", "LARGEST_TEXT"):
        monkeypatch.setattr(readers, limit, 1000)
    monkeypatch.setattr(files, "LARGEST_IDX", 100_000)
    tracemalloc.start()
    with pytest.raises(DitherError, match=said):
        raw(name)
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()


def test_an_archive_without_a_batch_says_so(world, monkeypatch):
    tar = archive({"data_batch_1": BATCHES["data_batch_1"]})
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
    assert table1.target(seen) == "accuracy/usps test"
    for quantity, digits in (("accuracy/usps", 2 * N), ("accuracy/usps test", N)):
        right = seen.last("FC none", quantity)[0] * digits
        assert right == pytest.approx(round(right))
    assert table1.shifted(seen, "FC none") == seen.last("FC none", "accuracy/usps test")
    table1.usps.cache_clear()


def test_figure_9_says_which_file_goes_where(world):
    results = runner.reproduce("levi2022/fig9", scale="smoke", out=world / "results")
    study = results.figures["levi2022/fig9"]
    assert study.problem.startswith("data absent: cifar-10")
    assert "put cifar-10-python.tar.gz into" in study.problem
    assert {claim["holds"] for claim in study.claims} == {None}
    assert "cifar-10-python.tar.gz" in results.page.read_text(encoding="utf-8")
