"""Extreme eigenvalues against dense matrices, at a site too; Lanczos' iteration by itself."""

import warnings

import oracles
import pytest
import torch
from blocks import case
from torch import nn

import dither
from dither.measures import local
from dither.measures.eigen import eigenvalues
from dither.measures.lanczos import largest, quadrature


def dense(model, x, y, matrix, loss="cross_entropy"):
    return oracles.curvature(model, x, y, oracles.LOSSES[loss], matrix).detach()


def stacked(vectors):
    """[k, n]"""
    return torch.cat([v.flatten(1) for v in vectors.values()], 1)


@pytest.mark.parametrize("matrix", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("name", ["tanh mlp", "attention", "norms"])
def test_they_are_the_dense_matrixs(name, matrix):
    model, x, y, _ = case(name, batch=4)
    A = dense(model, x, y, matrix)
    true = torch.linalg.eigvalsh(A)
    for which, wanted in (("largest", true.flip(0)[:3]), ("smallest", true[:3])):
        found = eigenvalues(
            model, "cross_entropy", (x, y), k=3, which=which, matrix=matrix, tolerance=1e-9
        )
        assert (found.value - wanted).abs().max() < 1e-10 * true.abs().max()
        v = stacked(found.vectors)
        residual = (v @ A - found.value.unsqueeze(1) * v).norm(dim=1)
        assert (residual - found.residual).abs().max() < 1e-10 * true.abs().max()
        assert (found.residual < 2e-9 * true.abs().max()).all()
        oracles.close(v @ v.T, torch.eye(3), rtol=1e-8)
        assert {n: p.shape[1:] for n, p in found.vectors.items()} == {
            n: p.shape for n, p in model.named_parameters()
        }


def test_an_eigenvalue_lies_within_the_residual():
    """After few steps, when nothing has converged."""
    model, x, y, _ = case("tanh mlp")
    true = torch.linalg.eigvalsh(dense(model, x, y, "hessian"))
    for steps in (3, 5, 8):
        with pytest.warns(RuntimeWarning, match=f"after {steps} products"):
            found = eigenvalues(
                model, "cross_entropy", (x, y), k=2, steps=steps, tolerance=1e-12, seed=steps
            )
        off = (found.value.unsqueeze(1) - true).abs().amin(1)
        assert (off <= found.residual).all()
        assert (found.residual > 1e-9).all()
        assert found.products == steps + 2


def test_batches_count_by_their_size_and_an_injection_names_the_parameters():
    model, x, y, _ = case("tanh mlp")
    parts = [(x[:4], y[:4]), (x[4:], y[4:])]
    head = nn.Sequential(model[2])
    for matrix in ("hessian", "gauss_newton"):
        how = {"matrix": matrix, "tolerance": 1e-9}
        whole = eigenvalues(model, "cross_entropy", (x, y), **how).value
        oracles.close(eigenvalues(model, "cross_entropy", parts, **how).value, whole)
        with dither.inject(model, {"2.*": dither.Weight(0.1)}) as noise:
            found = eigenvalues(noise, "cross_entropy", (x, y), **how)
        top = torch.linalg.eigvalsh(dense(head, model[:2](x).detach(), y, matrix))[-1:]
        oracles.close(found.value, top)
        assert set(found.vectors) == {"2.weight", "2.bias"}


@pytest.mark.parametrize("matrix", ["hessian", "gauss_newton"])
def test_at_a_site_each_sample_has_its_own(matrix):
    """Against ∇²ℓ_i by the site's tensor of sample i, with positions; and two batches in turn."""
    model, x, y, _ = case("attention", batch=3)
    site = "block.linear1:in"
    found = eigenvalues(
        model, "cross_entropy", [(x[:2], y[:2]), (x[2:], y[2:])],
        k=2, at=site, matrix=matrix, tolerance=1e-9,
    )  # fmt: skip
    loss = oracles.LOSSES["cross_entropy"]
    assert found.vectors[site].shape == (3, 2, 6, 4)
    for i in range(3):
        with dither.inject(model, {site: dither.Additive(1.0)}) as noise:
            z, ((_, _, probe),) = oracles.probed(noise, x[i : i + 1])

        def rows(of, probe=probe):
            how = {"retain_graph": True, "create_graph": True}
            flat = of.reshape(-1)
            return torch.stack([torch.autograd.grad(e, probe, **how)[0].flatten() for e in flat])

        A = rows(rows(loss(z[0], y[i]))) if matrix == "hessian" else 0
        if matrix == "gauss_newton":
            A = rows(z[0]).T @ oracles.hessian(loss, z[0], y[i]) @ rows(z[0])
        true = torch.linalg.eigvalsh(A.detach()).flip(0)[:2]
        assert (found.value[i] - true).abs().max() < 1e-10 * true[0]
        v = found.vectors[site][i].flatten(1)
        residual = (v @ A - found.value[i].unsqueeze(1) * v).norm(dim=1)
        assert (residual - found.residual[i]).abs().max() < 1e-10 * true[0]


def test_of_one_sample_the_sites_are_the_local_ones():
    model, x, y, _ = case("tanh mlp", batch=1)
    found = eigenvalues(model, "cross_entropy", (x, y), at="0:out", tolerance=1e-9)
    with dither.inject(model, {"0:out": dither.Additive(1.0)}) as noise:
        (said,) = local.local(noise, x, y, curvature="full").values()
    assert found.value.item() == pytest.approx(said.top, rel=1e-10)


def test_looking_changes_nothing():
    model, x, y, _ = case("attention")
    model.train()
    frozen = model.head.weight.requires_grad_(False)
    noise = dither.inject(model, dither.Additive(1.0), when="always")
    before, state = {n: p.clone() for n, p in model.state_dict().items()}, torch.get_rng_state()
    for matrix, at in (("hessian", None), ("gauss_newton", None), ("hessian", "head:in")):
        eigenvalues(model, "cross_entropy", (x, y), matrix=matrix, at=at)
    assert noise.step == 0
    assert model.training
    assert not frozen.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


# ---------------------------------------------------------------------------------- the iteration


def times(A):
    return lambda v: (A @ v.unsqueeze(2)).squeeze(2)


def symmetric(rows, n):
    A = torch.randn(rows, n, n).double()
    return A + A.mT


def test_restarts_lose_nothing():
    """A basis of 40 for 300 dimensions, two matrices at once."""
    A = symmetric(2, 300)
    found = largest(times(A), torch.randn(2, 300).double(), 4, steps=400, tolerance=1e-11, seed=0)
    true = torch.linalg.eigvalsh(A).flip(1)[:, :4]
    assert (found.values - true).abs().max() < 1e-10 * true.max()
    assert (found.residuals < 2e-11 * found.scale.max()).all()


@pytest.mark.parametrize("size", [0.0, 3.0])
def test_eigenvalues_that_are_equal_are_found_as_often_as_they_are_there(size):
    """Every Krylov space of s I has one dimension."""
    found = largest(
        times(size * torch.eye(9).double().unsqueeze(0)),
        torch.randn(1, 9).double(),
        4,
        steps=9,
        tolerance=1e-9,
        seed=0,
    )
    oracles.close(found.values, torch.full((1, 4), size).double(), rtol=1e-12)
    oracles.close(found.vectors[:, 0] @ found.vectors[:, 0].T, torch.eye(4), rtol=1e-12)


def test_the_zeros_of_a_matrix_of_low_rank_are_found_in_single_precision():
    """Where products have rounding of their own, and a Krylov space never ends quite."""
    half = torch.randn(2, 50, 4)
    noisy = lambda v: times(half @ half.mT)(v) + 1e-7 * torch.randn_like(v)  # noqa: E731
    found = largest(lambda v: -noisy(v), torch.randn(2, 50), 4, steps=60, tolerance=1e-4, seed=0)
    assert (found.values.abs() < 1e-4 * found.scale.unsqueeze(1)).all()


def test_the_quadrature_is_exact_up_to_degree_2m_minus_1():
    A, v = symmetric(1, 30), torch.randn(1, 30).double()
    nodes, weights = quadrature(times(A), v, 6, seed=0)
    q = (v / v.norm())[0]
    for degree in range(13):
        true = q @ torch.linalg.matrix_power(A[0], degree) @ q
        off = abs((weights * nodes**degree).sum() / true - 1)
        assert (off < 1e-10) == (degree < 12)


# ---------------------------------------------------------------------------------- the arguments


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"matrix": "fisher"}, "'hessian' or 'gauss_newton': got 'fisher'"),
        ({"which": "top"}, "'largest' or 'smallest': got 'top'"),
        ({"k": 0}, "k is a whole number ≥ 1: got 0"),
        ({"k": 1.5}, "k is a whole number ≥ 1: got 1.5"),
        ({"k": 58}, "k = 58 of a matrix of size 57"),
        ({"steps": 0}, "steps is a whole number ≥ 1: got 0"),
        ({"tolerance": 0.0}, r"in \(0, 1\): got 0.0"),
        ({"at": "?:in"}, "'.:in' names 3: 0:in, 1:in, 2:in"),
        ({"at": "0:in", "k": 6}, "k = 6 of a matrix of size 5"),
    ],
)
def test_bad_input_is_told(arguments, says):
    model, x, y, _ = case("tanh mlp")
    with pytest.raises(dither.DitherError, match=says):
        eigenvalues(model, "cross_entropy", (x, y), **arguments)


