"""The identity of a user's run: a checksum of data, method, settings and code."""

import hashlib
import inspect
import io
import os
import pickletools
import re
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import torch

from dither.lab.compare.method import Method
from dither.lab.compare.problem import Problem, content
from dither.lab.compare.trial import Trial

DRAWN = re.compile("[0-9a-f]{32}")
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
    payload = _pickled([*what, *settings])
    made = hashlib.sha256(held.digest.encode() + repr(plain).encode() + payload)
    for path in sorted(_code(payload)):
        made.update(path.read_bytes())
    return made.hexdigest()[:16]


class _Pickler(cloudpickle.Pickler):
    """Tensors by their values, generators by nothing, classes of a script without the number that
    cloudpickle draws for them: all three differ from process to process, and each epoch seeds the
    generators of its data anew.
    """

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, torch.Generator):
            return torch.Generator, ()
        if type(obj) in (torch.Tensor, torch.nn.Parameter) and obj.layout == torch.strided:
            return torch.Tensor, (str(obj.dtype), tuple(obj.shape), content(obj))
        found: Any = super().reducer_override(obj)
        if isinstance(obj, type) and isinstance(found, tuple):
            args = tuple("" if isinstance(a, str) and DRAWN.fullmatch(a) else a for a in found[1])
            return found[0], args, *found[2:]
        return found


def _pickled(what: Any) -> bytes:
    """What is pickled here is never read again."""
    file = io.BytesIO()
    _Pickler(file).dump(what)
    return file.getvalue()


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
