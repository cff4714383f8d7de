"""The figures by name: "levi2022/fig3" is the module dither.papers.levi2022.fig3.

Names and docstrings are read from the files, without an import. Only `find` imports.
"""

import ast
import difflib
import fnmatch
import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from dither.errors import DitherError
from dither.lab.figure import BUGS, Figure
from dither.lab.original import Original
from dither.lab.wording import title_and_caption

PAPERS = "dither.papers"


def names() -> list[str]:
    """All figures, in reading order: the modules of a paper's package that define `figure`."""
    figures = (
        f"{paper}/{file.stem}"
        for paper in _papers()
        for folder in _path(f"{PAPERS}.{paper}")
        for file in Path(folder).glob("*.py")
        if not file.name.startswith("_") and _defines_figure(file, file.stat().st_mtime_ns)
    )
    return sorted(figures, key=lambda name: (name.startswith("beyond/"), _reading_order(name)))


def find(name: str) -> Figure:
    """The figure of that name. Raises DitherError with near names if there is none, and with the
    reason if it can't be imported.
    """
    if name not in names():
        raise DitherError(_unknown(name))
    module = _module(name)
    try:
        figure = importlib.import_module(module).figure
    except DitherError as error:
        raise DitherError(f"{name} says something that can't be run: {error}") from error
    except BUGS as error:  # a broken figure must not hide the others
        raise DitherError(f"{name} can't be imported: {type(error).__name__}: {error}") from error
    if not isinstance(figure, Figure):
        raise DitherError(
            f"{name}: `figure` is a {type(figure).__name__}, not a dither.lab.figure.Figure"
        )
    return replace(figure, module=module)


def match(patterns: Sequence[str]) -> list[str]:
    """The names that patterns give: 'levi2022/fig3', 'levi2022' (the whole paper), or globs such as
    '*/fig1*'. Without patterns, all names.
    """
    known = names()
    chosen = []
    for pattern in patterns:
        path = pattern.strip("/").replace(".", "/")
        hits = [n for n in known if fnmatch.fnmatchcase(n, path) or n.split("/")[0] == path]
        if not hits:
            raise DitherError(_unknown(pattern if " " in pattern else path))
        chosen += hits
    return list(dict.fromkeys(chosen)) if patterns else known


def doc(name: str) -> str:
    """The docstring of a figure's module, read from its file."""
    try:
        return ast.get_docstring(ast.parse(_source(name))) or name
    except SyntaxError as error:
        return f"{name} can't be read: {error.msg} in line {error.lineno}"


def title(name: str) -> str:
    """The first sentence of a figure's docstring."""
    return title_and_caption(doc(name))[0]


def paper(name: str) -> str:
    """A paper's title: the first sentence of its package's docstring."""
    spec = importlib.util.find_spec(f"{PAPERS}.{name}") if name in _papers() else None
    source = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
    return title_and_caption(ast.get_docstring(ast.parse(source)) or name)[0]


def originals(paper: str) -> tuple[Original, ...]:
    """The paper's own claims, from its `claims.py`; () if it has no such file."""
    name = f"{PAPERS}.{paper}.claims"
    if paper not in _papers() or importlib.util.find_spec(name) is None:
        return ()
    return importlib.import_module(name).ORIGINAL


@cache
def _defines_figure(file: Path, changed: int) -> bool:
    """Whether a file defines `figure`. It is read once, and again after a change."""
    return bool(re.search(r"^figure\b[^=\n]*=", file.read_text(encoding="utf-8"), re.M))


def _papers() -> list[str]:
    return [info.name for info in pkgutil.iter_modules(_path(PAPERS)) if info.ispkg]


def _module(name: str) -> str:
    return f"{PAPERS}.{name.replace('/', '.')}"


def _path(package: str) -> Iterable[str]:
    spec = importlib.util.find_spec(package)
    return (spec.submodule_search_locations or []) if spec else []


def _source(name: str) -> str:
    spec = importlib.util.find_spec(_module(name))
    return Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""


def _reading_order(name: str) -> tuple[str, bool, list[tuple[str, int]]]:
    """Sort by paper, numbered figures first, numbers by their value."""
    paper, _, own = name.partition("/")
    return (
        paper,
        not re.match(r"fig\d", own),
        [
            (word, int(digits or 0))
            for word, digits in re.findall(r"([^\d/]*)(\d*)", own)
            if word or digits
        ],
    )


def _unknown(name: str) -> str:
    known = names()
    if not known:
        return f"no figure is called {name!r}: {PAPERS} has no figures"
    papers = list(dict.fromkeys(n.split("/")[0] for n in known))
    tails = {n.split("/")[1]: n for n in reversed(known)}
    near = [*difflib.get_close_matches(name, known + papers, n=3, cutoff=0.5)]
    near += [
        tails[t] for t in difflib.get_close_matches(name.split("/")[-1], tails, n=2, cutoff=0.7)
    ]
    hint = (
        f"did you mean {' or '.join(dict.fromkeys(near))}?"
        if near
        else "if it is a run, repeat --only before it"
        if " " in name
        else "`dither list` shows all of them"
    )
    return f"no figure is called {name!r}; {hint}"
