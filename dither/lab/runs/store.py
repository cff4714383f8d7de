"""Finished runs, one folder each: DIR/runs/<key>/<seed>/{rows.parquet, run.json, env.json,
sha256.json}.

sha256.json has the checksums of the other files. They are compared at each reading; folders of
earlier versions have none and are read without. A folder is written next to its place under another
name and renamed at the end. So it is whole or absent, also with other writers and after a power
cut. The seeds of one program are sealed together, and each names them ("program" in env.json):
computed without the others, a seed's numbers would differ in their last digits. A result is never
changed. One that is computed again gives way when the new one is written: between two renames the
old one is a hidden neighbour, .<seed>.old.
"""

import contextlib
import errno
import hashlib
import io
import json
import math
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
from dither.lab.runs.places import AGAIN, FILES, OLD, READY, delete, settle, whole

FORMAT = 1
SUMS = "sha256.json"
SCHEMA = {"step": pl.Float64, "quantity": pl.String, "value": pl.Float64}
WORDS = ("dither", "torch", "python", "machine", "commit")  # of env.json, where they are known
MOST_ROWS = 50_000_000  # a small file can say that it has any number
LARGEST = {"rows.parquet": 2_000_000_000}  # bytes; of other files 100 million
STALE = 3600  # seconds after which a half-written folder is abandoned
HOMES = (".", "runs/*", "figures/*/*", "logs")  # where files are written under a hidden name
IN_THE_WAY = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EACCES, errno.EPERM}


class OtherFormat(DitherError):
    """A result that another version of dither wrote. It is not damaged."""


class Blocked(DitherError):
    """Something else is where one result belongs. The others can be written."""


