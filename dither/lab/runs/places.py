"""Written results are moved to their places, by one process at a time."""

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FILES = ("rows.parquet", "run.json", "env.json")
READY, AGAIN = ".ready", ".again"  # of a program's results that are written, not yet in place
OLD = ".old"  # of a result while it is replaced
_locked = threading.local()  # .homes: the folders that this thread has locked


def whole(folder: Path) -> bool:
    """Whether all files of a result are there."""
    return all((folder / file).is_file() for file in FILES)


def settle(ready: Path) -> None:
    """Move the results of a program to their places. A `prepare` of another process may do so at
    the same time: what it has moved is passed over.
    """
    with contextlib.suppress(FileNotFoundError), _alone(ready.parent):  # the other one has ended
        for temp in sorted(ready.iterdir()):
            with contextlib.suppress(FileNotFoundError):  # it was faster with this one
                _place(temp, ready.parent / temp.name, ready.suffix == AGAIN)
    shutil.rmtree(ready, ignore_errors=True)


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """One process at a time, where the system can lock a folder. A kill opens the lock."""
    locked = _locked.__dict__.setdefault("homes", set())
    if fcntl is None or home in locked:
        yield
        return
    handle = os.open(home, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems of networks can't
            fcntl.flock(handle, fcntl.LOCK_EX)
        locked.add(home)
        yield
    finally:
        locked.discard(home)
        os.close(handle)


def _place(temp: Path, folder: Path, replace: bool) -> None:
    """Rename a written result to its place. What is there stays if it is whole, or goes last."""
    old = folder.with_name(f".{folder.name}{OLD}")
    temp.stat()  # raises if another process has moved it: what is in the place is its result
    if os.path.lexists(folder) and (replace or not whole(folder)):
        delete(old)
        with contextlib.suppress(FileNotFoundError):  # another writer moved it
            folder.rename(old)
    try:
        temp.rename(folder)  # fails if the folder exists and is not empty
    except OSError:
        if not folder.is_dir():
            if os.path.lexists(old):
                old.rename(folder)
            raise
    delete(old)


def delete(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
