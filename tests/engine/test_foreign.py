"""Real parameters used where no rule holds: among complex numbers, inside torch.func."""

import pytest
import torch
import torch.nn.functional as F
from oracles import close, cross_entropy, regulariser
from torch import nn
from torch.func import functional_call, grad, jvp, vmap

import dither
from dither.errors import DitherError

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by jvp
Y = torch.tensor([0, 2, 1, 1])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Spectral(nn.Module):
    """A filter in frequency space, its numbers kept as real ones."""

    def __init__(self, how):
        super().__init__()
        self.how, self.b = how, nn.Linear(6, 3)
        shape = {"real": (4,), "product": (4, 2), "matrix": (4, 4, 2), "complex": (4, 2)}[how]
        self.w = nn.Parameter(torch.randn(shape) / 2)

    def forward(self, x):
        f = torch.fft.rfft(x)
        if self.how == "real":
            f = f * self.w
        elif self.how == "complex":
            f = f * torch.complex(self.w[:, 0], self.w[:, 1])
        else:
            w = torch.view_as_complex(self.w)
            f = f @ w if self.how == "matrix" else f * w
        return self.b(torch.fft.irfft(f, n=6).tanh())


class Inside(nn.Module):
    """A transform of torch.func in the forward, and a layer that is also used outside it."""

    def __init__(self, how):
        super().__init__()
        self.how, self.a, self.b = how, nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        def f(t):
            return torch.tanh(self.a(t))

        if self.how == "vmap":
            return self.b(vmap(f)(x))
        if self.how == "jvp":
            return self.b(jvp(f, (x,), (torch.ones_like(x),))[1])
        return self.b(vmap(grad(lambda t: f(t).sum()))(x) @ self.a.weight.T)


FILTERS = ("real", "product", "matrix", "complex")
MODELS = {
    **{f"{how} filter": lambda how=how: Spectral(how) for how in FILTERS},
    **{how: lambda how=how: Inside(how) for how in ("vmap", "jvp", "vmap of grad")},
}  # fmt: skip


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]().double().eval()


def test_R_and_its_gradient_are_the_dense_ones(model):
    x = torch.randn(4, 6).double()
    with dither.inject(model, dither.Weight(0.1)) as noise:
        for _ in range(2):
            found, truth = dither.explicit(noise, x, Y), regulariser(noise, x, Y, cross_entropy)
            close(*(torch.stack([*by.values()]).detach() for by in (found.by_site, truth)))
        leaves = list(model.parameters())
        mine = torch.autograd.grad(found.R, leaves, allow_unused=True, materialize_grads=True)
        right = torch.autograd.grad(
            sum(truth.values()), leaves, allow_unused=True, materialize_grads=True
        )
    for a, b in zip(mine, right, strict=True):
        close(a, b)


def test_traces_are_those_of_the_dense_matrices(model):
    x, of = torch.randn(4, 6).double(), dict(model.named_parameters())
    hessian = torch.autograd.functional.hessian(
        lambda *w: F.cross_entropy(functional_call(model, dict(zip(of, w, strict=True)), (x,)), Y),
        tuple(of.values()),
    )
    size = [p.numel() for p in of.values()]
    right = sum(h[i].reshape(n, n).trace() for i, (h, n) in enumerate(zip(hessian, size)))  # noqa: B905
    found = dither.measures.trace(model, "cross_entropy", (x, Y), probes=400)
    assert abs(found.value - right) < 4.5 * found.sem
    with dither.inject(model, dither.Weight(1.0)) as noise:
        truth = regulariser(noise, x, Y, cross_entropy)
        gn = dither.measures.trace(model, "cross_entropy", (x, Y), of="gauss_newton")
    close(torch.tensor(gn.value, dtype=torch.float64), 2 * sum(truth.values()).detach())


@pytest.mark.parametrize("of", ["hessian", "gauss_newton"])
def test_a_complex_parameter_is_named(of):
    model = nn.Sequential(nn.Linear(3, 2))
    model.turn = nn.Parameter(torch.ones(2, dtype=torch.cfloat))
    with pytest.raises(DitherError, match=r"'turn' holds torch.complex64"):
        dither.measures.trace(model, "cross_entropy", (torch.randn(2, 3), Y[2:]), of=of)
    with pytest.raises(DitherError, match="'turn'"):
        dither.inject(model, {"turn": dither.Weight(0.1)})
    with dither.inject(model, dither.Weight(0.1)) as noise:
        assert "turn" in noise.sites.skipped
