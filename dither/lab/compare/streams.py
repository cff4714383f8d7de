"""Data that change whenever they are read: what they draw with, and how it is held fixed."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader


class Draws:
    """The random states that data sets draw from, torch's, numpy's and Python's, as one of its own.
    Inside `with draws():` they go on from where they were at the end of the last one, from `seed`
    at first; outside they are as if nothing had been drawn.
    """

    def __init__(self, seed: int) -> None:
        self.seed, self.state = seed, None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        outside = _states()
        if self.state is None:
            torch.default_generator.manual_seed(self.seed)
            np.random.seed(self.seed % 2**32)
            random.seed(self.seed)
        else:
            _set(self.state)
        try:
            yield
        finally:
            self.state = _states()
            _set(outside)


def _states() -> Any:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def _set(states: Any) -> None:
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])


def generators(stream: Any) -> list[torch.Generator]:
    """The generators that a loader and its samplers bring."""
    if not isinstance(stream, DataLoader):
        return []
    found, todo = [], [stream, stream.batch_sampler, stream.sampler]
    while todo:
        part: Any = todo.pop()
        if isinstance(own := getattr(part, "generator", None), torch.Generator):
            found.append(own)
        if (inner := getattr(part, "sampler", None)) is not None and part is not stream:
            todo.append(inner)
    return found


@contextmanager
def at_rest(stream: Any) -> Iterator[None]:
    """Inside, data give the same whenever they are read, and a loader's generators have one state:
    each epoch seeds them anew, so that what they have drawn before is no part of what a run is.
    """
    found = generators(stream)
    states = [generator.get_state() for generator in found]
    for generator in found:
        generator.manual_seed(0)
    try:
        with Draws(0)():
            yield
    finally:
        for generator, state in zip(found, states, strict=True):
            generator.set_state(state)
