"""What a noisy forward writes to its own parameters arrives there, and only that."""

import copy
import pickle

import pytest
import torch
from nets import Snapshot, shadows
from torch import nn
from torch.optim.swa_utils import update_bn

import dither

X = 5 + 3 * torch.randn(64, 2, generator=torch.Generator().manual_seed(1))


class Writes(nn.Module):
    """Writes `new` to the first rows of its parameter, in one of the ways a forward may."""

    def __init__(self, way, new):
        super().__init__()
        self.w, self.way, self.new = nn.Parameter(torch.ones(5, 2)), way, new

    def forward(self, x):
        n = len(self.new)
        if self.way == "data":
            self.w.data[:n] = self.new
        elif self.way == "data copied":
            self.w.data.view(-1)[: 2 * n].copy_(self.new.view(-1))
        elif self.way == "data replaced":
            self.w.data = torch.cat([self.new, self.w.detach()[n:]])
        elif self.way == "detached":
            self.w.detach()[:n] = self.new
        elif self.way == "no_grad":
            with torch.no_grad():
                self.w[:n].copy_(self.new)
        return x @ self.w.T


WAYS = ("data", "data copied", "data replaced", "detached", "no_grad")
NEW = torch.tensor([[7.0, -2.0], [0.5, 0.0]])


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("noises", [1, 2])
@pytest.mark.parametrize("way", WAYS)
def test_what_is_written_arrives_without_noise_on_the_rest(way, noises, grad):
    """Also through the shadows of two injections, one on the other."""
    model = Writes(way, NEW)
    w = model.w
    injected = [dither.inject(model, dither.Weight(0.1 + s), seed=s) for s in range(noises)]
    with torch.set_grad_enabled(grad):
        z = model(X)
    assert model.w is w
    assert not shadows(model)
    assert torch.equal(w.detach(), torch.cat([NEW, torch.ones(3, 2)]))
    torch.testing.assert_close(z[:, :2], X @ NEW.T)  # the rest of the forward reads it
    assert not torch.allclose(z[:, 2:], X @ torch.ones(2, 3))  # and elsewhere W + δ
    for noise in injected:
        noise.remove()


def test_what_a_noisy_part_has_written_is_read_by_the_rest_of_the_whole():
    """The part takes its shadow back before the forward of the whole ends."""

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = Writes("no_grad", NEW)

        def forward(self, x):
            self.part(x)
            return self.part.w.detach().clone()

    model = Whole()
    whole = dither.inject(model, dither.Weight(0.1), seed=0)
    dither.inject(model.part, dither.Weight(0.1), seed=1)
    assert torch.equal(model(X)[:2], NEW)
    assert not torch.equal(model(X)[2:], torch.ones(3, 2))
    assert torch.equal(model.part.w.detach(), torch.cat([NEW, torch.ones(3, 2)]))
    assert whole.step == 2


def test_a_forward_that_writes_nothing_changes_no_bit():
    model = Writes("none", NEW)
    before = Snapshot.of(model)
    with dither.inject(model, dither.Weight(0.1), seed=0):
        for _ in range(3):
            model(X).square().sum().backward()
            before.assert_same(model)
    assert model.w._version == 0


class ActNorm(nn.Module):
    """Initialises itself from the first batch. Kingma & Dhariwal 2018, Glow."""

    def __init__(self):
        super().__init__()
        self.bias, self.scale = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2))
        self.done = False

    def forward(self, x):
        if not self.done:
            self.bias.data.copy_(-x.mean(0))
            self.scale.data.copy_(1 / x.std(0))
            self.done = True
        return self.scale * (x + self.bias)


def test_an_initialisation_from_the_data_is_kept():
    model, clean = nn.Sequential(ActNorm(), nn.Linear(2, 2)), ActNorm()
    clean(X)
    with dither.inject(model, dither.Weight(0.1), seed=0):
        model(X)
        once = model(X)
        assert not torch.equal(once, model(X))  # noisy all the same
    assert torch.equal(model[0].bias, clean.bias)
    assert torch.equal(model[0].scale, clean.scale)


def test_max_norm_renormalises_the_embedding_itself():
    torch.manual_seed(0)
    model = nn.Embedding(10, 4, max_norm=1.0)
    before = model.weight.detach().clone()
    with dither.inject(model, dither.Weight(0.01), seed=0):
        model(torch.arange(5))
    long = before[:5].norm(dim=1) > 1.05
    assert bool(long.any())
    norms = model.weight.detach()[:5].norm(dim=1)
    torch.testing.assert_close(norms[long], torch.ones(int(long.sum())))
    assert torch.equal(model.weight[5:], before[5:])  # not looked up: not touched


def test_expected_writes_no_noise_to_a_parameter():
    model = Writes("no_grad", NEW[:1]).eval()
    with dither.inject(model, dither.Weight(0.1), seed=0) as noise:
        y = torch.zeros(64, 5)
        dither.expected(noise, X, y, "half_square", draws=4)
    assert torch.equal(model.w[1:], torch.ones(4, 2))


def test_copies_taken_inside_a_forward_have_the_parameter():
    model, taken = Writes("none", NEW), []
    model.register_forward_hook(
        lambda m, *_: taken.extend([copy.deepcopy(m.w), pickle.loads(pickle.dumps(m.w))])
    )
    with dither.inject(model, dither.Weight(0.1), seed=0):
        model(X)
    for w in taken:
        assert type(w) is nn.Parameter
        assert torch.equal(w, model.w)


# --------------------------------------------------------------------------- running statistics


def test_update_bn_collects_statistics_without_noise_where_they_are_kept():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    clean = copy.deepcopy(model)
    batches = list(X.split(16))
    update_bn(batches, clean)
    what = {"*.weight": dither.Weight(0.5)}
    with dither.inject(model, what, seed=0, statistics="keep") as noise:
        model(X)
        step = noise.step
        update_bn(batches, model)
        assert noise.step == step
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(getattr(model[1], name), getattr(clean[1], name)), name
        assert not torch.equal(model(X), model(X))  # noisy again
        assert torch.equal(model[1].running_mean, clean[1].running_mean)
