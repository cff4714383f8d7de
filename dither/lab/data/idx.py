"""The idx files of the MNIST family."""

import math
from functools import cache
from pathlib import Path

import numpy as np

from dither.errors import DitherError
from dither.lab.data import files

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
DIMENSIONS = 3


def parse(payload: bytes, where: str = "idx data") -> np.ndarray:
    """The array in an idx file, as a writable copy in the machine's byte order.

    Two zero bytes, a type, the number of dimensions, their sizes as big-endian uint32, the entries.
    """
    if len(payload) < 4 or payload[:2] != b"\0\0" or payload[2] not in TYPES:
        raise DitherError(
            f"{where} is no idx file: it starts with {payload[:4].hex(' ') or 'nothing'}"
        )
    kind, ndim = np.dtype(TYPES[payload[2]]), payload[3]
    if ndim > DIMENSIONS:
        raise DitherError(f"{where} has {ndim} dimensions, images have {DIMENSIONS}")
    start = 4 + 4 * ndim
    if len(payload) < start:
        raise DitherError(
            f"{where} is cut off: {len(payload)} bytes can't hold the sizes of {ndim} dimensions"
        )
    shape = tuple(int(size) for size in np.frombuffer(payload, ">u4", ndim, 4))
    if (expected := start + math.prod(shape) * kind.itemsize) != len(payload):
        raise DitherError(
            f"{where} should be {expected} bytes long for shape {shape}, it has {len(payload)}"
        )
    if not all(shape):
        raise DitherError(f"{where} is empty: its shape is {shape}")
    return np.frombuffer(payload, kind, offset=start).reshape(shape).astype(kind.newbyteorder("="))


def load(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x_train, y_train, x_test, y_test as uint8. Decoded once per process: copy before writing."""
    x_train, y_train, x_test, y_test = (
        _decoded(path, file, checksum) for file, (path, checksum) in files.contents(name).items()
    )
    for x, y, split in ((x_train, y_train, "training"), (x_test, y_test, "test")):
        if len(x) != len(y):
            raise DitherError(f"{name}: {len(x)} {split} images, but {len(y)} labels")
    return x_train, y_train, x_test, y_test


@cache
def _decoded(path: Path, file: str, checksum: str) -> np.ndarray:
    return parse(files.read(path, file, checksum), str(path))
