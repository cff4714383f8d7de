"""Variance explosion: the growth against exact recursions, verdicts against short training."""

import math
from dataclasses import replace

import pytest
import torch
from nets import Snapshot, hooks, mlp
from torch import nn

import dither
from dither.estimate import Estimate
from dither.lab.data.sets import Data
from dither.lab.nets.specs import MLP, LinearNet
from dither.lab.table import Table
from dither.measures.explosion import Explosion, Way, compounded, explosion
from dither.measures.explosion import growth as exploded
from dither.papers.beyond.explosion import figure

RNG = torch.Generator().manual_seed(1)
X = torch.randn(12, 5, generator=RNG, dtype=torch.float64)
Y = torch.randn(12, 2, generator=RNG, dtype=torch.float64)
DEEP = (5, 30, 20, 2)


def net(widths=DEEP) -> nn.Sequential:
    return LinearNet(widths, init="lecun").build(0).double()


def moment(model: nn.Sequential, sigma: float) -> float:
    """E‖Φ‖² under noise of σ on every matrix: S_j = W_j S_{j−1} W_jᵀ + σ² tr(S_{j−1}) I."""
    S = X.T @ X
    for layer in model:
        if isinstance(layer, nn.Linear):
            W = layer.weight.detach()
            S = W @ S @ W.T + sigma**2 * S.trace() * torch.eye(len(W), dtype=W.dtype)
    return S.trace().item()


def first_order(model: nn.Sequential) -> float:
    """Σ_j ‖W_M ⋯ W_{j+1}‖² ‖W_{j−1} ⋯ W₁Xᵀ‖²: of one layer's noise at a time, which is exact."""
    Ws = [m.weight.detach() for m in model if isinstance(m, nn.Linear)]
    total = 0.0
    for j, W in enumerate(Ws):
        before, after = X.T, torch.eye(len(W), dtype=W.dtype)
        for V in Ws[:j]:
            before = V @ before
        for V in Ws[j + 1 :]:
            after = V @ after
        total += (after.square().sum() * before.square().sum()).item()
    return total


def growth(model: nn.Sequential, sigma: float) -> float:
    """G of full noise, σ/√M on each of the M matrices; E Φ is Φ, so that E‖ΔΦ‖² = E‖Φ‖² − ‖Φ‖²."""
    m = sum(isinstance(layer, nn.Linear) for layer in model)
    moved = moment(model, sigma / math.sqrt(m)) - moment(model, 0.0)
    return moved / (sigma**2 / m * first_order(model)) - 1


# -------------------------------------------------------------------------- linear nets, exactly


@pytest.mark.parametrize("sigma", [0.1, 0.3, 1.0])
def test_full_growth_is_the_recursion_over_layers(sigma):
    model = net()
    found = exploded(model, X, sigma=sigma, draws=300)
    z = (found.value - growth(model, sigma)) / found.sem
    assert abs(z) < 4.5  # heavy tails at σ = 1; the seed is fixed
    assert found.sem < 0.2 * (1 + growth(model, sigma))


def test_the_excess_of_one_hidden_layer_is_its_fourth_order():
    model, sigma = net((5, 40, 2)), 0.5
    found = explosion(model, X, Y, "half_square", sigma=sigma, draws=200)
    exact = (sigma**2 / 2) ** 2 * 40 * 2 * X.square().sum().item() / (2 * len(X))
    assert abs(found.full.excess.value - exact) < 4.5 * found.full.excess.sem
    assert found.full.excess.sem < 0.2 * exact
    assert pytest.approx(sigma**2 / 2 * first_order(model) / (2 * len(X)), rel=1e-10) == found.R


def test_growth_alone_is_the_reports():
    model = net()
    found = explosion(model, X, Y, "half_square", sigma=0.3, draws=8, seed=3)
    for draw, way in (("all", found.full), ("cycle", found.layerwise)):
        alone = exploded(model, X, sigma=0.3, draw=draw, draws=8, seed=3)
        assert alone == pytest.approx(way.growth, rel=1e-9, abs=1e-9)


