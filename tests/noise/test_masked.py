"""Noise under a mask: the draws, R and E[Δℓ] are those of a model that multiplies it in."""

import pytest
import torch
from torch import nn

import dither
from dither.noise.draw import Source
from dither.noise.here import Here

B, T, D = 4, 5, 6


class Net(nn.Module):
    """Tokens → embedding → mixing over positions → classes of a sample."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Embedding(9, D), nn.Linear(D, D)
        self.out = nn.Linear(D, 3)

    def forward(self, tokens, attention_mask=None):
        h = torch.tanh(self.mix(self.embed(tokens))) * attention_mask.unsqueeze(-1)
        return self.out(h.sum(1))


@pytest.fixture
def given():
    torch.manual_seed(0)
    model = Net().double()
    lengths = torch.tensor([5, 3, 1, 4])
    mask = torch.arange(T) < lengths[:, None]
    x = {"tokens": torch.randint(9, (B, T)), "attention_mask": mask}
    return model, x, torch.randint(3, (B,))


NOISES = {
    "additive": dither.Additive(0.3),
    "times": dither.Multiplicative(0.3),
    "neftune": dither.Neftune(3.0),
    "locked": dither.Locked(0.3),
    "path": dither.DropPath(),
}
each = pytest.mark.parametrize("kind", NOISES)


@each
def test_R_is_half_the_sum_of_squares_at_the_unmasked_positions(given, kind):
    """By a loop over samples with dense Jacobians and Hessians of the loss at the embedding."""
    model, x, y = given
    kind_of = NOISES[kind]
    noise = dither.inject(model, {"embed:out": kind_of}, mask="attention_mask")
    found = dither.explicit(noise, x, y).R
    noise.remove()
    total = torch.zeros((), dtype=torch.float64)
    for i in range(B):
        n = int(x["attention_mask"][i].sum())
        mask = x["attention_mask"][i : i + 1].double()
        h0 = model.embed(x["tokens"][i : i + 1]).detach()

        def logits(h, mask=mask):
            return model.out((torch.tanh(model.mix(h)) * mask.unsqueeze(-1)).sum(1))[0]

        J = torch.autograd.functional.jacobian(logits, h0)[:, 0, :n]  # [C, n, D]
        p = logits(h0).softmax(0).detach()
        H = p.diag() - p[:, None] * p
        h = h0[0, :n]
        pulled = {  # the Jacobian by the independent ε, [C, …], and the factor on its square
            "additive": (J, 0.3**2),
            "times": (J * h, 0.3**2),
            "neftune": (J, 9 / (3 * n * D)),
            "locked": ((J * h).sum(1, keepdim=True), 0.3**2),  # its law has variance 1
            "path": ((J * h).sum((1, 2), keepdim=True), 0.1 / 0.9),
        }[kind]
        flat = pulled[0].flatten(1)
        total = total + pulled[1] * 0.5 * torch.trace(H @ flat @ flat.mT) / B
    torch.testing.assert_close(found.detach(), total.detach())


@each
def test_R_at_small_sigma_is_the_mean_change(given, kind):
    model, x, y = given
    from dataclasses import replace

    small = replace(NOISES[kind], sigma=0.02, law=dither.two_point)
    noise = dither.inject(model, {"embed:out": small}, mask="attention_mask", seed=0)
    full = float(dither.explicit(noise, x, y, curvature="full").R.detach())
    change = dither.expected(noise, x, y, draws=4000, antithetic=True)
    assert abs(change.value - full) < 5 * change.sem + 0.01 * abs(full)


@each
def test_masked_positions_are_untouched_and_the_others_get_the_draw(given, kind):
    h = torch.randn(B, T, D)
    mask = torch.arange(T) < torch.tensor([5, 3, 1, 4])[:, None]
    here = Here(h, mask=mask)
    under = dither.Masked(NOISES[kind], "m").displace(here, Source([3]))
    assert not under[~mask].any()
    bare = NOISES[kind].displace(here, Source([3]))
    assert torch.equal(under[mask], bare.expand_as(h)[mask])


def test_neftune_under_a_mask_is_the_authors():
    """±α/√(n d) at the n positions of a sample, as the authors' own code has it."""
    h, lengths = torch.randn(B, T, D), torch.tensor([5, 3, 1, 4])
    mask = torch.arange(T) < lengths[:, None]
    delta = dither.Masked(dither.Neftune(5.0), "m").displace(Here(h, mask=mask), Source([1]))
    bound = 5 / (lengths * D) ** 0.5
    largest = delta.abs().flatten(1).amax(1)
    assert (largest <= bound).all()
    assert (largest > 0.6 * bound).all()


