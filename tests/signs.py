"""Random signs in all their patterns: a mean over them is the expectation."""

import itertools

import torch

from dither.regulariser import pull


def every_sign(monkeypatch, z, fixed_first):
    """Make samples=n go through all n patterns of signs: the mean is then the expectation. → n"""
    free = z.shape[0] * (z[0].numel() - fixed_first)
    patterns = itertools.cycle(itertools.product((-1.0, 1.0), repeat=free))

    def signs(like, generator=None):
        r = torch.tensor(next(patterns), dtype=like.dtype).view(like.shape[0], -1)
        pad = torch.ones(like.shape[0], fixed_first, dtype=like.dtype)
        return torch.cat([pad, r], 1).view(like.shape)

    monkeypatch.setattr(pull, "signs", signs)
    return 2**free


class Pattern:
    """Signs of all patterns one after another, `free` of them for a probe: to stand for `signs`."""

    def __init__(self, free):
        self.free, self.drawn = free, 0
        self.bits = itertools.chain.from_iterable(itertools.product((-1.0, 1.0), repeat=free))

    def __call__(self, like, generator=None):
        self.drawn += like.numel()
        taken = list(itertools.islice(self.bits, like.numel()))
        return torch.tensor(taken, dtype=like.dtype).view(like.shape)