def test_layer_wise_noise_does_not_grow():
    found = explosion(net(), X, Y, "half_square", sigma=1.0, draws=60)
    assert found.layerwise.growth.value == pytest.approx(0, abs=1e-9)
    assert found.layerwise.safe == Estimate(math.inf, 0.0)
    assert found.layerwise.verdict == "safe"


@pytest.mark.parametrize("limit", [0.5, 1.0, 5.0])
def test_the_safe_sigma_is_where_the_exact_growth_is_the_limit(limit):
    model = net()
    safe = explosion(model, X, Y, "half_square", sigma=0.1, limit=limit, draws=250).full.safe
    low, high = 1e-3, 1e3
    while high / low > 1 + 1e-9:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if growth(model, middle) > limit else (middle, high)
    high, low = low, high
    assert abs(safe.value - low) < 4.5 * safe.sem + 0.025 * low  # the bracket's half


def test_ratios_compound_in_wide_random_chains():
    model = net((5, 400, 400, 400, 2))
    found = explosion(model, X, Y, "half_square", sigma=0.1, draws=4)
    assert found.compounded == pytest.approx(growth(model, 0.1), rel=0.1)
    W = model[0].weight
    assert found.ratios["fc0.weight"] == pytest.approx(0.01 / 4 / W.square().mean().item())


def test_compounding_by_hand():
    assert compounded([1.0]) == 0
    assert compounded([1.0, 1.0, 1.0]) == pytest.approx(7 / 3 - 1)
    assert compounded([]) == 0
    assert compounded([1e200, 1e200]) == math.inf


# --------------------------------------------------------------------------------- what it says


def test_wider_is_worse_at_one_sigma():
    x, y = X.float(), torch.arange(12) % 2
    found = [
        explosion(MLP((5, w, w, 2), init="torch").build(0), x, y, sigma=0.3, draws=16)
        for w in (20, 200)
    ]
    assert found[0].full.growth.value < found[1].full.growth.value
    assert found[0].full.safe.value > found[1].full.safe.value
    assert found[1].explodes


def test_grouping_by_layer_gives_more_to_each():
    x, y = X.float(), torch.arange(12) % 2
    model = MLP((5, 20, 2), init="torch").build(0)
    tensors, layers = (explosion(model, x, y, sigma=0.1, by=by) for by in ("tensor", "layer"))
    assert (tensors.tensors, layers.tensors) == (4, 2)
    assert pytest.approx(2 * tensors.R, rel=1e-5) == layers.R


def test_the_report_says_what_was_found():
    way = Way(Estimate(20.0, 7.0), Estimate(0.05, 0.01), Estimate(0.04, 0.002), 1.0, 0.1, 0.3)
    calm = Way(Estimate(0.1, 0.4), Estimate(0.0, 0.01), Estimate(math.inf, 0.0), 1.0, 0.1, 1.6)
    report = Explosion(0.1, 8, 2.3, 0.003, {"fc0.weight": 1.0, "fc1.weight": 1.0}, way, calm)
    text = str(report)
    assert report.explodes
    assert calm.verdict == "safe"
    assert replace(way, sigma=0.045).verdict == "too close to call"
    assert replace(way, sigma=0.03).verdict == "safe"
    assert replace(calm, growth=Estimate(math.inf, math.nan)).verdict == "too close to call"
    rows = [line.split("  ") for line in text.splitlines()]
    assert [part.strip() for part in rows[2] if part] == [
        "full", "20 ± 7", "0.05 ± 0.01", "0.04 ± 0.002", "explodes"
    ]  # fmt: skip
    assert "> 1.6" in text
    assert report.strong == pytest.approx(0.1 * math.sqrt(2.3 / 0.003))
    assert "R 0.003 (as large as the loss at σ 2.77)" in text
    assert text.endswith("fc0.weight 1, fc1.weight 1; compounded G 0.5")


class Exp(nn.Module):
    def forward(self, x):
        return x.exp()