def test_a_mask_by_position_by_function_and_per_batch_dimension(given):
    model, x, y = given
    by_name = dither.inject(model, {"embed:out": dither.Additive(0.3)}, mask="attention_mask")
    expected = dither.explicit(by_name, x, y).R
    torch.testing.assert_close(dither.explicit(by_name, tuple(x.values()), y).R, expected)
    by_name.remove()
    by_function = dither.Masked(dither.Additive(0.3), lambda *a, **k: k["attention_mask"] * 1)
    with dither.inject(model, {"embed:out": by_function}) as noise:
        torch.testing.assert_close(dither.explicit(noise, x, y).R, expected)
        assert "Additive σ 0.3 gaussian where its mask" in repr(noise)
    h, mask = torch.randn(T, B, D), torch.ones(B, T)
    mask[0, 2] = 0
    delta = dither.Masked(dither.Additive(1.0), "m").displace(
        Here(h, batch_dim=1, mask=mask), Source([1])
    )
    assert not delta[2, 0].any()
    assert delta[2, 1].all()


def test_balance_and_schedules_reach_the_noise_inside(given):
    model, x, _ = given
    with torch.no_grad():
        model.out.weight *= 9  # a net that is sure of its answers
        y = model(**x).argmax(1)
    noise = dither.inject(model, {"embed:out": dither.Additive(1.0)}, mask="attention_mask")
    sigmas = dither.balance(noise, x, y, ratio=0.01)
    noise.remove()
    chosen = {n: dither.Masked(dither.Additive(s)) for n, s in sigmas.items()}
    with dither.inject(model, chosen) as noise:
        loss, R, _ = dither.explicit(noise, x, y)
        assert float(R.detach()) == pytest.approx(float(loss.detach()) * 0.01, rel=0.3)
    until = dither.Masked(dither.Additive(dither.schedule.Until(1.0, 1)))
    with dither.inject(model, {"embed:out": until}):
        model.train()
        first, second = model(**x), model(**x)
        clean = model.eval()(**x)
    assert not torch.equal(first, clean)
    assert torch.equal(second, clean)


def test_mask_leaves_noise_on_parameters_alone(given):
    model, x, _ = given
    what = {"mix.weight": dither.Weight(0.1)}
    with dither.inject(model, what, seed=0, mask="attention_mask"):
        one = model.train()(**x)
    with dither.inject(model, what, seed=0):
        assert torch.equal(model(**x), one)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m, x: dither.Masked(0.1), "Masked takes a noise of activations"),
        (lambda m, x: dither.Masked(dither.Weight(0.1)), "Masked takes a noise of activations"),
        (lambda m, x: dither.Masked(dither.Node(0.1)), "without trained vectors"),
        (lambda m, x: dither.Masked(dither.Masked(dither.Additive(0.1))), "Masked of Masked"),
        (lambda m, x: dither.Masked(dither.Additive(0.1), 3), "the mask of Masked is the name"),
        (lambda m, x: dither.Masked(dither.Additive(0.1), "m", -1.0), "σ of Additive must be"),
        (lambda m, x: run(m, x, "nope"), "'nope', is no tensor .* of Net: got NoneType"),
        (lambda m, x: run(m, x, lambda *a, **k: 3), "its function, is no tensor .* got int"),
        (lambda m, x: run(m, x, lambda *a, **k: torch.ones(4, 3)), r"mask \[4, 3\] .* \[4, 5, 6\]"),
        (lambda m, x: part(m, x), "call the model, not a part of it"),
    ],
)
def test_bad_masks_are_one_sentence(given, call, says):
    model, x, _ = given
    with pytest.raises(dither.DitherError, match=says):
        call(model, x)


def run(model, x, mask):
    with dither.inject(model, {"embed:out": dither.Additive(0.1)}, mask=mask):
        model.train()(**x)


def part(model, x):
    with dither.inject(model, {"embed:out": dither.Additive(0.1)}, mask="attention_mask"):
        model.train().embed(x["tokens"])
