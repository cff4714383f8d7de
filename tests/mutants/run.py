"""One wrong line at a time: do the tests notice?   make mutants ARGS="ghost threads"

Each mutant of `listed` is put into a copy of the repository, never into the checkout, and the tests
that should kill it run there in a process of their own. Words choose mutants by what is in their
file's name or source text. Exits with 1 if one survives.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy  # noqa: F401  so that every child has it at once
import pytest
import torch  # noqa: F401

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from mutants.listed import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
PARTS = ("dither", "tests", "docs", "pyproject.toml")
BOUND, UNMUTATED = 600, 3600  # seconds for the tests of one mutant, and for all without any
ENDS = {pytest.ExitCode.OK: "survived", pytest.ExitCode.TESTS_FAILED: "killed"}


def faults(mutants: Sequence[Mutant], root: Path = ROOT) -> list[str]:
    """What has rotted: source texts that are not there exactly once, tests that are not there."""
    found = []
    for m in mutants:
        n = _text(root / m.file).count(m.source)
        if n != 1 or m.source == m.becomes:
            found.append(f"{m.file}: {n} times, not once: {m.source!r}")
        for test in m.tests.split():
            file, *names = test.split("::")
            text = _text(root / "tests" / file)
            if not text or any(f"def {name}(" not in text for name in names):
                found.append(f"{m.file}: no such test: {test}")
    return found


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


@contextlib.contextmanager
def mutated(copy: Path, mutant: Mutant) -> Iterator[None]:
    """The mutant in the copy, for as long as its tests run."""
    path = copy / mutant.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutant.source, mutant.becomes), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(text, encoding="utf-8")


def _tests(copy: Path, tests: Sequence[str], log: Path) -> None:
    """In a child: run tests on the copy's own dither, and end with pytest's code."""
    with log.open("w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    sys.dont_write_bytecode = True
    os.environ.update(PYTHONPATH=str(copy), PYTHONDONTWRITEBYTECODE="1")
    os.chdir(copy)
    sys.path[:] = [str(copy), *(p for p in sys.path if Path(p) not in (ROOT, ROOT / "tests"))]
    for name in [n for n in sys.modules if n.split(".")[0] in ("dither", "mutants")]:
        del sys.modules[name]
    import dither

    assert Path(dither.__file__).is_relative_to(copy), dither.__file__
    ids = [f"tests/{test}" for test in tests]
    code = pytest.main(["-x", "-q", "--tb=line", "-p", "no:cacheprovider", *ids])
    sys.stdout.flush()
    os._exit(int(code))


def outcome(copy: Path, tests: Sequence[str], log: Path, bound: float = BOUND) -> str:
    """survived (all pass), killed (one fails), timeout, or broken: the tests could not be run."""
    child = multiprocessing.get_context("fork").Process(target=_tests, args=(copy, tests, log))
    child.start()
    child.join(bound)
    if child.is_alive():
        child.kill()
        child.join()
        return "timeout"
    return ENDS.get(child.exitcode, "broken")  # pyright: ignore


def copied(to: Path) -> Path:
    """The parts of the repository that tests read, without what was compiled."""
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, to / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, to / part)
    return to


def main(words: Sequence[str]) -> int:
    wrong = faults(MUTANTS)
    if wrong:
        print(*wrong, sep="\n")
        return 1
    chosen = [m for m in MUTANTS if not words or any(w in f"{m.file} {m.source}" for w in words)]
    with tempfile.TemporaryDirectory() as folder:
        copy, log = copied(Path(folder, "copy")), Path(folder, "log")
        every = sorted({test for m in chosen for test in m.tests.split()})
        if outcome(copy, every, log, UNMUTATED) != "survived":
            print(log.read_text(), "the tests fail without any mutant, or there are none")
            return 1
        ends = []
        for m in chosen:
            start = time.monotonic()
            with mutated(copy, m):
                ends.append(outcome(copy, m.tests.split(), log))
            took = time.monotonic() - start
            print(f"{ends[-1]:9}{took:5.0f} s  {m.file}: {m.why}", flush=True)
            if ends[-1] == "broken":
                print(log.read_text())
    counts = {end: ends.count(end) for end in ("killed", "survived", "timeout", "broken")}
    print(", ".join(f"{n} {end}" for end, n in counts.items()), f"of {len(chosen)}")
    return int(counts["survived"] + counts["broken"] > 0 or not chosen)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
