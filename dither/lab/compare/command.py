"""`dither compare FILE.py`: a file that defines make_model, data, methods and settings."""

import inspect
import runpy
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from dither.errors import DitherError
from dither.lab.compare import compare
from dither.lab.compare.result import Comparison
from dither.lab.figure import BUGS
from dither.lab.runs import provenance
from dither.lab.runs.allocator import keep_freed
from dither.lab.runs.screen import Bars, Lines


def run(file: str, typed: Mapping[str, Any], console: Console) -> tuple[Comparison, Path]:
    """The comparison of a file and its page. typed: settings that come before those of the file."""
    given = names(file)
    settings = {
        "jobs": min(provenance.cores(), 8),
        "out": Path("results/compare") / Path(file).stem,
        "progress": Bars(console) if console.is_terminal else Lines(console),
        **given.get("settings", {}),
        **typed,
    }
    everything = given["make_model"], given["data"], given["methods"]
    try:
        inspect.signature(compare).bind(*everything, **settings)
    except TypeError as error:
        raise DitherError(f"{file}: settings don't fit dither.compare: {error}") from None
    keep_freed()
    found = compare(*everything, **settings)
    return found, found.save(settings["out"])


def names(file: str) -> dict[str, Any]:
    """The names that a user's file defines. An error in it is reported with file and line."""
    if not Path(file).is_file():
        raise DitherError(f"compare: there is no file {file!r}; give a Python file")
    sys.path.insert(0, str(Path(file).resolve().parent))  # for its own modules, also in workers
    try:
        given = runpy.run_path(file, run_name="dither_compare")
    except BUGS as error:
        own = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
        line = f", line {own[-1].lineno}" if own else f", line {getattr(error, 'lineno', '?')}"
        raise DitherError(f"{file}{line}: {type(error).__name__}: {error}") from None
    missing = [name for name in ("make_model", "data", "methods") if name not in given]
    if missing:
        raise DitherError(
            f"{file} does not define {' and '.join(missing)}; "
            "compare needs make_model, data and methods"
        )
    return given
