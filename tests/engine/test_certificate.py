"""Samples that are not where they seem, or not apart: found by the gradients, and how often."""

import math

import pytest
import torch
import torch.nn.functional as F
from oracles import LOSSES, close, gradients
from torch import nn

import dither
from dither.engine import certificate
from dither.engine.batch_axis import Layout
from dither.engine.certificate import in_layout, partitioned
from dither.halves import halves, random_half, silence

EPS = torch.finfo(torch.float64).eps
B = 8
Y = torch.arange(B) % 3


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# ------------------------------------------------------------------------------------ masks


@pytest.mark.parametrize("batch", [2, 3, 8, 13, 64])
def test_any_two_samples_differ_in_one_of_the_halves(batch):
    bits = torch.stack([*halves(batch)])  # [log2 B, B]
    assert len(bits) == math.ceil(math.log2(batch))
    assert all((bits[:, i] != bits[:, j]).any() for i in range(batch) for j in range(i))


def test_a_random_half_is_never_all_alike():
    assert {int(random_half(2).sum()) for _ in range(50)} == {1}


def test_one_element_that_two_samples_share_is_seen():
    u = randn(4, 3)
    half = torch.tensor([True, False, True, False])
    v = silence(u, half)
    assert partitioned(u, v, half, None, EPS)
    v[1, 2] = u[1, 2] / 3  # part of it comes from another sample
    assert not partitioned(u, v, half, None, EPS)


def test_rows_ask_for_more_than_elements():
    """A time-first tensor [T, B]: every element has one sample, every row has all."""
    u, half = randn(5, 4), torch.tensor([True, False, True, False])
    v = u * half
    assert partitioned(u, v, half, None, EPS)
    assert not partitioned(u, v, half, 0, EPS)
    assert partitioned(u, v, half, 1, EPS)
    assert in_layout(u, v, half, Layout("dim", 1, 4), EPS)


def test_what_is_let_pass_is_the_root_of_epsilon():
    u, half = torch.ones(4, 100), torch.tensor([True, False, True, False])
    for size, passes in ((1e-5, True), (1e-3, False)):  # √ε = 3.5e-4 in single precision
        v = silence(u, half)
        v[1] = size
        assert partitioned(u, v, half, None, torch.finfo(u.dtype).eps) == passes


def dense(noise, x, y, loss="cross_entropy"):
    """{site: R} of Weight noise by a loop over outputs: the whole batch is the function's input."""
    model, sigma = noise.model, 0.2
    with noise.off():
        z = model(*x) if isinstance(x, tuple) else model(x)
    found = {name: torch.zeros(()).double() for name in noise.sites}
    for i in range(len(z)):
        H = torch.autograd.functional.hessian(lambda o, i=i: LOSSES[loss](o, y[i]), z[i].detach())
        rows = {
            name: torch.stack(
                [
                    torch.zeros_like(p) if g is None else g
                    for c in range(z.shape[1])
                    for g in torch.autograd.grad(
                        z[i, c], p, retain_graph=True, create_graph=True, allow_unused=True
                    )
                ]
            ).flatten(1)
            for name, p in model.named_parameters()
        }
        for name, J in rows.items():
            found[name] = found[name] + sigma**2 / 2 / len(z) * torch.trace(J.T @ H @ J)
    return found


def agree(noise, x, y, loss="cross_entropy"):
    """R and each share are the dense ones."""
    found, truth = dither.explicit(noise, x, y, loss), dense(noise, x, y, loss)
    close(torch.stack([*found.by_site.values()]).detach(), torch.stack([*truth.values()]).detach())
    return found.R, truth


# ------------------------------------------------------------------------------------ models


class Pairs(nn.Module):
    """Sample i meets sample i + B/2: the first, the second and the last are never together."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        u, v = torch.tanh(self.a(x)).chunk(2)
        return self.b(torch.cat([u - v, v - u]))


class OnePair(Pairs):
    """One sample looks at one other, in batches that say so."""

    def forward(self, x, share=1.0):
        h = torch.tanh(self.a(x))
        mixed = h[3] + share * h[5]
        return self.b(torch.cat([h[:3], mixed.unsqueeze(0), h[4:]]))


class Packed(Pairs):
    """Rows of all samples in one tensor; `of` says whose each is."""

    def forward(self, rows, of):
        return self.b(torch.zeros(B, 4).double().index_add(0, of, torch.tanh(self.a(rows))))


class Centred(Pairs):
    """Mixes the batch in train mode only."""

    def forward(self, x):
        h = self.a(x)
        return self.b(torch.tanh(h - h.mean(0) if self.training else h))


def test_pairs_across_the_batch_are_refused():
    with dither.inject(Pairs().double(), {"input": dither.Additive(0.1)}) as noise:
        for _ in range(5):  # the verdict is not chance: the first call asks every pair
            with pytest.raises(dither.DitherError, match="two of them depend on the same elements"):
                dither.explicit(noise, randn(B, 3), Y)


class Through(Pairs):
    """A sample alone has the output it has among others, and another slope."""

    def forward(self, x):
        h = torch.tanh(self.a(x))
        mean = h.mean(0, keepdim=True)
        return self.b(h + mean - mean.detach())


@pytest.mark.parametrize("model", [Pairs, OnePair, Through])
def test_weights_of_models_that_mix_are_right(model, monkeypatch):
    """By their gradients: that those of `Through` are not the output's is let pass here."""
    monkeypatch.setattr("dither.regulariser.explicit.check_gradients", lambda *_, **__: None)
    model, x = model().double(), randn(B, 3)
    noise = dither.inject(model, dither.Weight(0.2), seed=0)
    agree(noise, x, Y)