def test_models_and_losses_that_cannot_be_asked_are_told():
    model, x, y, _ = case("tanh mlp")
    data = (x, y)
    with pytest.raises(dither.DitherError, match="eigenvalues reads the data more than once"):
        eigenvalues(model, "cross_entropy", iter([data]))
    with pytest.raises(dither.DitherError, match="linear in the outputs"):
        eigenvalues(model, lambda z, y: z.sum(-1), data, matrix="gauss_newton")
    with pytest.raises(dither.DitherError, match="depends on the output of another"):
        eigenvalues(model, lambda z, y: z.sum(-1) * z.mean(), data)
    with pytest.raises(dither.DitherError, match="the loss has kinks"):
        eigenvalues(model, lambda z, y: z.abs().sum(-1), data)
    mixed = nn.Sequential(model[0], nn.BatchNorm1d(6, track_running_stats=False), model[2]).double()
    with pytest.raises(dither.DitherError, match=r"at '0:in', \[6, 5\].*each by itself"):
        eigenvalues(mixed, "cross_entropy", data, at="0:in")
    mixed.spare = nn.Linear(2, 2)
    mixed.forward = lambda x: model(x)
    with pytest.raises(dither.DitherError, match="never calls 'spare:in'"):
        eigenvalues(mixed, "cross_entropy", data, at="spare:in")
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    with pytest.raises(dither.errors.NotFinite, match="the network has diverged"):
        eigenvalues(model, "cross_entropy", data)


