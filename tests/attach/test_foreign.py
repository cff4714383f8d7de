"""What other parts of torch do to a noisy model, or ask of it: it works, or one sentence says why
not.
"""

import copy
import io
import warnings

import pytest
import torch
from nets import hooks, plain, shadows
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parametrizations, parametrize, prune

import dither

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.tensor([0, 2, 1, 1, 0, 2])


# --------------------------------------------------------------------------- parameters that change

CHANGES = {
    "pruned": lambda m: prune.l1_unstructured(m, "weight", amount=0.3),
    "parametrised": parametrizations.spectral_norm,
    "deleted": lambda m: delattr(m, "weight"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_parameter_that_is_gone_is_named(change):
    model = plain(dtype=torch.float64)
    noise = dither.inject(model, dither.Weight(0.1), seed=0)
    CHANGES[change](model[2])
    for use in (
        lambda: model(X),
        lambda: dither.explicit(noise, X, Y),
        lambda: dither.expected(noise, X, Y, draws=4),
    ):
        with pytest.raises(dither.DitherError, match=r"'2\.weight' is no longer in the model"):
            use()
    assert "not there any more" in repr(noise)
    assert not shadows(nn.Sequential(*model[:2]))
    noise.remove()
    assert not [h for m in model for h in m._forward_hooks.values()]


def test_cached_parametrisations_are_computed_anew():
    torch.manual_seed(0)
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 5)), nn.Linear(5, 3)).double()
    clean = model(X)
    what = {"0.parametrizations.weight.original1": dither.Weight(0.3)}
    with dither.inject(model, what, seed=0) as noise:
        R = dither.explicit(noise, X, Y).R.item()
        noisy = model(X)
        with parametrize.cached():
            noise.step = 0
            assert torch.equal(model(X), noisy)
            with noise.off():
                assert torch.equal(model(X), clean)
            noise.step = 0
            assert torch.equal(model(X), noisy)
            assert dither.explicit(noise, X, Y).R.item() == pytest.approx(R, rel=1e-12)
            assert torch.equal(model.eval()(X), clean)


# --------------------------------------------------------------------------------------- torch.func


class Hyper(nn.Module):
    """Runs its inner layer with other parameters than it holds."""

    def __init__(self):
        super().__init__()
        self.inner, self.scale = nn.Linear(4, 3), nn.Parameter(torch.tensor(5.0))

    def forward(self, x):
        scaled = {k: v * self.scale for k, v in self.inner.named_parameters()}
        return functional_call(self.inner, scaled, (x,))


@pytest.mark.parametrize("frozen", [False, True])
def test_noise_on_a_parameter_that_the_forward_replaces_is_refused(frozen):
    model = Hyper().double()
    clean = model(X)
    model.inner.weight.requires_grad_(not frozen)
    noise = dither.inject(model, {"inner.weight": dither.Weight(0.1)}, seed=0)
    for use in (
        lambda: model(X),
        lambda: dither.explicit(noise, X, Y),
        lambda: dither.expected(noise, X, Y, draws=4),
    ):
        with pytest.raises(dither.DitherError, match=r"'inner\.weight'.*Linear with other"):
            use()
    assert not shadows(model)
    noise.remove()
    assert torch.equal(model(X), clean)


def test_noise_on_what_the_forward_reads_is_served():
    model = Hyper().double()
    clean = model(X)
    with dither.inject(model, {"scale": dither.Weight(1e-6)}, seed=0):
        noisy = model(X)
    assert not torch.equal(noisy, clean)
    torch.testing.assert_close(noisy, clean, rtol=1e-4, atol=1e-4)


def test_functional_call_of_a_noisy_model_is_noise_on_the_parameters_it_is_given():
    model = plain(dtype=torch.float64)
    doubled = {k: 2 * v for k, v in model.named_parameters()}
    other = copy.deepcopy(model)
    other.load_state_dict(doubled)
    with dither.inject(model, dither.Weight(0.1), seed=0):
        z = functional_call(model, doubled, (X,))
        slope = grad(lambda p: functional_call(model, p, (X,)).sum())(doubled)
    with dither.inject(other, dither.Weight(0.1), seed=0):
        torch.testing.assert_close(z, other(X), rtol=1e-14, atol=0)
        other(X).sum().backward()
    for name, p in other.named_parameters():
        torch.testing.assert_close(slope[name], p.grad)


@pytest.mark.parametrize("noise", [dither.Weight(0.1), dither.Additive(0.1)])
def test_draws_inside_vmap_are_refused(noise):
    model = plain(dtype=torch.float64)
    with dither.inject(model, noise, seed=0) as injected:
        with pytest.raises(dither.DitherError, match=r"inside torch\.func\.vmap"):
            vmap(model)(X)
        with injected.off():
            torch.testing.assert_close(vmap(model)(X), model(X))
    assert not shadows(model)


class Slope(nn.Module):
    """Its output is a gradient by its input, through torch.func."""

    def __init__(self):
        super().__init__()
        self.e = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, x):
        return vmap(grad(lambda a: self.e(a)[0]))(x)