@pytest.mark.parametrize(
    "counts",
    [[2] * 8, [3, 1, 2, 2, 2, 2, 2, 2], [1, 3, 2, 2, 1, 3, 2, 2], [9, 1, 1, 1, 1, 1, 1, 1]],
)
def test_packed_rows(counts):
    """The same number of rows in all: shapes do not tell."""
    model, rows = Packed().double(), randn(16, 3)
    noise = dither.inject(model, dither.Weight(0.2), seed=0)
    for many in ([2] * 8, counts):
        of = torch.repeat_interleave(torch.arange(B), torch.tensor(many))
        agree(noise, (rows, of), Y)


def test_what_eval_mode_told_is_not_taken_for_train_mode():
    model, x = Centred().double(), randn(B, 3)
    noise = dither.inject(model, dither.Weight(0.2), seed=0)
    for mode in (False, True, False):
        model.train(mode)
        agree(noise, x, Y)


def test_the_same_functions_in_another_mode_are_asked_anew():
    """Of a graph that is known a random half misses one pair with chance ½; twenty are not."""

    class Mode(OnePair):
        def forward(self, x):
            return super().forward(x, float(self.training))

    model, x = Mode().double(), randn(B, 3)
    for _ in range(20):
        with dither.inject(model, {"a:out": dither.Additive(0.1)}, seed=0) as noise:
            model.eval()
            with torch.no_grad():
                dither.explicit(noise, x, Y)
            model.train()
            with torch.no_grad(), pytest.raises(dither.DitherError, match="two of them"):
                dither.explicit(noise, x, Y)


def test_columns_that_cancel_leave_a_mixture():
    """u and −u have the mixture (r₁ − r₂) u, r ~ N(0, 1): below 1e-6 of u once in two million."""
    u, compared = randn(B, 3), certificate.Compared({}, {}, EPS)
    compared.add(torch.stack([u, -u]))
    assert compared.column.norm() > 1e-6 * u.norm()


def test_a_planted_pair_is_missed_half_of_the_time_and_not_twice():
    """The graph is known by a batch that does not mix; then one sample looks at one other. Of 400
    calls the number missed is binomial with chance ½ at most: 4.9 standard deviations of 10.
    """
    model, x = OnePair().double(), randn(B, 3)
    noise = dither.inject(model, {"a:out": dither.Additive(0.1)}, seed=0)
    with torch.no_grad():
        dither.explicit(noise, (x, 0.0), Y)
        missed = 0
        for _ in range(400):
            try:
                dither.explicit(noise, (x, 1.0), Y)
                missed += 1
            except dither.DitherError:
                pass
    assert missed <= 200 + 49
    assert missed >= 200 - 49  # a random half, and not all pairs at each call


def test_the_check_draws_from_no_generator_of_the_run():
    model, x = Centred().double().eval(), randn(B, 3)
    noise = dither.inject(model, dither.Weight(0.2), seed=0)
    state = torch.get_rng_state()
    dither.explicit(noise, x, Y)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_rule_that_is_wrong_is_found_out(monkeypatch):
    """Its parameter is then taken sample by sample: right, and slower."""
    from dither.engine.kinds import Outer

    model, x = Centred().double().eval(), randn(B, 3)
    noise = dither.inject(model, dither.Weight(0.2), seed=0)
    whole = Outer.norm2
    monkeypatch.setattr(Outer, "norm2", lambda *args: 1.01 * whole(*args))
    agree(noise, x, Y)
    assert {"a.weight", "b.weight"} <= set().union(
        *(known for mark, known in noise.layouts.items() if mark[0] == "stray")
    )


# ----------------------------------------------------------------------------- other ways out


