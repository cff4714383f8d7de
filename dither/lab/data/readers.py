"""The files of CIFAR-10, SVHN and USPS in their own formats: x_train, y_train, x_test, y_test.

Images are uint8 [n, channels, height, width], labels int64 [n], decoded once a process: copy before
writing. A file is parsed only after its checksum was right, and what a file says is checked again.

CIFAR-10  pickles of Python 2 in a tar archive (Krizhevsky 2009): rows of 3072 bytes, channel first
SVHN      Matlab 5 (Netzer et al. 2011, cropped digits): X [32, 32, 3, n], y [n, 1], where 10 is a 0
USPS      LIBSVM's text in bzip2 (Hull 1994): "label index:value …", labels from 1, 16 × 16 values
          in [−1, 1]; of its two forms the one that needs no further package (the other is HDF5)
"""

import bz2
import io
import os
import pickle
import tarfile
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dither.errors import DitherError
from dither.lab.data import files

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

TAR = "cifar-10-python.tar.gz"
BATCHES = {  # md5 of what is in the archive, for those who have it unpacked
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
ARRAYS = {  # all that a pickle may name: what numpy's arrays are made of
    "_reconstruct": np.empty(0).__reduce__()[0],
    "ndarray": np.ndarray,
    "dtype": np.dtype,
}


class Numbers(pickle.Unpickler):
    """Reads numbers, words, lists, dicts and numpy's arrays, and runs nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] != "numpy" or name not in ARRAYS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array")
        return ARRAYS[name]


def unpickle(payload: bytes, where: str = "a batch") -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 3, 32, 32] and labels of a CIFAR batch, read without running what it may hold."""
    try:
        held = Numbers(io.BytesIO(payload), encoding="bytes").load()
        x, y = np.asarray(held[b"data"]), np.asarray(held[b"labels"])
    except (pickle.UnpicklingError, EOFError, KeyError, IndexError, TypeError, ValueError) as error:
        raise DitherError(f"{where} is no batch of CIFAR-10 ({error}): replace it") from error
    if x.dtype != np.uint8 or x.ndim != 2 or x.shape[1] != 3072:
        raise DitherError(f"{where}: data are {x.dtype} {x.shape}, expected uint8 [n, 3072]")
    return _checked(x.reshape(-1, 3, 32, 32), y, where)


def mat(payload: bytes, where: str = "a file") -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 3, 32, 32] and labels 0 … 9 of an SVHN file."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        held = loadmat(io.BytesIO(payload), variable_names=["X", "y"])
        x, y = held["X"], held["y"]
    except (
        MatReadError, KeyError, TypeError, ValueError, OSError, NotImplementedError, zlib.error
    ) as error:  # fmt: skip
        raise DitherError(f"{where} is no file of SVHN ({error}): replace it") from error
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[:3] != (32, 32, 3):
        raise DitherError(f"{where}: X is {x.dtype} {x.shape}, expected uint8 [32, 32, 3, n]")
    x = np.ascontiguousarray(x.transpose(3, 2, 0, 1))
    return _checked(x, np.where(y.ravel() == 10, 0, y.ravel()), where)


def libsvm(payload: bytes, where: str = "a file") -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 1, 16, 16], −1 … 1 as 0 … 255, and labels 0 … 9 of a USPS file."""
    try:
        lines = [line.split() for line in bz2.decompress(payload).decode("ascii").splitlines()]
        y = np.array([int(label) for label, *_ in lines]) - 1
        x = np.zeros((len(lines), 256))  # what a line leaves out is 0
        for row, (_, *pairs) in zip(x, lines, strict=True):
            index, value = zip(*(pair.split(":") for pair in pairs), strict=True)
            place = np.array(index, dtype=int) - 1
            if place.min() < 0:
                raise ValueError(f"feature {place.min() + 1}, they count from 1")
            row[place] = np.array(value, dtype=float)
    except (OSError, EOFError, UnicodeDecodeError, ValueError, IndexError) as error:
        raise DitherError(f"{where} is no file of USPS ({error}): replace it") from error
    if len(x) and not (x.min() >= -1 and x.max() <= 1):
        raise DitherError(f"{where}: values in [{x.min():g}, {x.max():g}], expected [−1, 1]")
    pixels = np.rint((x + 1) / 2 * 255).astype(np.uint8)
    return _checked(pixels.reshape(-1, 1, 16, 16), y, where)


def _checked(x: np.ndarray, y: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    if len(x) != len(y):
        raise DitherError(f"{where}: {len(x)} images, but {len(y)} labels")
    if len(y) and not (y.min() >= 0 and y.max() <= 9):
        raise DitherError(f"{where}: labels from {y.min()} to {y.max()}, expected 0 to 9")
    return x, y.astype(np.int64)


@cache
def _cifar(path: Path, checksum: str) -> Arrays:
    batches = _unpacked(path) if path.is_dir() else _archived(path, checksum)
    parts = [unpickle(payload, f"{path}: {name}") for name, payload in batches.items()]
    *train, test = parts
    return (*(np.concatenate(part) for part in zip(*train, strict=True)), *test)  # pyright: ignore


def _archived(path: Path, checksum: str) -> dict[str, bytes]:
    """The batches in the archive, unpacked in memory only."""
    payload = files.read(path, TAR, checksum)
    try:
        with tarfile.open(fileobj=io.BytesIO(payload), mode="r:*") as archive:
            members = {Path(m.name).name: m for m in archive if m.isfile()}
            return {name: archive.extractfile(members[name]).read() for name in BATCHES}  # pyright: ignore
    except (tarfile.TarError, EOFError, OSError, zlib.error, KeyError) as error:
        raise DitherError(f"{path} is no archive of CIFAR-10 ({error}): replace it") from error


def _unpacked(folder: Path) -> dict[str, bytes]:
    if missing := [name for name in BATCHES if not (folder / name).is_file()]:
        raise DitherError(f"{folder} lacks {', '.join(missing)}: unpack {TAR} there again")
    return {
        name: files.verified((folder / name).read_bytes(), checksum, folder / name)
        for name, checksum in BATCHES.items()
    }


@cache
def _parsed(name: str, path: Path, file: str, checksum: str) -> tuple[np.ndarray, np.ndarray]:
    parse = {"svhn": mat, "usps": libsvm}[name]
    return parse(files.read(path, file, checksum), str(path))


def load(name: str) -> Arrays:
    """The set "cifar-10", "svhn" or "usps". Raises DitherError: which file belongs where."""
    if name == "cifar-10":
        return _cifar(*files.contents(name)[TAR])
    train, test = (
        _parsed(name, path, file, checksum)
        for file, (path, checksum) in files.contents(name).items()
    )
    return (*train, *test)


def california_file() -> Path:
    """Where scikit-learn keeps the California houses, there or not."""
    home = os.environ.get("SCIKIT_LEARN_DATA", "~/scikit_learn_data")
    return Path(home).expanduser() / "cal_housing_py3.pkz"


def california(*, fetch: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Columns [20640, 8] and prices [20640], from scikit-learn's copy on this machine."""
    from sklearn.datasets import fetch_california_housing

    try:
        return fetch_california_housing(download_if_missing=fetch, return_X_y=True, n_retries=1)  # pyright: ignore
    except OSError as error:
        raise DitherError(
            f"california: {california_file()} is missing ({error}): fetch it on a machine with a "
            "network by `dither data fetch california` and put it there, or set SCIKIT_LEARN_DATA "
            "to its folder"
        ) from error