class Store:
    """A folder of results. Call `prepare` before writing."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        if not os.fspath(root):
            raise DitherError("the folder of results has no name: --out '' is empty")
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
        for ready in (path for end in (READY, AGAIN) for path in self.root.glob(f"runs/*/.*{end}")):
            with contextlib.suppress(OSError):
                settle(ready)
        for old in self.root.glob(f"runs/*/.*{OLD}"):
            with contextlib.suppress(OSError):
                place = old.with_name(old.name[1 : -len(OLD)])
                _ = delete(old) if whole(place) else old.rename(place)
        for leftover in (path for folder in HOMES for path in self.root.glob(f"{folder}/.*.tmp")):
            with contextlib.suppress(OSError):  # its writer may have renamed it since
                if time.time() - leftover.stat().st_mtime > STALE:
                    delete(leftover)

    def folder(self, run: Run | Task, seed: int) -> Path:
        return self.root / "runs" / run.key / str(seed)

    def checkpoints(self, run: Run | Task) -> Path:
        """The folder of a run's checkpoints, with a file for each running program."""
        return (self.root / "runs" / run.key).resolve()

    def has(self, run: Run | Task, seed: int) -> bool:
        """Whether the whole result is there. Raises DitherError if it is damaged, and OtherFormat
        for a result of another version.
        """
        folder = self.folder(run, seed)
        try:
            if (folder / "env.json").is_file():
                self.env(run, seed)
            return whole(folder)
        except OSError as error:
            raise self._damaged(folder, error.strerror or str(error)) from error

    def env(self, run: Run | Task, seed: int) -> dict[str, Any]:
        """The environment of a result: versions, machine, seconds, commit."""
        return self.env_of(self.folder(run, seed))

    def env_of(self, folder: Path) -> dict[str, Any]:
        """The same, of a result's folder."""
        path = folder / "env.json"
        env = self._json(path, self._bytes(path))
        got = env.get("format")
        if isinstance(got, int) and got != FORMAT and not self._changed(path):
            raise OtherFormat(
                f"{folder} was written in format {got} by dither {env.get('dither')}, this one "
                f"reads format {FORMAT}: choose another folder with --out, or move {self.root} away"
            )
        self._payload(path)
        if got != FORMAT:
            raise self._damaged(path, "it names no format")
        seconds = env.get("seconds", 0)
        if not (isinstance(seconds, int | float) and 0 <= seconds < math.inf):
            raise self._damaged(path, "its seconds are no number")
        if strange := [word for word in WORDS if not isinstance(env.get(word, ""), str | None)]:
            raise self._damaged(path, f"its {strange[0]} is no word")
        return env

    def _changed(self, path: Path) -> bool:
        """Whether a file differs from its checksum. False where another version's checksums have
        another form.
        """
        with contextlib.suppress(DitherError):
            sums, now = self.sums_of(path.parent), hashlib.sha256(self._bytes(path)).hexdigest()
            return len(str(sums.get(path.name))) == len(now) and sums[path.name] != now
        return False

    def rows(self, run: Run | Task, seed: int) -> pl.DataFrame:
        """(step, quantity, value) of a finished run."""
        return self.rows_of(self.folder(run, seed))

    def rows_of(self, folder: Path) -> pl.DataFrame:
        """The same, of a result's folder."""
        path = folder / "rows.parquet"
        payload = self._payload(path)
        try:
            rows = pl.read_parquet(io.BytesIO(payload), n_rows=MOST_ROWS + 1)
        except BaseException as error:  # polars panics at some damage, which is no Exception
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            raise self._damaged(path, str(error)) from error
        if dict(rows.schema) != SCHEMA:
            raise self._damaged(path, f"its columns are {', '.join(rows.columns)}")
        if len(rows) > MOST_ROWS:
            raise self._damaged(path, f"it has more than {MOST_ROWS} rows")
        return rows

    def said_of(self, folder: Path) -> dict[str, Any]:
        """The run of a result: its key, its seed, its JSON."""
        path = folder / "run.json"
        return self._json(path, self._payload(path))

    def sums_of(self, folder: Path) -> dict[str, Any]:
        """The checksums of a result; {} in a folder of earlier versions."""
        path = folder / SUMS
        if not os.path.lexists(path):
            return {}
        return self._json(path, self._bytes(path))

    def _bytes(self, path: Path) -> bytes:
        try:
            if path.stat().st_size > LARGEST.get(path.name, 100_000_000):
                raise self._damaged(path, "it is too large")
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

    def seal(
        self,
        run: Run | Task,
        seeds: int | Mapping[int, pl.DataFrame],
        rows: pl.DataFrame | None = None,
        env: Mapping[str, Any] | None = None,
        *,
        replace: bool = False,
    ) -> None:
        """Write a finished run: a seed and its rows, or {seed: rows} of one program. A kill leaves
        all or none of them; a place that is blocked leaves those that were moved before. If another
        process was first, its result stays, and this one is dropped; with `replace` it gives way,
        and until then it stays.

        Raises Blocked if something else is in a result's place, DitherError if nothing can be
        written.
        """
        program = {seeds: rows} if isinstance(seeds, int) else seeds
        home = self.root / "runs" / run.key
        temp = _beside(home / "program")
        ready = temp.with_suffix(AGAIN if replace else READY)
        try:
            home.mkdir(parents=True, exist_ok=True)
            try:
                whose = {"program": sorted(program)} if len(program) > 1 else {}
                for seed, table in program.items():
                    says = {"format": FORMAT, "key": run.key, "seed": seed}
                    says["run"] = identity.canonical(run)
                    _write(
                        temp / str(seed), table, says, {"format": FORMAT, **(env or {}), **whose}
                    )
                temp.rename(ready)  # from here on `prepare` could end it
                settle(ready)
            except OSError:
                shutil.rmtree(ready, ignore_errors=True)
                raise
            finally:
                shutil.rmtree(temp, ignore_errors=True)
        except OSError as error:
            if error.errno not in IN_THE_WAY:
                raise self._unwritable(error) from error
            self.prepare()  # raises if it is the whole store
            why = error.strerror or str(error)
            raise Blocked(f"{home} can't be written ({why}): move away what is there") from error

    def programs(self, run: Run | Task) -> list[tuple[int, ...]]:
        """The seeds of each program of a run, as its readable results name them."""
        named = set()
        for folder in (self.root / "runs" / run.key).glob("[0-9]*"):
            with contextlib.suppress(DitherError):
                seeds = self.env_of(folder).get("program")
                if isinstance(seeds, list) and all(type(seed) is int for seed in seeds):
                    named.add(tuple(seeds))
        return sorted(named)

    def discard(self, run: Run | Task, seed: int) -> None:
        """Remove a result, so that it is computed again."""
        try:
            if (folder := self.folder(run, seed)).is_dir():
                away = _beside(folder)
                folder.rename(away)
                delete(away)
        except OSError as error:
            raise self._unwritable(error) from error

    def log(self, what: str, sentence: str, traceback: str) -> str:
        """Write a traceback to a file. Returns the sentence with the path."""
        path = self.root / "logs" / f"{re.sub(r'[^-.0-9A-Za-z]+', '_', what)[:200]}.log"
        try:
            write(path, f"{what}\n{sentence}\n\n{traceback}")
        except DitherError as error:
            return f"{sentence} ({error})"
        return f"{sentence} (traceback: {path})"

    def _unwritable(self, error: OSError) -> DitherError:
        why = error.strerror or str(error)
        return DitherError(
            f"can't write results to {self.root} ({why}): choose another folder with --out"
        )


def write(path: Path, content: str | bytes | None) -> None:
    """Replace a file in one step, so that no reader gets half of it. None: remove it."""
    # what UTF-8 can't hold comes from a path, and is told as \udcff
    payload = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    try:
        if payload is None:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temp = _beside(path)
        try:
            temp.write_bytes(payload)
            temp.replace(path)
        finally:
            temp.unlink(missing_ok=True)
    except OSError as error:
        why, do = error.strerror or str(error), "choose another folder with --out"
        if error.errno in IN_THE_WAY:
            do = f"move away what is there, or {do}"
        raise DitherError(f"can't write {path} ({why}): {do}") from error


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


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


def _write(folder: Path, rows: Any, says: Mapping[str, Any], env: Mapping[str, Any]) -> None:
    """Write the files of a result, and flush them."""
    folder.mkdir(parents=True)
    rows.write_parquet(table := io.BytesIO())  # polars refuses some paths
    (folder / "rows.parquet").write_bytes(table.getbuffer())
    (folder / "run.json").write_text(json_text(says), encoding="utf-8")
    (folder / "env.json").write_text(json_text(env), encoding="utf-8")
    sums = {file: _sha256(folder / file) for file in FILES}
    (folder / SUMS).write_text(json_text(sums), encoding="utf-8")
    _flush(folder)
