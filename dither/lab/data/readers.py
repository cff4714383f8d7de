"""The files of CIFAR-10, SVHN and USPS in their own formats: x_train, y_train, x_test, y_test.

Images are uint8 [n, channels, height, width], labels int64 [n]. They are decoded once per process:
copy before writing. A copy is valid if its files have the published checksums, or if its examples
have the content of the set; the order of the examples is then the same (`content.py`). So a file
may be parsed whose checksum is wrong: limits of size come before, and values are checked while it
is parsed. A .mat file is parsed only after its checksum.

CIFAR-10  pickles of Python 2 in a tar archive (Krizhevsky 2009): rows of 3072 bytes, channel first
SVHN      Matlab 5 (Netzer et al. 2011, cropped digits): X [32, 32, 3, n], y [n, 1], where 10 is a 0
USPS      LIBSVM's text in bzip2 (Hull 1994): "label index:value …", labels from 1, 16 × 16 values
          in [−1, 1]. The other form of it, HDF5, would need another package
"""

import bz2
import io
import tarfile
from collections.abc import Iterator
from functools import cache
from os.path import isfile
from pathlib import Path

import numpy as np

from dither.errors import DitherError
from dither.lab.data import content, files, pickled

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

TAR = "cifar-10-python.tar.gz"
BATCHES = {  # md5 of the files in the archive, for unpacked copies
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
LARGEST_BATCH = 40_000_000  # bytes; a batch of 10 000 images has 31 million
LARGEST_TAR = 256_000_000  # bytes once decompressed; the published one has 187 million
LARGEST_TEXT = 64_000_000  # bytes of USPS once decompressed; the training digits have 24 million
MEMBERS = 100  # files in an archive; the published one has eight
DIGITS = 20_000  # lines of a USPS file; the training digits have 7 291
LONGEST_LINE = 10_000  # bytes: 256 features of up to 38


def unpickle(payload: bytes, where: str = "a batch") -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 3, 32, 32] and labels of a CIFAR batch. Code in the pickle is not run."""
    try:
        held = pickled.load(payload)
        x, labels = held[b"data"], held[b"labels"]
        if not isinstance(x, pickled.Array) or not isinstance(labels, list | pickled.Array):
            raise ValueError(f"data are a {type(x).__name__}, labels a {type(labels).__name__}")
        if isinstance(labels, list) and not all(type(label) is int for label in labels):
            raise ValueError("a label is no whole number")  # lists in lists could grow without end
        x, y = x.held, labels.held if isinstance(labels, pickled.Array) else np.array(labels)
    except Exception as error:  # a file that is no batch may raise anything
        raise DitherError(f"{where} is no batch of CIFAR-10 ({error}): replace it") from error
    if x.dtype != np.uint8 or x.ndim != 2 or x.shape[1] != 3072:
        raise DitherError(f"{where}: data are {x.dtype} {x.shape}, expected uint8 [n, 3072]")
    return _checked(x.reshape(-1, 3, 32, 32), y, where)


def mat(payload: bytes, where: str = "a file") -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 3, 32, 32] and labels 0 … 9 of an SVHN file, whose checksum was compared: scipy's
    reader may end the process at another one.
    """
    from scipy.io import loadmat

    try:
        held = loadmat(io.BytesIO(payload), variable_names=["X", "y"])
        x, y = np.asarray(held["X"]), np.asarray(held["y"]).ravel()
    except Exception as error:  # as above
        raise DitherError(f"{where} is no file of SVHN ({error}): replace it") from error
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[:3] != (32, 32, 3):
        raise DitherError(f"{where}: X is {x.dtype} {x.shape}, expected uint8 [32, 32, 3, n]")
    x = np.ascontiguousarray(x.transpose(3, 2, 0, 1))
    return _checked(x, np.where(y == 10, 0, y), where)


