"""What comes by at a noisy site: real tensors take noise, others are refused, and off means off."""

import pytest
import torch
from nets import plain
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import dither
from dither.measures import local

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("side", ["in", "out"])
def test_a_packed_sequence(side):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(4, 5)

        def forward(self, x):
            return self.gru(pack_padded_sequence(x, [3, 2]), torch.zeros(1, 2, 5))[1][0]

    net, x = Net().train(), torch.randn(3, 2, 4)
    with dither.inject(net, {f"gru:{side}": dither.Additive(0.1)}) as noise:
        with pytest.raises(dither.DitherError, match=r"gru:.*PackedSequence.*padded"):
            net(x)
        with noise.off():
            net(x)
        net.eval()(x)


def test_integers():
    net = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 3)).eval()
    x, y = torch.tensor([[0, 1], [2, 3]]), torch.tensor([0, 1])
    with dither.inject(net, {"input": dither.Additive(0.1)}) as noise:
        for look in (
            lambda: dither.explicit(noise, x, y),
            lambda: dither.explicit(noise, x, y, curvature="full"),
            lambda: dither.expected(noise, x, y, draws=4),
            lambda: net.train()(x),
        ):
            with pytest.raises(dither.DitherError, match=r"'input' needs real numbers.*int64"):
                look()


def test_a_noise_that_is_off_says_nothing_when_another_is_read():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.head = nn.GRU(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(self.gru(pack_padded_sequence(x, [3, 2]))[1][0])

    net, x = Net().eval(), torch.randn(3, 2, 4)
    paused = dither.inject(net, {"gru:in": dither.Additive(0.1)})
    paused.pause()
    noise = dither.inject(net, {"head:in": dither.Additive(0.1)})
    assert dither.explicit(noise, x, torch.tensor([0, 1])).R > 0
    noise.remove()
    with pytest.raises(dither.DitherError, match="was removed"):
        local.local(noise, x, torch.tensor([0, 1]))
    assert noise.reader is None


def test_off_ends_also_by_an_exception():
    net = plain().train()
    clean = net(X)
    with dither.inject(net, dither.Additive(1.0)) as noise:
        with noise.off():
            torch.testing.assert_close(net(X), clean)
        with pytest.raises(RuntimeError), noise.off():
            net(X[:, 1:])
        assert not torch.equal(net(X), clean)
        noise.pause()
        with noise.off():
            pass
        assert noise.paused


class Twice(nn.Module):
    """Reads a tensor again after a module that may have worked in place on it."""

    def __init__(self, part, inplace):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.part, self.b = nn.Linear(3, 4), part(inplace=inplace), nn.Linear(4, 3)

    def forward(self, x):
        h = self.a(x)
        r = self.part(h)
        return self.b(r + (h if self.part.inplace else r))


@pytest.mark.parametrize("law", [dither.Additive(0.3), dither.Multiplicative(0.3)], ids=str)
@pytest.mark.parametrize("part", [nn.ReLU, nn.ELU, nn.SiLU])
def test_noise_before_a_module_that_works_in_place_is_the_same(part, law):
    x, y, found = torch.randn(5, 3, dtype=torch.double), torch.arange(5) % 3, []
    for inplace in (False, True):
        net = Twice(part, inplace).double().train()
        with dither.inject(net, {"part:in": law}, seed=0) as noise:
            z = net(x)
            z.square().sum().backward()
            change = dither.expected(noise, x, y, draws=10, seed=1)
            values = [z, net.a.weight.grad, torch.tensor(change.value)]
            for curvature in ("gauss_newton", "full"):
                values.append(dither.explicit(noise, x, y, curvature=curvature).R)
        found.append([v.detach() for v in values])
    torch.testing.assert_close(found[1], found[0])


class Flagged(nn.Sequential):
    """A block that holds the flag for a part of it, and writes to no input."""

    inplace = True


def test_a_flag_of_a_block_or_of_a_dropout_that_is_off_writes_nothing():
    x, kept = torch.zeros(2, 3), torch.zeros(2, 3)
    net = nn.Sequential(Flagged(nn.Linear(3, 3), nn.ReLU(inplace=True))).train()
    with dither.inject(net, {"0:in": dither.Additive(1.0)}):
        net(x)
    net = nn.Sequential(nn.Linear(3, 3), nn.Softmax(-1), nn.Dropout(0.5, inplace=True)).eval()
    with dither.inject(net, {"2:in": dither.Additive(0.1)}, when="always"):
        net(x).square().sum().backward()
    assert torch.equal(x, kept)