@pytest.mark.parametrize("sigma", [1.0, 100.0])
def test_outputs_that_overflow_explode(sigma):
    """exp of noise: in float32 infinite at σ = 100, with differences that are no numbers."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(10, 64), Exp(), nn.Linear(64, 3)), torch.randn(32, 10)
    found = explosion(model, x, torch.arange(32) % 3, sigma=sigma)
    for way in (found.full, found.layerwise):
        assert way.verdict == "explodes"
        assert 0.1 < way.safe.value < 1
    assert found.explodes
    if sigma == 100:
        assert found.full.growth.value == math.inf
        assert "inf ± nan" in str(found)


@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh])
def test_the_safe_sigma_is_the_networks(act):
    """Whichever σ is asked for. The growth of a tanh net is bounded, and of heavy tails in ReLU's:
    neither makes a large σ safe.
    """
    torch.manual_seed(0)
    layers = [m for _ in range(3) for m in (nn.Linear(10, 10), act())]
    model, x = nn.Sequential(*layers, nn.Linear(10, 3)), torch.randn(32, 10)
    asked = [explosion(model, x, torch.arange(32) % 3, sigma=s) for s in (0.05, 30.0, 1e4)]
    assert len({found.full.safe for found in asked}) == 1
    assert [found.explodes for found in asked] == [False, True, True]
    alone = [exploded(model, x, sigma=s).value for s in (10.0, 1e4)]
    assert min(alone) > 1


def test_first_order_is_looked_for_where_the_weights_do_not_show_it():
    """sin(100 a) of small weights: 2 % of them is far outside its first order."""

    class Sine(nn.Module):
        def forward(self, x):
            return (100 * x).sin()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), Sine(), nn.Linear(8, 2)).double()
    found = explosion(model, X, Y, "half_square", sigma=1e-3, draws=64)
    slow = explosion(model, X, Y, "half_square", sigma=1e-6, draws=64)
    assert slow.full.growth.value == pytest.approx(0, abs=0.02)
    assert found.full.safe == slow.full.safe
    assert found.layerwise.growth.value < 0  # a sine moves by less than its slope says


@pytest.mark.parametrize("where", ["", "0"])
def test_noise_that_is_on_already_is_off_meanwhile(where):
    model = mlp()
    x, y = X[:, :4].float(), torch.arange(12) % 3
    clean, alone = explosion(model, x, y, sigma=0.1, draws=4), exploded(model, x, sigma=0.1)
    part = model.get_submodule(where)
    with dither.inject(part, dither.Additive(0.5), when="always", seed=0) as noise:
        assert explosion(model, x, y, sigma=0.1, draws=4) == clean
        assert exploded(model, x, sigma=0.1) == alone
        assert noise.step == 0
        assert not noise.paused


def test_it_works_in_inference_mode():
    model, y = MLP((5, 8, 2), init="torch").build(0), torch.arange(12) % 2
    outside = explosion(model, X.float(), y, sigma=0.1, draws=4)
    with torch.inference_mode():
        inside = explosion(model, X.float(), y, sigma=0.1, draws=4)
    assert inside.full.safe.value == pytest.approx(outside.full.safe.value, rel=1e-5)


@pytest.mark.parametrize(("dtype", "sigma"), [(torch.bfloat16, 0.1), (torch.float32, 1e-6)])
def test_where_rounding_is_larger_than_the_noise_is_an_error(dtype, sigma):
    model, y = MLP((5, 20, 2), init="torch").build(0).to(dtype), torch.arange(12) % 2
    with pytest.raises(dither.DitherError, match=f"rounding to {dtype} hides"):
        explosion(model, X.to(dtype), y, sigma=sigma, draws=4)


@pytest.mark.parametrize(
    ("x", "match"), [(X[:0], "batch is empty"), (X * math.nan, "without noise are not finite")]
)
def test_batches_without_finite_outputs_are_sentences(x, match):
    for look in (
        lambda: explosion(net(), x, Y[: len(x)], "half_square", sigma=0.1),
        lambda: exploded(net(), x, sigma=0.1),
    ):
        with pytest.raises(dither.DitherError, match=match):
            look()


def test_looking_changes_nothing():
    model = mlp().train()
    before, state = Snapshot.of(model), torch.random.get_rng_state()
    explosion(model, X[:, :4].float(), torch.arange(12) % 3, sigma=0.1, draws=4)
    before.assert_same(model)
    assert hooks(model) == 0
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"sigma": 0.0}, "sigma is a number > 0: got 0.0"),
        ({"sigma": 0.1, "limit": 0.0}, "limit is a growth > 0"),
        ({"sigma": 0.1, "draws": 2}, "draws is a whole number ≥ 4.*got 2"),
    ],
)
def test_bad_numbers_are_sentences(how, match):
    with pytest.raises(dither.DitherError, match=match):
        explosion(net(), X, Y, "half_square", **how)


def test_a_dead_network_is_an_error():
    model = net()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    with pytest.raises(dither.DitherError, match="depend on no parameter"):
        explosion(model, X, Y, "half_square", sigma=0.1)


# ----------------------------------------------------------------------- real nets, trained shortly


@pytest.mark.parametrize("widths", [(784, 500, 500, 500, 10), (784, *[300] * 5, 10)])
def test_the_verdict_is_what_short_training_shows(widths):
    """Twice the safe σ, full noise learns less than half of what layer-wise noise learns; at half
    of it more.
    """
    data = Data("fashion-mnist", train=128, standardise=False).load(0)
    x, y = data.x_train, data.y_train
    fresh = MLP(widths).build(0)
    safe = explosion(fresh, x, y, sigma=0.05, draws=8).full.safe.value
    start = nn.functional.cross_entropy(fresh(x), y).item()
    for sigma, explodes in ((safe / 2, False), (2 * safe, True)):
        learnt = []
        for draw in ("all", "cycle"):
            model = MLP(widths).build(0).train()
            optimiser = torch.optim.SGD(model.parameters(), 0.005, momentum=0.9)
            with dither.inject(model, dither.Weight(sigma), draw=draw, seed=0):
                for _ in range(60):
                    optimiser.zero_grad()
                    nn.functional.cross_entropy(model(x), y).backward()
                    optimiser.step()
            learnt.append(start - nn.functional.cross_entropy(model(x), y).item())
        assert learnt[1] > 0.3
        assert (learnt[0] < learnt[1] / 2) == explodes, (sigma, learnt)


# ---------------------------------------------------------------------------- the figure's claims


def table(full: dict[float, float]) -> Table:
    """What full noise learns at each σ, where layer-wise noise learns 1; the safe σ is 0.1."""
    before = [(s, "G full", 10 * s) for s in full] + [(s, "G layer-wise", 0.0) for s in full]
    before += [(s, "sem layer-wise", 0.1) for s in full] + [(min(full), "safe", 0.1)]
    runs = {"net, before": before, "net, none": fall(1.2)}
    for sigma, learnt in full.items():
        runs[f"net, full, σ {sigma:g}"] = fall(learnt)
        runs[f"net, layer-wise, σ {sigma:g}"] = fall(1.0)
    return Table.of({label: dict.fromkeys(range(5), found) for label, found in runs.items()})


def fall(learnt: float) -> list[tuple[float, str, float]]:
    return [(0, "loss/train", 2.3), (60, "loss/train", 2.3 - learnt)]


@pytest.mark.parametrize(
    ("full", "below", "above"),
    [
        ({0.05: 0.9, 0.2: 0.1}, True, True),
        ({0.05: 0.4, 0.2: 0.1}, False, True),
        ({0.05: 0.9, 0.2: 0.6}, True, False),
        ({0.05: 0.9, 0.2: math.nan}, True, True),
        ({0.1: 0.9}, None, None),
    ],
)
def test_the_figures_claims_ask_for_half_on_either_side_of_the_safe_sigma(full, below, above):
    claims = {c.id: c.check(table(full)) for c in figure.claims}
    assert claims["below"][0] is below
    assert claims["above"][0] is above
    assert claims["layer-wise"][0] is True
