"""Finished runs, one folder each: DIR/runs/<key>/<seed>/{rows.parquet, run.json, env.json,
sha256.json}.

sha256.json has the checksums of the other files. They are compared at each reading; folders of
earlier versions have none and are read without. A folder is written next to its place under another
name and renamed at the end. So it is whole or absent, also with other writers and after a power
cut. A result is never changed; `discard` moves it away.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from dither.errors import DitherError
from dither.lab import identity
from dither.lab.figure import Run, Task

FORMAT = 1
FILES = ("rows.parquet", "run.json", "env.json")
SUMS = "sha256.json"
SCHEMA = {"step": pl.Float64, "quantity": pl.String, "value": pl.Float64}
STALE = 3600  # seconds after which a half-written folder is abandoned


class OtherFormat(DitherError):
    """A result that another version of dither wrote. It is not damaged."""


class Store:
    """A folder of results. Call `prepare` before writing."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

    def prepare(self) -> None:
        """Make the folder and remove half-written files of killed writers. Raises DitherError if
        the folder can't be written.
        """
        try:
            (self.root / "runs").mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root / "runs"):
                pass
        except OSError as error:
            raise self._unwritable(error) from error
        for leftover in self.root.glob("runs/*/.*.tmp"):
            with contextlib.suppress(OSError):  # its writer may have renamed it since
                if time.time() - leftover.stat().st_mtime > STALE:
                    _ = shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    def folder(self, run: Run | Task, seed: int) -> Path:
        return self.root / "runs" / run.key / str(seed)

    def checkpoints(self, run: Run | Task) -> Path:
        """The folder of a run's checkpoints, with a file for each running program."""
        return (self.root / "runs" / run.key).resolve()

    def has(self, run: Run | Task, seed: int) -> bool:
        """Whether the whole result is there. Raises OtherFormat for a result of another version."""
        folder = self.folder(run, seed)
        if (folder / "env.json").is_file():
            self.env(run, seed)
        return _whole(folder)

    def env(self, run: Run | Task, seed: int) -> dict[str, Any]:
        """The environment of a result: versions, machine, seconds, commit."""
        return self.env_of(self.folder(run, seed))

    def env_of(self, folder: Path) -> dict[str, Any]:
        """The same, of a result's folder."""
        path = folder / "env.json"
        env = self._json(path, self._bytes(path))
        got = env.get("format")
        if isinstance(got, int) and got != FORMAT:  # its checksums may have another format, too
            raise OtherFormat(
                f"{folder} was written in format {got} by dither {env.get('dither')}, this one "
                f"reads format {FORMAT}: choose another folder with --out, or move {self.root} away"
            )
        self._payload(path)
        if got != FORMAT:
            raise self._damaged(path, "it names no format")
        return env

    def rows(self, run: Run | Task, seed: int) -> pl.DataFrame:
        """(step, quantity, value) of a finished run."""
        return self.rows_of(self.folder(run, seed))

    def rows_of(self, folder: Path) -> pl.DataFrame:
        """The same, of a result's folder."""
        path = folder / "rows.parquet"
        payload = self._payload(path)
        try:
            rows = pl.read_parquet(io.BytesIO(payload))
        except BaseException as error:  # polars panics at some damage, which is no Exception
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            raise self._damaged(path, str(error)) from error
        if dict(rows.schema) != SCHEMA:
            raise self._damaged(path, f"its columns are {', '.join(rows.columns)}")
        return rows

    def said_of(self, folder: Path) -> dict[str, Any]:
        """The run of a result: its key, its seed, its JSON."""
        path = folder / "run.json"
        return self._json(path, self._payload(path))

    def sums_of(self, folder: Path) -> dict[str, Any]:
        """The checksums of a result; {} in a folder of earlier versions."""
        path = folder / SUMS
        if not path.is_file():
            return {}
        return self._json(path, self._bytes(path))

    def _bytes(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise self._damaged(path, error.strerror or str(error)) from error

    def _payload(self, path: Path) -> bytes:
        """The content of a result's file. Raises DitherError if its checksum differs."""
        sums = self.sums_of(path.parent)
        payload = self._bytes(path)
        if sums and sums.get(path.name) != hashlib.sha256(payload).hexdigest():
            raise self._damaged(path, "it is not what was sealed")
        return payload

    def _json(self, path: Path, payload: bytes) -> dict[str, Any]:
        try:
            held = json.loads(payload)
        except (ValueError, RecursionError) as error:
            raise self._damaged(path, str(error)) from error
        if not isinstance(held, dict):
            raise self._damaged(path, f"it holds a {type(held).__name__} instead of fields")
        return held

    def _damaged(self, path: Path, why: str) -> DitherError:
        mend = f"`dither check {self.root} --repair` computes it again"
        return DitherError(f"{path} can't be read ({why}): {mend}")

    def seal(self, run: Run | Task, seed: int, rows: pl.DataFrame, env: Mapping[str, Any]) -> None:
        """Write a finished run. If another process was first, its result stays, and this one is
        dropped.
        """
        folder = self.folder(run, seed)
        says = {"format": FORMAT, "key": run.key, "seed": seed, "run": identity.canonical(run)}
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            temp = _beside(folder)
            temp.mkdir()
            try:
                rows.write_parquet(temp / "rows.parquet")
                (temp / "run.json").write_text(json_text(says), encoding="utf-8")
                (temp / "env.json").write_text(
                    json_text({"format": FORMAT, **env}), encoding="utf-8"
                )
                sums = {file: _sha256(temp / file) for file in FILES}
                (temp / SUMS).write_text(json_text(sums), encoding="utf-8")
                _flush(temp)
                self._rename(temp, folder)
            finally:
                shutil.rmtree(temp, ignore_errors=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def _rename(self, temp: Path, folder: Path) -> None:
        if folder.is_dir() and not _whole(folder):
            _remove(folder)  # half of it was copied or deleted from outside
        try:
            temp.rename(folder)  # fails if the folder exists and is not empty
        except OSError:
            if not folder.is_dir():
                raise

    def discard(self, run: Run | Task, seed: int) -> None:
        """Remove a result, so that it is computed again."""
        folder = self.folder(run, seed)
        try:
            if folder.is_dir():
                _remove(folder)
        except OSError as error:
            raise self._unwritable(error) from error

    def log(self, what: str, sentence: str, traceback: str) -> str:
        """Write a traceback to a file. Returns the sentence with the path."""
        path = self.root / "logs" / f"{re.sub(r'[^-.0-9A-Za-z]+', '_', what)}.log"
        write(path, f"{what}\n{sentence}\n\n{traceback}")
        return f"{sentence} (traceback: {path})"

    def _unwritable(self, error: OSError) -> DitherError:
        why = error.strerror or str(error)
        return DitherError(
            f"can't write results to {self.root} ({why}): choose another folder with --out"
        )


def write(path: Path, content: str | bytes) -> None:
    """Replace a file in one step, so that no reader gets half of it."""
    payload = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temp = _beside(path)
        try:
            temp.write_bytes(payload)
            temp.replace(path)
        finally:
            temp.unlink(missing_ok=True)
    except OSError as error:
        why = error.strerror or str(error)
        raise DitherError(
            f"can't write {path} ({why}): choose another folder with --out"
        ) from error


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _whole(folder: Path) -> bool:
    return all((folder / file).is_file() for file in FILES)


def _beside(path: Path) -> Path:
    """A unique hidden name next to a path, so that a rename stays on one disk. `prepare` removes
    old ones.
    """
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def frame(rows: Iterable[tuple[float, str, float]]) -> pl.DataFrame:
    """The rows of a run as a table: (step, quantity, value)."""
    what = "a run gives (step, quantity, value): a number, a string, a number"
    try:
        triples = [(float(step), quantity, float(value)) for step, quantity, value in rows]
    except (TypeError, ValueError) as error:
        raise DitherError(f"{what}; {error}") from error
    if strange := [quantity for _, quantity, _ in triples if not isinstance(quantity, str)]:
        raise DitherError(f"{what}; got the quantity {strange[0]!r}")
    return pl.DataFrame(triples, schema=SCHEMA, orient="row")


def json_text(thing: object) -> str:
    """Readable JSON."""
    return json.dumps(thing, indent=1, ensure_ascii=False) + "\n"


def _flush(folder: Path) -> None:
    """Flush a file to disk before the rename. Else a power cut could leave a sealed folder of empty
    files.
    """
    for file in folder.iterdir():
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove(folder: Path) -> None:
    """Move a folder out of its place in one step, then delete it."""
    away = _beside(folder)
    folder.rename(away)
    shutil.rmtree(away, ignore_errors=True)
