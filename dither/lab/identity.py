"""An experiment as canonical JSON, and its hash.

    key = sha256(JSON of class names and fields, sorted)[:16]

Two experiments are the same if their JSON is. The order of fields and the form of a number (1 or
1.0) don't count, nor do fields declared with `field(compare=False)`. A field that was
added later, `field(default=…, metadata=LATER)`, counts only if it differs from its default: so old
identities stay the same. Classes of dither go by their name, all others by module and name. No
torch here: an experiment can be listed and hashed without it.
"""

import enum
import hashlib
import inspect
import json
import math
import numbers
from dataclasses import fields, is_dataclass

from dither.errors import DitherError

LATER = {"later": True}


def key(thing: object) -> str:
    """Sixteen hexadecimal digits (64 bits) that identify an experiment. Raises DitherError for an
    object without a lasting identity.
    """
    text = json.dumps(canonical(thing), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def canonical(thing: object, where: str = "") -> object:
    """Plain JSON (null, bool, int, float, str, list, dict) for frozen dataclasses, tuples, numbers,
    strings, functions.
    """
    where = where or type(thing).__name__
    if thing is None or isinstance(thing, bool):
        return thing
    if isinstance(thing, enum.Enum):
        return {"is": class_name(type(thing)), "member": thing.name}
    if isinstance(thing, str):
        return str(thing)
    if isinstance(thing, numbers.Real):
        return _number(thing)
    if isinstance(thing, (tuple, list)):
        return [canonical(item, f"{where}[{i}]") for i, item in enumerate(thing)]
    if isinstance(thing, dict):
        return {"is": "dict", "items": _items(thing, where)}
    if is_dataclass(thing) and not isinstance(thing, type):
        said = {
            f.name: canonical(getattr(thing, f.name), f"{where}.{f.name}")
            for f in fields(thing)
            if f.compare and not (f.metadata.get("later") and getattr(thing, f.name) == f.default)
        }
        return {"is": class_name(type(thing)), **said}
    if isinstance(thing, type) or inspect.isfunction(thing):
        return {"is": "name", "name": _importable(thing, where)}
    raise DitherError(
        f"{where} is a {type(thing).__name__}, which has no identity that lasts: use numbers, "
        "strings, tuples, frozen dataclasses or functions of a module"
    )


def class_name(cls: type) -> str:
    """The name of a class; with its module if it is a paper's or a user's, not dither's."""
    own = cls.__module__.startswith("dither.") and not cls.__module__.startswith("dither.papers.")
    return cls.__qualname__ if own else f"{cls.__module__}:{cls.__qualname__}"


def _number(x: numbers.Real) -> object:
    if isinstance(x, numbers.Integral):
        return int(x)
    value = float(x)
    if not math.isfinite(value):
        return {"is": "float", "value": str(value)}
    return int(value) if value.is_integer() else value


def _items(thing: dict, where: str) -> list:
    if strange := [k for k in thing if not isinstance(k, str)]:
        raise DitherError(f"{where} has the key {strange[0]!r}: only strings can be keys")
    return [[k, canonical(thing[k], f"{where}[{k!r}]")] for k in sorted(thing)]


def _importable(thing: object, where: str) -> str:
    name = getattr(thing, "__qualname__", "<lambda>")
    if "<" in name:
        raise DitherError(
            f"{where} is {name}, which nobody else can look up: define it at the top of a module"
        )
    return f"{thing.__module__}:{name}"