def test_a_batch_that_mixes_its_samples_has_a_hessian_in_the_parameters_all_the_same():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)).double()
    x, y = torch.randn(4, 3).double(), torch.tensor([0, 1, 2, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = eigenvalues(net, "cross_entropy", (x, y), tolerance=1e-9)
    oracles.close(found.value, torch.linalg.eigvalsh(dense(net, x, y, "hessian"))[-1:])


class Spectral(nn.Module):
    """A complex filter whose parameter is pairs of real numbers, 3 of 21 in all: an odd number."""

    def __init__(self):
        super().__init__()
        self.filter, self.last = nn.Parameter(torch.randn(3, 2)), nn.Linear(4, 3)

    def forward(self, x):
        h = torch.fft.rfft(x, dim=-1) * torch.view_as_complex(self.filter)
        return self.last(torch.fft.irfft(h, n=4, dim=-1).tanh())


@pytest.mark.parametrize("matrix", ["hessian", "gauss_newton"])
def test_parameters_that_are_viewed_as_complex(matrix):
    torch.manual_seed(0)
    model, x, y = Spectral().double(), torch.randn(5, 4).double(), torch.arange(5) % 3
    true = torch.linalg.eigvalsh(dense(model, x, y, matrix)).flip(0)[:3]
    found = eigenvalues(model, "cross_entropy", (x, y), k=3, matrix=matrix, tolerance=1e-9)
    assert (found.value - true).abs().max() < 1e-9 * true.abs().max()