class Force(nn.Module):
    """The output is a gradient of a network by its input."""

    def __init__(self):
        super().__init__()
        self.e = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, x):
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            return -torch.autograd.grad(self.e(x).sum(), x, create_graph=True)[0]


def test_outputs_that_are_gradients():
    model, x, y = Force().double(), randn(4, 3), randn(4, 3)
    noise = dither.inject(model, dither.Weight(0.2), seed=0)
    agree(noise, x, y, "half_square")
    noise.remove()
    for curvature in ("gauss_newton", "full"):  # δ = σ h ε, and the forward differentiates h
        with (
            dither.inject(model, {"e.1:out": dither.Multiplicative(0.1)}) as noise,
            pytest.raises(dither.DitherError, match=r"'e\.1:out': the model's forward different"),
        ):
            dither.explicit(noise, x, y, "half_square", curvature=curvature)


class Frozen(nn.Module):
    """A backbone with gradients off."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        with torch.no_grad():
            h = self.a(x)
        return self.b(h)


@pytest.mark.parametrize("curvature", ["gauss_newton", "full"])
@pytest.mark.parametrize(
    ("noise", "where"),
    [({"a": dither.Additive(0.1)}, "a:in"), ({"a.*": dither.Weight(0.1)}, "a.bias")],
)
def test_gradients_off_inside_are_told(noise, where, curvature):
    with (
        dither.inject(Frozen().double(), noise) as injected,
        pytest.raises(dither.DitherError, match=f"'{where}': .*gradients off"),
    ):
        dither.explicit(injected, randn(B, 3), Y, curvature=curvature)


@pytest.mark.parametrize("curvature", ["gauss_newton", "full"])
def test_a_model_that_draws_by_itself_is_told(curvature):
    class Drops(Frozen):
        def forward(self, x):
            return self.b(F.dropout(self.a(x)))

    with (
        dither.inject(Drops().double().eval(), dither.Weight(0.1)) as noise,
        pytest.raises(dither.DitherError, match="another output when it is called again in eval"),
    ):
        dither.explicit(noise, randn(B, 3), Y, curvature=curvature)


def test_a_loss_that_crosses_samples_is_told():
    def contrast(z, y):
        return F.cross_entropy(z @ z.T, torch.arange(len(z)), reduction="none")

    with dither.inject(Centred().double().eval(), dither.Weight(0.1)) as noise:
        said = 0
        for _ in range(20):  # all pairs cross: any half sees some
            try:
                dither.explicit(noise, randn(B, 3), Y, contrast)
            except dither.DitherError as error:
                said += "depends on the output of another" in str(error)
    assert said == 20


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("noise", [dither.Additive(0.1), dither.Weight(0.1)])
def test_checkpointed_blocks(noise, reentrant):
    from torch.utils.checkpoint import checkpoint

    class Net(Centred):
        def forward(self, x):
            if not self.training:
                return super().forward(x)
            h = checkpoint(lambda t: torch.tanh(self.a(t)), x, use_reentrant=reentrant)
            return self.b(h)

    model, x = Net().double(), randn(B, 3).requires_grad_()
    with dither.inject(model, noise, seed=0) as injected:
        parts = []
        for mode in (True, False):
            model.train(mode)
            R = dither.explicit(injected, x, Y).R
            parts.append((R.detach(), gradients(R, injected)))
    close(parts[0][0], parts[1][0])
    close(parts[0][1], parts[1][1])


def test_a_tensor_that_is_written_to_later_keeps_its_value():
    class Clean(nn.Module):
        def __init__(self):
            super().__init__()
            self.b = nn.Linear(3, 3).requires_grad_(False)  # so that its input may be written to

        def forward(self, x):
            h = torch.tanh(x) * 2
            return self.b(h) + 0.5 * h

    class Gated(Clean):
        def forward(self, x):
            h = torch.tanh(x) * 2
            z = self.b(h)
            h.mul_(0.5)  # after the site has seen it
            return z + h

    x, clean = randn(B, 3), Clean().double()
    model = Gated().double()
    model.load_state_dict(clean.state_dict())
    both = []
    for m in (model, clean):
        with dither.inject(m, {"b:in": dither.Multiplicative(0.1)}, seed=0) as noise:
            for curvature in ("gauss_newton", "full"):
                both.append(dither.explicit(noise, x, Y, curvature=curvature).R.detach())
    close(both[0], both[2])
    close(both[1], both[3])


def test_what_small_lets_pass_is_relative():
    g = randn(5)
    assert certificate.small(1e-9 * g, g, EPS)
    assert not certificate.small(1e-7 * g, g, EPS)
    assert certificate.small(g, g * torch.nan, EPS)  # says nothing
