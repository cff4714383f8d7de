"""Where the files of a data set are, and how a missing file is fetched and checked.

A set is a table file → checksum (md5 or sha256, by its length), as its authors or the usual readers
publish it. For gzipped idx files it is the checksum of the decoded bytes: gzip writes times and
names, so that compressed copies differ. So one table verifies every source.
"""

import gzip
import hashlib
import io
import os
import threading
import zlib
from os.path import isdir, isfile
from pathlib import Path
from typing import Any, cast

from dither.errors import DitherError

SUMS = {
    "fashion-mnist": {  # training images and labels, test images and labels
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",  # noqa: E501
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",  # noqa: E501
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",  # noqa: E501
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",  # noqa: E501
    },
    "mnist": {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",  # noqa: E501
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",  # noqa: E501
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",  # noqa: E501
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",  # noqa: E501
    },
    "cifar-10": {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"},
    "svhn": {
        "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
        "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
    },
    "usps": {
        "usps.bz2": "ec16c51db3855ca6c91edd34d0e9b197",
        "usps.t.bz2": "8ea070ee2aca1ac39742fdd1ef5ed118",
    },
}
UNPACKED = {"cifar-10-python.tar.gz": "cifar-10-batches-py"}  # a folder that may stand for the file
PACKAGED = {"fashion-mnist": Path("/usr/share/datasets/fashion-mnist")}  # by Debian
HINTS = {
    "fashion-mnist": "; on Debian and Ubuntu the package dataset-fashion-mnist brings them",
    "cifar-10": "; the folder cifar-10-batches-py, unpacked from it, serves as well",
}
MIRRORS = {
    "fashion-mnist": (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    ),
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "http://yann.lecun.com/exdb/mnist/",
    ),
    "cifar-10": (
        "https://www.cs.toronto.edu/~kriz/",
        "https://dataset.bj.bcebos.com/cifar/",
    ),
    "svhn": (  # one host, as for USPS: no other copy of these files is known
        "http://ufldl.stanford.edu/housenumbers/",
        "https://ufldl.stanford.edu/housenumbers/",
    ),
    "usps": (
        "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/",
        "http://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/",
    ),
}
GZIP = b"\x1f\x8b"  # how a gzipped file begins
LARGEST = 256_000_000  # bytes of a file; the largest, SVHN's, has 182 million
LARGEST_IDX = 64_000_000  # bytes once decompressed; 60 000 images have 47 million
PARTS = 10_000  # of a compressed file; the published ones are in one
SAID = 300  # letters of a mirror's error that are shown
TIMEOUT = 30  # seconds without an answer before the next mirror is tried
LONGEST = 3600  # seconds of a download
CHUNK = 1024  # bytes that are read at once, so that an endless download is given up soon


def compressed(file: str) -> str:
    """The name of a file on its mirrors, where idx files are gzipped."""
    return f"{file}.gz" if file.endswith("-ubyte") else file


def mismatch(payload: bytes, checksum: str, where: Path) -> DitherError | None:
    """A sentence about a payload without this checksum; "" if it has it."""
    kind = "md5" if len(checksum) == 32 else "sha256"
    if (got := hashlib.new(kind, payload, usedforsecurity=False).hexdigest()) == checksum:
        return None
    return DitherError(
        f"{where} is not the file it should be: the {kind} of its content is {got[:12]}…, "
        f"expected {checksum[:12]}…; replace it or delete it"
    )


def decoded(raw: bytes, largest: int) -> bytes:
    """The gzipped bytes. Raises ValueError if there are more than `largest`, before they fill the
    memory.
    """
    if raw.count(GZIP + b"\x08") > PARTS:  # each may be empty, and still takes its time
        raise ValueError(f"it is in more than {PARTS} parts")
    payload = gzip.GzipFile(fileobj=io.BytesIO(raw)).read(largest + 1)
    if len(payload) > largest:
        raise ValueError(f"it holds more than {largest} bytes")
    return payload


def loaded(path: Path, largest: int | None = None) -> bytes:
    """The bytes of a file. Raises DitherError if it can't be read or is too large to be right."""
    largest = LARGEST if largest is None else largest
    try:
        if (size := path.stat().st_size) > largest:
            raise DitherError(
                f"{path} is not the file it should be: it has {size} bytes, more than {largest}; "
                "replace it or delete it"
            )
        return path.read_bytes()
    except OSError as error:
        why = error.strerror or str(error)
        raise DitherError(f"{path} can't be read ({why}): give it to this user") from error


def read(path: Path, file: str, checksum: str) -> bytes:
    """The verified content of a copy of `file`; an idx file is decoded if it is gzipped."""
    raw = loaded(path)
    try:
        idx = compressed(file) != file and raw[:2] == GZIP
        payload = decoded(raw, LARGEST_IDX) if idx else raw
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise DitherError(f"{path} is damaged ({error}): replace it or delete it") from error
    if wrong := mismatch(payload, checksum, path):
        raise wrong
    return payload


