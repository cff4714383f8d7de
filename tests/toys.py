"""Small files of CIFAR-10, SVHN, USPS and MNIST in their formats, and a machine without data."""

import bz2
import gzip
import hashlib
import io
import struct
import tarfile

import numpy as np
from scipy.io import savemat

from dither.lab.data import content, files, idx, readers

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


def by_definition(parts: list) -> str:
    """sha256 of the sorted sha256 of each image's label byte and pixels."""
    each = [bytes([n]) + image.tobytes() for x, y in parts for image, n in zip(x, y, strict=True)]
    digests = sorted(hashlib.sha256(one).digest() for one in each)
    return hashlib.sha256(b"".join(digests)).hexdigest()


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
CONTENT = {  # by the definition, of the toys
    "cifar-10": {
        "train": by_definition([batch for name, batch in CIFAR.items() if name != "test_batch"]),
        "test": by_definition([CIFAR["test_batch"]]),
    },
    "usps": {
        split: by_definition([(x, [label - 1 for label in y])])
        for split, (x, y) in zip(("train", "test"), USPS.values(), strict=True)
    },
}
IMAGES = {
    "cifar-10": (15, 3, (3, 32, 32)),
    "svhn": (3, 3, (3, 32, 32)),
    "usps": (3, 3, (1, 28, 28)),
    "mnist": (3, 3, (1, 28, 28)),
}


def md5(payload: bytes) -> str:
    return hashlib.md5(payload).hexdigest()


def without_data(tmp_path, monkeypatch) -> None:
    """A machine without data, where the sets are toy files."""
    for name, toys in TOYS.items():
        monkeypatch.setitem(files.SUMS, name, {file: md5(toys[file]) for file in toys})
        monkeypatch.setitem(files.MIRRORS, name, ())
    monkeypatch.setattr(readers, "BATCHES", {name: md5(BATCHES[name]) for name in BATCHES})
    monkeypatch.setattr(files, "PACKAGED", {})
    monkeypatch.setattr(files, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(content, "CONTENT", CONTENT)
    monkeypatch.delenv("DITHER_DATA", raising=False)


def write(folder, name: str, **replaced: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file, payload in TOYS[name].items():
        payload = replaced.get(file, payload)
        remote = files.compressed(file)
        (folder / remote).write_bytes(payload if remote == file else gzip.compress(payload))


def raw(name: str) -> tuple[np.ndarray, ...]:
    return idx.load(name) if name == "mnist" else readers.load(name)
