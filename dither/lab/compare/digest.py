"""The identity of a user's run: a checksum of data, method, settings and code."""

import hashlib
import inspect
import os
import pickletools
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dither.lab.compare.method import Method
from dither.lab.compare.pickled import generators, pickled
from dither.lab.compare.problem import Problem
from dither.lab.compare.trial import Trial

PACKAGES = {"site-packages", "dist-packages"}  # also those of a system, or of another environment


def digest(
    held: Problem, trial: Trial, method: Method, measured: list[Any], settings: Sequence[Any]
) -> str:
    """A checksum of the data, the method, the settings and the user's code they refer to."""
    what = [getattr(trial, name) for name in ("model", "optimiser", "noise", "loss", "schedule")]
    what += [trial.penalty, trial.step, measured, held.stream]
    plain = (
        *(trial.draw, trial.by, trial.objective, trial.batch, trial.epochs, trial.sam),
        *(trial.patience, trial.device, str(method.dropout), *[trial.drops] * trial.drops),
    )
    payload = pickled([*what, *settings], blank=generators(held.stream))
    made = hashlib.sha256(held.digest.encode() + repr(plain).encode() + payload)
    for path in sorted(_code(payload)):
        made.update(path.read_bytes())
    return made.hexdigest()[:16]


def _code(payload: bytes) -> set[Path]:
    """The files of a user's own modules that pickled objects refer to, directly or through other
    modules of the user. cloudpickle keeps code of scripts and notebooks, and names of modules.
    """
    texts = [arg for _, arg, _ in pickletools.genops(payload) if isinstance(arg, str)]
    todo, done = [text for text in texts if text in sys.modules], set()
    standard = sysconfig.get_path("stdlib") + os.sep
    files: set[Path] = set()
    while todo:
        name = todo.pop()
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)
        if name in done or not file or name.partition(".")[0] == "dither":
            continue
        done.add(name)
        if file.startswith(standard) or PACKAGES & {*Path(file).parts}:
            continue
        files.add(Path(file))
        for value in vars(module).values():
            found = value if inspect.ismodule(value) else sys.modules.get(
                getattr(value, "__module__", None) or ""
            )  # fmt: skip
            todo += [found.__name__] if found is not None else []
    return files
