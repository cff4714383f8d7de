"""Data that change whenever they are read: what they draw with, and how it is held fixed."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from dither.lab.compare.pickled import generators
from dither.noise import draw


class Draws:
    """The random states that data draw from, as one of their own: those of torch (and of the
    devices that are in use), of numpy and of Python's `random`, and those of the generators that
    the data hold. Inside `with draws():` they go on from where they were at the end of the last
    one, from `seed` at first; outside they are as if nothing had been drawn.
    """

    def __init__(self, seed: int, own: Sequence[Any] = ()) -> None:
        self.seed, self.own, self.state = seed, own, None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        outside = states(self.own)
        if self.state is None:
            self._begin()
        else:
            _set(self.own, self.state)
        try:
            yield
        finally:
            self.state = states(self.own)
            _set(self.own, outside)

    def _begin(self) -> None:
        torch.default_generator.manual_seed(self.seed)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(self.seed)
        np.random.seed(self.seed % 2**32)
        random.seed(self.seed)
        for i, generator in enumerate(self.own):
            _seed(generator, draw.key("own", self.seed, i))


def states(own: Sequence[Any] = ()) -> list[Any]:
    """The random states of the program and of these generators."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    there = [torch.get_rng_state(), devices, np.random.get_state(), random.getstate()]
    return [*there, *map(_get, own)]


def _set(own: Sequence[Any], states: list[Any]) -> None:
    torch.set_rng_state(states[0])
    if states[1]:
        torch.cuda.set_rng_state_all(states[1])
    np.random.set_state(states[2])
    random.setstate(states[3])
    for generator, state in zip(own, states[4:], strict=True):
        if isinstance(generator, torch.Generator | np.random.RandomState):
            generator.set_state(state)
        elif isinstance(generator, np.random.Generator):
            generator.bit_generator.state = state
        else:
            generator.setstate(state)


def _get(generator: Any) -> Any:
    if isinstance(generator, torch.Generator | np.random.RandomState):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate()


def _seed(generator: Any, seed: int) -> None:
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    elif isinstance(generator, np.random.Generator):
        fresh: Any = type(generator.bit_generator)
        generator.bit_generator.state = fresh(seed).state
    elif isinstance(generator, np.random.RandomState):
        generator.seed(seed % 2**32)
    else:
        generator.seed(seed)


def moved(before: list[Any], after: list[Any]) -> bool:
    """Whether something was drawn between two `states`."""
    return any(repr_of(a) != repr_of(b) for a, b in zip(before, after, strict=True))


def repr_of(state: Any) -> Any:
    """A random state as something that == compares."""
    if isinstance(state, torch.Tensor):
        return state.tolist()
    if isinstance(state, np.ndarray):
        return state.tolist()
    if isinstance(state, dict):
        return {name: repr_of(part) for name, part in state.items()}
    if isinstance(state, list | tuple):
        return [repr_of(part) for part in state]
    return state


@contextmanager
def at_rest(stream: Any) -> Iterator[None]:
    """Inside, data give the same whenever they are read; afterwards it is as if they had not been
    read.
    """
    with Draws(0, generators(stream))():
        yield
