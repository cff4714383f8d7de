"""Pickles that hold numbers, words, lists, dicts and arrays of whole numbers; nothing else is run.

A pickle is a program. Python's own machine runs it here, with three restrictions: the operations
are those that such values need, a dict's keys are words (hashing a tuple of tuples may take for
ever), and there are at most `STEPS` operations. numpy's classes never see the file: an array is
made from bytes whose number fits its shape.
"""

import io
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np

STEPS = 200_000  # a batch of 10 000 images takes about 40 000
OPERATIONS = (  # protocols 2 to 5; of these, values and containers
    pickle.PROTO + pickle.FRAME + pickle.STOP + pickle.MARK + pickle.POP + pickle.POP_MARK
    + pickle.NONE + pickle.NEWTRUE + pickle.NEWFALSE + pickle.BININT + pickle.BININT1
    + pickle.BININT2 + pickle.LONG1 + pickle.BINFLOAT + pickle.SHORT_BINSTRING + pickle.BINSTRING
    + pickle.SHORT_BINBYTES + pickle.BINBYTES + pickle.BINBYTES8 + pickle.SHORT_BINUNICODE
    + pickle.BINUNICODE + pickle.BINUNICODE8 + pickle.EMPTY_TUPLE + pickle.TUPLE + pickle.TUPLE1
    + pickle.TUPLE2 + pickle.TUPLE3 + pickle.EMPTY_LIST + pickle.APPEND + pickle.APPENDS
    + pickle.EMPTY_DICT + pickle.SETITEM + pickle.SETITEMS + pickle.BINGET + pickle.LONG_BINGET
    + pickle.BINPUT + pickle.LONG_BINPUT + pickle.MEMOIZE + pickle.GLOBAL + pickle.STACK_GLOBAL
    + pickle.REDUCE + pickle.BUILD
)  # fmt: skip


class Kind:
    """In place of numpy's dtype: whole numbers of 1 to 8 bytes."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.name = name.decode("ascii") if isinstance(name, bytes) else name
        if not (isinstance(self.name, str) and re.fullmatch("[iu][1248]", self.name)):
            raise pickle.UnpicklingError("an array is not of whole numbers")
        self.order = "="

    def take(self, state: Any) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order not in ("|", "<", ">", "="):
            raise pickle.UnpicklingError("an array has an unknown order of bytes")
        self.order = order


class Array:
    """In place of numpy's array, which is then in `held`."""

    held: np.ndarray

    def __init__(self, *_: Any) -> None: ...

    def take(self, state: Any) -> None:
        _, shape, kind, by_columns, raw = state
        if not (isinstance(kind, Kind) and isinstance(raw, bytes) and isinstance(shape, tuple)):
            raise pickle.UnpicklingError("an array is not of whole numbers")
        flat = np.frombuffer(raw, kind.order + str(kind.name))
        self.held = flat.reshape(shape, order="F" if by_columns else "C")


NAMES = {"_reconstruct": Array, "dtype": Kind, "ndarray": None}  # what a pickle may ask numpy for


PYTHONS: Any = pickle._Unpickler  # its operations can be chosen; those of the one in C can not


class Machine(PYTHONS):
    """See the module."""

    steps = 0

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] != "numpy" or name not in NAMES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array")
        return NAMES[name]

    def setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.fill([key, value])

    def setitems(self) -> None:
        self.fill(self.pop_mark())

    def fill(self, items: list[Any]) -> None:
        if not all(type(key) in (bytes, str) for key in items[::2]):
            raise pickle.UnpicklingError("a key is no word")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def build(self) -> None:
        state = self.stack.pop()
        self.stack[-1].take(state)


class Operations(dict[int, Any]):
    """The operations by their byte; any other is refused."""

    def __missing__(self, byte: int) -> Any:
        raise pickle.UnpicklingError(f"it uses the operation {bytes([byte])!r}")


def _counted(operation: Callable[[Machine], None]) -> Callable[[Machine], None]:
    def step(machine: Machine) -> None:
        machine.steps += 1
        if machine.steps > STEPS:
            raise pickle.UnpicklingError(f"it takes more than {STEPS} steps")
        operation(machine)

    return step


ALL = {byte: PYTHONS.dispatch[byte] for byte in OPERATIONS} | {
    pickle.SETITEM[0]: Machine.setitem,
    pickle.SETITEMS[0]: Machine.setitems,
    pickle.BUILD[0]: Machine.build,
}
STOP = pickle.STOP[0]  # it ends by an exception of Python's own
Machine.dispatch = Operations({b: f if b == STOP else _counted(f) for b, f in ALL.items()})


def load(payload: bytes) -> Any:
    """The value in a pickle. Texts of Python 2 are bytes. Raises any Exception for a file that
    holds anything else.
    """
    return Machine(io.BytesIO(payload), encoding="bytes").load()
