"""A training step with noise never waits for the device: no number is read from a tensor."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import dither

OPERATIONS = {  # item(), bool(), float() are the first
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.nonzero.default,
}
FUNCTIONS = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu}


class Operations(TorchDispatchMode):
    """Counts the operations that make the host wait for the device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in OPERATIONS
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    """Counts the functions that copy to the host."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func in FUNCTIONS
        return func(*args, **(kwargs or {}))


class Reads:
    """Counts both."""

    def __enter__(self):
        self.modes = Operations(), Functions()
        for mode in self.modes:
            mode.__enter__()
        return self

    def __exit__(self, *error):
        for mode in reversed(self.modes):
            mode.__exit__(*error)

    @property
    def count(self):
        return sum(mode.count for mode in self.modes)


NOISES = {
    "additive": (dither.Additive(0.1), {}),
    "two-point": (dither.Additive(0.1, dither.two_point), {}),
    "dropout": (dither.Multiplicative(law=dither.dropout(0.2)), {}),
    "path": ({"2": dither.DropPath()}, {}),
    "locked": (dither.Locked(), {}),
    "node": ({"0": dither.Node(0.1)}, {}),
    "schedule": (dither.Additive(dither.schedule.Cosine(0.1, 0.0, 10)), {}),
    "weights": (dither.Weight(0.1), {}),
    "weights in turn": (dither.Weight(0.1), {"draw": "cycle"}),
    "connect": (dither.DropConnect(), {}),
    "relative": (dither.Relative(0.1, per="row"), {}),
}


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def step(net, x, y):
    F.cross_entropy(net(x), y).backward()


def test_what_is_counted():
    t = torch.ones(2)
    with Reads() as reads:
        _ = t.sum().item(), bool(t[0]), float(t[1]), torch.equal(t, t), t.nonzero()
        _ = t.tolist(), t.numpy(), t.cpu()
    assert reads.count == 8


@pytest.mark.parametrize("kind", NOISES)
def test_a_step_reads_nothing(kind):
    noise, how = NOISES[kind]
    net, x, y = model().train(), torch.randn(6, 5), torch.arange(6) % 3
    with dither.inject(net, noise, seed=0, **how) as injected:
        step(net, x, y)  # the first call may look at shapes
        with Reads() as reads:
            step(net, x, y)
            with injected.hold(), injected.mirrored():
                step(net, x, y)
    assert reads.count == 0


def test_placed_noise_reads_nothing():
    net = nn.Sequential(nn.Linear(5, 8), dither.nn.Additive(0.1), nn.Linear(8, 3)).train()
    x, y = torch.randn(6, 5), torch.arange(6) % 3
    with Reads() as reads:
        step(net, x, y)
    assert reads.count == 0


def test_how_often_R_reads():
    """Sampled R on a batch of a known kind: the certificate's few questions, whatever the depth."""
    counts = []
    for depth in (2, 6):
        torch.manual_seed(0)
        hidden = [layer for _ in range(depth) for layer in (nn.Linear(8, 8), nn.Tanh())]
        net = nn.Sequential(nn.Linear(5, 8), *hidden, nn.Linear(8, 3)).eval()
        x, y = torch.randn(6, 5), torch.arange(6) % 3
        with dither.inject(net, dither.Additive(0.1)) as noise:
            for _ in range(3):
                dither.explicit(noise, x, y, samples=1)
            with Reads() as reads:
                dither.explicit(noise, x, y, samples=1)
        counts.append(reads.count)
    assert counts[0] == counts[1]
