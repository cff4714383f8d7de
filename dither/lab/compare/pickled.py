"""What a user brings, as bytes that are the same in every process; and what it draws with."""

import hashlib
import io
import random
import re
import types
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TypeVar

import cloudpickle
import numpy as np
import torch

from dither.torch_internals import untyped

DRAWN = re.compile("[0-9a-f]{32}")  # a number that cloudpickle draws for a class of a script
PLAIN = (str, bytes, int, float, bool, type(None))


class _Pickler(cloudpickle.Pickler):
    """Sets in one order, storages by their bytes, code without its file and line, classes without
    the number that is drawn for them: torch's and cloudpickle's own pickles of these differ from
    process to process, or from call to call.
    """

    def __init__(self, file: Any, blank: Iterable[Any]) -> None:
        super().__init__(file)
        self.blank = list(blank)

    def persistent_id(self, obj: Any) -> Any:
        if any(obj is one for one in self.blank):
            return "generator"
        if type(obj) in (set, frozenset):
            return type(obj).__name__, sorted(map(self.told, obj))
        if isinstance(obj, torch.storage.TypedStorage):
            return "storage", str(obj.dtype), _content(untyped(obj))
        if isinstance(obj, torch.UntypedStorage):
            return "storage", _content(obj)
        return None

    def told(self, element: Any) -> str:
        if isinstance(element, PLAIN):
            return repr(element)
        return hashlib.sha256(pickled(element, self.blank)).hexdigest()

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, types.CodeType):
            bare = obj.replace(co_filename="", co_firstlineno=1)
            return self.dispatch_table[types.CodeType](bare)
        named = isinstance(obj, TypeVar)
        found: Any = (self.dispatch_table[TypeVar] if named else super().reducer_override)(obj)
        if isinstance(obj, type | TypeVar) and isinstance(found, tuple):
            args = tuple("" if isinstance(a, str) and DRAWN.fullmatch(a) else a for a in found[1])
            return found[0], args, *found[2:]
        return found


def pickled(what: Any, blank: Iterable[Any] = ()) -> bytes:
    """To be compared, never to be read again. blank: generators whose state does not count."""
    file = io.BytesIO()
    _Pickler(file, blank).dump(what)
    return file.getvalue()


def _content(storage: torch.UntypedStorage) -> bytes:
    if storage.device.type == "meta":
        return str(storage.nbytes()).encode()
    values = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
    return values.cpu().numpy().tobytes()


class _Nowhere:
    """A file that keeps nothing."""

    def write(self, data: Any) -> int:
        return len(data)


class _Finder(cloudpickle.Pickler):
    """Notes each generator that it comes upon."""

    def __init__(self) -> None:
        super().__init__(_Nowhere())
        self.found: list[Any] = []

    def persistent_id(self, obj: Any) -> Any:
        own = isinstance(obj, random.Random) and not isinstance(obj, random.SystemRandom)
        if own or isinstance(obj, torch.Generator | np.random.Generator | np.random.RandomState):
            if not any(obj is one for one in self.found):
                self.found.append(obj)
            return "generator"
        if isinstance(obj, torch.Tensor | np.ndarray):
            return "values"
        return None


def generators(what: Any) -> list[Any]:
    """The random generators of torch, numpy and Python that an object holds, however deep."""
    finder = _Finder()
    with suppress(Exception):  # what can't be pickled whole is searched until there
        finder.dump(what)
    return finder.found
