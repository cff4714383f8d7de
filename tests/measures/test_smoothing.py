"""Randomised smoothing: the exact bound, classifiers whose radius is known, abstention."""

import math
from statistics import NormalDist

import pytest
import torch
from scipy import stats
from torch import nn

import dither
from dither.measures.smoothing import certificate, lower_bound

PHI = NormalDist()


class Side(nn.Module):
    """Class 1 where x·w > 0: the smoothed class has P = Φ(|x·w|/σ‖w‖), and the radius |x·w|/‖w‖."""

    def __init__(self, w=(3.0, 4.0)):
        super().__init__()
        self.fc = nn.Linear(2, 2, bias=False)
        self.fc.weight.data = torch.tensor([[-w[0], -w[1]], [w[0], w[1]]])

    def forward(self, x):
        return self.fc(x)


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.4])
def test_the_bound_is_clopper_and_pearsons(alpha):
    for n in (1, 2, 10, 1000, 100_000):
        for k in sorted({1, n // 3 or 1, n // 2 + 1, n - 1 or 1, n}):
            true = stats.beta.ppf(alpha, k, n - k + 1)
            assert lower_bound(k, n, alpha) == pytest.approx(true, rel=1e-10)
            assert stats.binom.sf(k - 1, n, lower_bound(k, n, alpha)) <= alpha * (1 + 1e-8)
    assert lower_bound(0, 10, alpha) == 0


def test_it_is_below_the_true_radius_and_near_it():
    """60 inputs, σ = .5, α = .001: more than 3 radii above the true one have chance 5·10⁻⁷."""
    x = torch.randn(60, 2)
    found = certificate(Side(), x, sigma=0.5, draws=(50, 2000))
    true = (x @ torch.tensor([3.0, 4.0]) / 5).double()
    sure = found.classes >= 0
    assert (found.radius[sure] > true.abs()[sure]).sum() <= 3
    assert (found.classes[sure] == (true > 0).long()[sure]).all()
    assert not found.radius[~sure].any()
    assert sure[true.abs() > 0.1].all()  # P > .579: 2000 draws count fewer than 1070 once in 10⁵
    share = torch.tensor([PHI.cdf(t / 0.5) for t in true.abs().tolist()]).double()
    middle = sure & (share < 0.99)
    assert (found.lower - share)[middle].abs().max() < 0.08  # 3.1 + 4.9 standard errors of √¼/2000
    top = 0.5 * PHI.inv_cdf(0.001 ** (1 / 2000))
    assert found.radius.max().item() <= top + 1e-12


def test_where_all_draws_agree_the_radius_is_the_largest_there_is():
    found = certificate(Side(), torch.tensor([[300.0, 400.0]]), sigma=2.0, draws=(5, 100))
    assert found.classes.item() == 1
    assert found.lower.item() == pytest.approx(0.001**0.01, rel=1e-12)
    assert found.radius.item() == pytest.approx(2 * PHI.inv_cdf(0.001**0.01), rel=1e-9)


def test_on_the_border_it_abstains():
    """P = ½ passes the bound with chance α, here ten times over: 10⁻⁵ each."""
    found = certificate(Side(), torch.zeros(10, 2), sigma=1.0, draws=(20, 500), alpha=1e-5)
    assert (found.classes == -1).all()
    assert not found.radius.any()
    assert (found.lower < 0.5).all()


def test_an_injection_is_its_model_and_its_sigma():
    model, x = Side(), torch.randn(4, 2)
    plain = certificate(model, x, sigma=0.3, draws=(10, 200))
    noise = dither.inject(model, {"input": dither.Additive(lambda step: 0.3)})
    dither.inject(model, {"fc:in": dither.Additive(9.0)}, when="always")  # silent
    found = certificate(noise, x, draws=(10, 200))
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


def test_looking_changes_nothing_and_a_seed_gives_one_result():
    model, x, state = Side().train(), torch.randn(3, 2), torch.get_rng_state()
    found, again = (certificate(model, x, sigma=1.0, draws=(10, 100), seed=7) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    other = certificate(model, x, sigma=1.0, draws=(10, 100), seed=8)
    assert not torch.equal(found.lower, other.lower)


@pytest.mark.parametrize(
    "what",
    [
        dither.Additive(0.1),  # at the layer's input, not the model's
        {"input": dither.Additive(0.1, dither.uniform)},
        {"input": dither.Multiplicative(0.1)},
        {"input": dither.Additive(0.1), "fc:out": dither.Additive(0.1)},
        {"input": dither.Additive(0.0)},
        dither.Weight(0.1),
    ],
    ids=str,
)
def test_noise_without_a_certificate_is_told(what):
    with pytest.raises(dither.DitherError, match=r"Gaussian noise of σ > 0.*nowhere else: got"):
        certificate(dither.inject(Side(), what), torch.zeros(2, 2))


def test_bad_input_is_told():
    model, x = Side(), torch.zeros(2, 2)
    for sigma in (None, 0.0, -1.0, math.inf, "1"):
        with pytest.raises(dither.DitherError, match="of a model needs sigma > 0"):
            certificate(model, x, sigma=sigma)
    with pytest.raises(dither.DitherError, match="takes a model with sigma=, or an injection"):
        certificate(lambda x: x, x, sigma=1.0)
    noise = dither.inject(model, {"input": dither.Additive(0.1)})
    with pytest.raises(dither.DitherError, match=r"takes σ from the injection: got sigma = 0\.2"):
        certificate(noise, x, sigma=0.2)
    for draws in (100, (100,), (0, 10), (10, 2.5)):
        with pytest.raises(dither.DitherError, match=r"draws (are two|is a) whole"):
            certificate(model, x, sigma=1.0, draws=draws)
    for alpha in (0.0, 0.5):
        with pytest.raises(dither.DitherError, match=f"a chance in .*got {alpha}"):
            certificate(model, x, sigma=1.0, alpha=alpha)
    with pytest.raises(dither.DitherError, match="x must be a tensor of floats"):
        certificate(model, x.long(), sigma=1.0)
    with pytest.raises(dither.DitherError, match=r"outputs \[B, C\].*got \[10, 1\] for 10 inputs"):
        certificate(nn.Linear(2, 1), x, sigma=1.0, draws=(10, 10))
    mixed = nn.Sequential(model, nn.BatchNorm1d(2, track_running_stats=False))
    with pytest.raises(dither.DitherError, match=r"'1' \(BatchNorm1d\).*mixes the batch"):
        certificate(mixed, x, sigma=1.0)
    with pytest.raises(dither.errors.NotFinite, match="not finite on noisy inputs"):
        certificate(model, x * torch.nan, sigma=1.0)