def cache_folder() -> Path:
    """Where fetched files are kept: the platform's cache folder for dither; relative ("~/…") for a
    user without a home.
    """
    try:
        import pooch

        return Path(pooch.os_cache("dither"))
    except (ImportError, RuntimeError):  # only the library is installed; or there is no home
        return Path(os.path.expanduser("~")) / ".cache" / "dither"


def folders(name: str) -> list[Path]:
    """Where a set is looked for, in order: $DITHER_DATA, the distribution's folder, the cache.

    $DITHER_DATA may hold the files themselves, or a folder for each set. MNIST needs a folder,
    because its files have the names of Fashion-MNIST's.
    """
    own = os.environ.get("DITHER_DATA")
    mine = [Path(own) / name, *([Path(own)] if name != "mnist" else [])] if own else []
    return [*mine, *([PACKAGED[name]] if name in PACKAGED else []), cache_folder() / name]


def locate(name: str, file: str) -> Path | None:
    """The first copy of a file, compressed or not, or of the folder that stands for it."""
    spellings = dict.fromkeys((compressed(file), file, UNPACKED.get(file, file)))
    candidates = (folder / spelling for folder in folders(name) for spelling in spellings)
    return next(
        (p for p in candidates if isfile(p) or (p.name in UNPACKED.values() and isdir(p))),
        None,
    )


def missing(name: str) -> list[str]:
    """The files of a set that are nowhere on this machine."""
    return [compressed(file) for file in SUMS[name] if locate(name, file) is None]


class Limited:
    """A file for a download. `write` raises OSError after `LARGEST` bytes, or once it is `over`."""

    def __init__(self, file: Any) -> None:
        self.file, self.room, self.over = file, LARGEST, False

    def write(self, chunk: bytes) -> None:
        self.room -= len(chunk)
        if self.room < 0 or self.over:
            raise OSError(f"it has more than {LARGEST} bytes" if self.room < 0 else "given up")
        self.file.write(chunk)


def download(url: str, target: str | Path) -> None:
    """Fetch one file. Raises OSError (requests' errors are) if that fails, or if it has more than
    `LARGEST` bytes or takes longer than `LONGEST` seconds.
    """
    import requests

    failures: list[BaseException] = []
    with Path(target).open("wb") as file:
        limited = Limited(file)

        def stream() -> None:
            try:
                with requests.get(url, stream=True, timeout=TIMEOUT) as response:
                    response.raise_for_status()
                    for chunk in response.iter_content(CHUNK):
                        limited.write(chunk)
            except BaseException as error:  # it is raised below
                failures.append(error)

        # A mirror can send a byte a second: only another thread can tell how long that takes.
        thread = threading.Thread(target=stream, daemon=True)
        thread.start()
        try:
            thread.join(LONGEST)
        finally:
            limited.over = True
    if thread.is_alive():
        raise OSError(f"it took longer than {LONGEST} s")
    if failures:
        raise failures.pop()  # no cycle is left that would keep the traceback's frames


def fetch(name: str, file: str) -> Path:
    """Fetch a file into the cache, from the first mirror whose copy has the checksum."""
    import pooch

    def checked(url: str, target: str, _: Any) -> None:
        download(url, target)
        try:
            read(Path(target), file, SUMS[name][file])
        except DitherError as error:  # the sentence is about a temporary copy
            said = str(error).replace(target, url).removesuffix("; replace it or delete it")
            raise DitherError(said) from error

    remote, failures = compressed(file), []
    if not cache_folder().is_absolute():
        raise DitherError(f"{name}: this user has no home to keep {remote} in: set DITHER_DATA")
    for mirror in MIRRORS[name]:
        source = pooch.create(cache_folder() / name, mirror, registry={remote: None})
        try:
            return Path(source.fetch(remote, downloader=cast(Any, checked)))
        except (OSError, DitherError) as error:
            failures.append(f"{mirror}: {_said(error)}")
    files = ", ".join(map(compressed, SUMS[name]))
    raise DitherError(
        f"{name}: {remote} is in none of {', '.join(map(str, folders(name)))} "
        f"and can't be fetched ({'; '.join(failures)}): put {files} into one of these "
        f"folders or set DITHER_DATA to theirs{HINTS.get(name, '')}"
    )


def _said(error: Exception) -> str:
    """Why a mirror failed: the first error in requests' chain."""
    if isinstance(error, DitherError):
        return str(error)
    root: BaseException = error
    while root.__cause__ or root.__context__:
        root = root.__cause__ or root.__context__ or root
    said = (isinstance(root, OSError) and root.strerror) or str(root)
    return said if len(said) <= SAID else type(error).__name__


def contents(name: str) -> dict[str, tuple[Path, str]]:
    """{file: (its copy on this machine, its checksum)}, after fetching what is missing."""
    return {
        file: (locate(name, file) or fetch(name, file), sum_) for file, sum_ in SUMS[name].items()
    }