def libsvm(payload: bytes, where: str = "a file") -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 1, 16, 16], −1 … 1 as 0 … 255, and labels 0 … 9 of a USPS file."""
    try:
        lines = _lines(payload)
        y, x = [], np.zeros((len(lines), 256))  # features that a line leaves out are 0
        for row, line in zip(x, lines, strict=True):
            label, *pairs = line.decode("ascii").split()
            index, value = zip(*(pair.split(":") for pair in pairs), strict=True)
            place = np.array(index, dtype=int) - 1
            if place.min() < 0:
                raise ValueError(f"feature {place.min() + 1}, they count from 1")
            row[place] = np.array(value, dtype=float)
            y.append(int(label) - 1)
        labels = np.array(y, dtype=np.int64)
    except Exception as error:  # as above
        raise DitherError(f"{where} is no file of USPS ({error}): replace it") from error
    if len(x) and not (x.min() >= -1 and x.max() <= 1):
        raise DitherError(f"{where}: values in [{x.min():g}, {x.max():g}], expected [−1, 1]")
    pixels = np.rint((x + 1) / 2 * 255).astype(np.uint8)
    return _checked(pixels.reshape(-1, 1, 16, 16), labels, where)


def _lines(payload: bytes) -> list[bytes]:
    if payload.count(b"BZh") > files.PARTS:  # each may be empty, and still takes its time
        raise ValueError(f"it is in more than {files.PARTS} parts")
    text = bz2.BZ2File(io.BytesIO(payload)).read(LARGEST_TEXT + 1)
    if len(text) > LARGEST_TEXT:
        raise ValueError(f"it holds more than {LARGEST_TEXT} bytes")
    if text.count(b"\n") + text.count(b"\r") > DIGITS:
        raise ValueError(f"it has more than {DIGITS} lines")
    lines = text.splitlines()
    if (longest := max(map(len, lines), default=0)) > LONGEST_LINE:
        raise ValueError(f"a line has {longest} bytes")
    return lines


def _checked(x: np.ndarray, y: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    if len(x) != len(y):
        raise DitherError(f"{where}: {len(x)} images, but {len(y)} labels")
    if y.ndim != 1 or y.dtype.kind not in "ui":
        raise DitherError(f"{where}: labels are {y.dtype} {y.shape}, expected whole numbers [n]")
    if len(y) and not (y.min() >= 0 and y.max() <= 9):
        raise DitherError(f"{where}: labels from {y.min()} to {y.max()}, expected 0 to 9")
    return x, y.astype(np.int64)


@cache
def _cifar(path: Path, checksum: str) -> Arrays:
    """All batches, from the archive or from the folder that stands for it."""
    copy = content.Copy("cifar-10", path, _batch_files(path) if path.is_dir() else [path])
    known, wrong, parts = copy.known(), None, []
    batches = _unpacked(path) if path.is_dir() else _archived(path, None if known else checksum)
    for name, payload, error in batches:
        wrong = wrong or (None if known else error)
        try:
            parts.append(unpickle(payload, f"{path}: {name}"))
        except DitherError as damage:
            raise (wrong or damage) from damage
    test = parts.pop()
    train = _joined(parts)
    if wrong and not copy.holds(train=train, test=test):
        raise wrong
    return (*content.settled(*train), *content.settled(*test))


def _joined(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """All batches in one array. A batch is freed after its copy, so that memory holds one set."""
    y = np.concatenate([labels for _, labels in parts])
    x, start = np.empty((len(y), *parts[0][0].shape[1:]), np.uint8), 0
    while parts:
        images, _ = parts.pop(0)
        x[start : start + len(images)] = images
        start += len(images)
    return x, y


Batches = Iterator[tuple[str, bytes, DitherError | None]]  # name, bytes, what is wrong with them


def _archived(path: Path, checksum: str | None) -> Batches:
    """The batches in the archive, unpacked in memory only."""
    wrong, payload = None, files.loaded(path)
    if checksum is not None:
        wrong = files.mismatch(payload, checksum, path)
    try:
        payload = files.decoded(payload, LARGEST_TAR) if payload[:2] == files.GZIP else payload
        with tarfile.open(fileobj=io.BytesIO(payload), mode="r:") as archive:
            members = {}
            for count, member in enumerate(archive):
                if count == MEMBERS:
                    raise ValueError(f"it has more than {MEMBERS} files")
                if member.isfile() and member.size <= LARGEST_BATCH:
                    members[Path(member.name).name] = member
            for name in BATCHES:
                yield name, archive.extractfile(members[name]).read(), wrong  # pyright: ignore
    except Exception as error:  # a file that is no archive may raise anything
        sentence = f"{path} is no archive of CIFAR-10 ({error}): replace it"
        raise (wrong or DitherError(sentence)) from error


def _unpacked(folder: Path) -> Batches:
    for path, checksum in zip(_batch_files(folder), BATCHES.values(), strict=True):
        payload = files.loaded(path, LARGEST_BATCH)
        yield path.name, payload, files.mismatch(payload, checksum, path)


def _batch_files(folder: Path) -> list[Path]:
    if missing := [name for name in BATCHES if not isfile(folder / name)]:
        raise DitherError(f"{folder} lacks {', '.join(missing)}: unpack {TAR} there again")
    return [folder / name for name in BATCHES]


@cache
def _svhn(path: Path, checksum: str) -> tuple[np.ndarray, np.ndarray]:
    return mat(files.read(path, path.name, checksum), str(path))


@cache
def _usps(split: str, path: Path, checksum: str) -> tuple[np.ndarray, np.ndarray]:
    copy, payload = content.Copy("usps", path, [path]), files.loaded(path, LARGEST_TEXT)
    wrong = None if copy.known() else files.mismatch(payload, checksum, path)
    try:
        examples = libsvm(payload, str(path))
    except DitherError as damage:
        raise (wrong or damage) from damage
    if wrong and not copy.holds(**{split: examples}):
        raise wrong
    return content.settled(*examples)


def load(name: str) -> Arrays:
    """The set "cifar-10", "svhn" or "usps". DitherErrors say which file belongs where."""
    held = list(files.contents(name).values())
    if name == "cifar-10":
        return _cifar(*held[0])
    if name == "usps":
        train, test = (
            _usps(split, *one) for split, one in zip(("train", "test"), held, strict=True)
        )
    else:
        train, test = (_svhn(*one) for one in held)
    return (*train, *test)