def test_weight_noise_goes_through_transforms_inside_the_model():
    torch.manual_seed(0)
    model = Slope().double().eval()
    y = model(X).detach()
    with dither.inject(model, dither.Weight(0.01), seed=0) as noise:
        found = dither.expected(noise, X, y, "half_square", draws=200, antithetic=True, seed=0)
        full = dither.explicit(noise, X, y, "half_square", curvature="full").R.item()
    assert abs(found.value - full) < 5 * found.sem  # σ is small: higher orders are far below


# -------------------------------------------------------------------------------------- TorchScript


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_scripting_a_noisy_model_or_a_copy_of_it_is_refused():
    model = plain()
    noise = dither.inject(model, dither.Additive(0.1), seed=0)
    for one in (model, copy.deepcopy(model)):
        with pytest.raises(dither.DitherError, match=r"noise\.remove\(\)"):
            torch.jit.script(one)
    noise.remove()
    torch.jit.script(model)


def test_a_deep_copy_is_clean_and_pickles_without_dither():
    model = plain()
    with dither.inject(model, dither.Additive(0.1), seed=0):
        twin = copy.deepcopy(model)
    assert torch.equal(twin.train()(X.float()), model(X.float()))
    file = io.BytesIO()
    torch.save(twin, file)
    assert b"dither" not in file.getvalue()


# ------------------------------------------------------------------------- fused transformer layers


class Padded(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.enc, self.out = nn.TransformerEncoder(layer, 2), nn.Linear(8, 3)

    def forward(self, x, mask):
        return self.out(self.enc(x, src_key_padding_mask=mask).mean(1))


def test_padded_batches_in_eval_mode():
    """In eval mode without gradients torch's layers are fused, and hand on nested tensors."""
    torch.manual_seed(0)
    model, x = Padded().eval().double(), torch.randn(6, 5, 8, dtype=torch.float64)
    mask = torch.zeros(6, 5, dtype=torch.bool)
    before = torch.backends.mha.get_fastpath_enabled()
    with dither.inject(model, dither.Weight(1e-3), seed=0, when="always"), torch.no_grad():
        noisy = model(x, mask)
    with torch.enable_grad():  # not fused
        clean = model(x, mask)
    assert 0 < (noisy - clean).abs().max() < 0.1
    with dither.inject(model, {"enc.layers.0.linear1:in": dither.Additive(1e-3)}, seed=0) as noise:
        found = dither.expected(noise, (x, mask), Y, draws=400, antithetic=True, seed=0)
        full = dither.explicit(noise, (x, mask), Y, curvature="full").R.item()
        assert abs(found.value - full) < 5 * found.sem
    shaped = dither.inject(model, dither.Node(0.1), example=(x, mask))
    assert shaped.sites["enc.layers.1.linear1:out"].seen == (6, 5, 16)
    shaped.remove()
    assert torch.backends.mha.get_fastpath_enabled() == before


# ----------------------------------------------------------------------- parts called by themselves


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.temperature = nn.Linear(4, 3), nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.net(x) * self.temperature


def test_noise_that_a_part_called_alone_misses_is_told_once():
    model = Scaled().double()
    with dither.inject(model, dither.Weight(0.1), seed=0):
        with pytest.warns(UserWarning, match=r"'temperature' is absent: Linear .* Scaled"):
            model.net(X)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.net(X)
            model(X)
    with dither.inject(model, {"net.*": dither.Weight(0.1)}, seed=0), warnings.catch_warnings():
        warnings.simplefilter("error")
        model.net(X)


# ------------------------------------------------------------------------------------------- others


def test_complex_parameters_are_no_sites_and_it_is_said():
    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(3, dtype=torch.cdouble))
            self.out = nn.Linear(4, 3)

        def forward(self, x):
            return self.out(torch.fft.irfft(torch.fft.rfft(x) * self.w, n=4))

    model = Spectral()
    with dither.inject(model, dither.Weight(0.1)) as noise:
        assert list(noise.sites) == ["out.weight", "out.bias"]
        assert "not a site: w: its numbers are complex" in repr(noise)
    with pytest.raises(dither.DitherError, match=r"'w' needs real numbers: got torch.complex128"):
        dither.inject(model, {"w": dither.Weight(0.1)})
    assert hooks(model) == 0


def test_noise_after_the_step_of_a_wrapped_optimiser():
    accelerate = pytest.importorskip("accelerate")
    w = nn.Parameter(torch.zeros(3))
    bare = torch.optim.SGD([w], 0.1)
    wrapped = accelerate.Accelerator(cpu=True).prepare(bare)
    for attach in (dither.langevin, dither.anti_pgd):
        walk = attach(wrapped, 0.5, seed=0)
        before = w.detach().clone()
        w.sum().backward()
        wrapped.step()
        wrapped.zero_grad()
        torch.testing.assert_close(w.detach(), before - 0.1 + walk.xi(0, w, 1))
        walk.remove()
