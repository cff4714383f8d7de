r"""Checkpoints inside a run: its whole state in one file. A resumed run gives the same rows.

    <folder>/.<seeds>.checkpoint  =  "dither checkpoint <sha256 of the rest>\\n" + torch.save(state)

A file is written under another name and renamed, so that a kill leaves the old file or the new one.
It is valid for one run, its seeds, and one state of the code: dither's sources, the versions of
torch and numpy, and the number of threads. Any other file is set aside with a sentence, and the run
starts at its first step.
"""

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch

from dither import errors

FORMAT = 1
EVERY = 300.0  # seconds of work between two checkpoints
HEAD = b"dither checkpoint "
SUFFIX, ASIDE = ".checkpoint", ".aside"
LONGEST = 200  # letters of a file's name


class Keeper:
    """The folder of the checkpoints of one run, and the time of the next one.

    say: called with a sentence about a problem. before: seconds of work in the loaded checkpoint.
    """

    def __init__(self, folder: Path, key: str, say: Callable[[str], None]) -> None:
        self.folder, self.key, self.say = folder, key, say
        self.begun = self.last = monotonic()
        self.before = 0.0

    def tick(self, seeds: Sequence[int], state: Callable[[], dict[str, Any]]) -> None:
        """Save if it is time."""
        if monotonic() - self.last >= EVERY:
            self.save(seeds, state())

    def save(self, seeds: Sequence[int], state: dict[str, Any]) -> None:
        """Write a state. If the disk is full, `say` reports it, and the run continues without."""
        buffer = io.BytesIO()
        seconds = self.before + monotonic() - self.begun
        torch.save({**state, "stamp": self._stamp(seeds), "seconds": seconds}, buffer)
        payload = buffer.getbuffer()
        path = self.folder / name(seeds)
        temp = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            self.folder.mkdir(exist_ok=True)
            with temp.open("wb") as file:
                file.write(HEAD + hashlib.sha256(payload).hexdigest().encode() + b"\n")
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            temp.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temp.unlink(missing_ok=True)
            self.say(f"{path} can't be written ({error.strerror or error}): no checkpoint is kept")
        self.last = monotonic()

    def load(self, seeds: Sequence[int]) -> dict[str, Any] | None:
        """The saved state of these seeds, or None."""
        path = self.folder / name(seeds)
        if not os.path.isfile(path):
            return None
        try:
            state = _read(path)
            self._check(state["stamp"], seeds)
        except Exception as error:  # a damaged file may raise anything
            self.say(f"{path} is set aside ({error}): the run starts at its first step")
            with contextlib.suppress(OSError):  # then it is overwritten
                path.replace(path.with_suffix(ASIDE))
            return None
        self.before += state["seconds"]
        return state

    def _check(self, stamp: dict[str, Any], seeds: Sequence[int]) -> None:
        for what, now in self._stamp(seeds).items():
            if (then := stamp.get(what)) != now:
                raise ValueError(f"its {what} is {then}, and this one's is {now}")

    def _stamp(self, seeds: Sequence[int]) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "run": self.key,
            "seeds": list(seeds),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "code": code(),
            "number of threads": torch.get_num_threads(),
        }


def name(seeds: Sequence[int]) -> str:
    """The name of the file for a program's seeds."""
    joined = "_".join(map(str, seeds))
    if len(joined) > LONGEST:
        joined = hashlib.sha256(joined.encode()).hexdigest()
    return f".{joined}{SUFFIX}"


def remove(folder: Path, seeds: Sequence[int]) -> None:
    """Delete the checkpoints of these seeds, of one program or of several."""
    for group in (tuple(seeds), *((seed,) for seed in seeds)):
        path = folder / name(group)
        for file in (path, path.with_suffix(ASIDE)):
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)


@cache
def code() -> str:
    """A digest of dither's sources. A step may differ between two of them."""
    here = Path(errors.__file__).parent  # the package
    digest = hashlib.sha256()
    for file in sorted(here.rglob("*.py")):
        digest.update(str(file.relative_to(here)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        head, payload = file.readline(100), file.read()
    if head != HEAD + hashlib.sha256(payload).hexdigest().encode() + b"\n":
        raise ValueError("it is damaged")
    return torch.load(io.BytesIO(payload), weights_only=True)
