"""The Hessian's trace: exact where it can be, else unbiased probes with a smaller spread than
parameter space gives.
"""

import pytest
import torch
from blocks import CASES, OF, Of, Z, case, dense, mlp
from torch import nn

import dither
from dither.lab.nets.specs import DiagonalNet
from dither.measures import curvature, probes
from dither.measures.curvature import trace
from dither.measures.multilinear import multilinear


@pytest.mark.parametrize("name", CASES)
def test_the_trace_is_that_of_the_dense_hessian(name):
    model, x, y, linear = case(name)
    found, true = trace(model, "cross_entropy", (x, y), probes=300), dense(model, x, y)
    assert multilinear(model, x) == found.exact == linear
    for parameter, part in found.by_parameter.items():
        error = abs(part.value - true[parameter])
        assert error <= (1e-10 * abs(true[parameter]) + 1e-14 if linear else Z * part.sem + 1e-12)
    total = sum(true.values())
    assert abs(found.value - total) <= (1e-10 * total if linear else Z * found.sem)


@pytest.mark.parametrize("name", ["tanh mlp", "smooth cnn", "attention, time first"])
def test_probes_in_activation_space_spread_less(name, monkeypatch):
    """Against signs on the parameters themselves: the ratio of the variances, 200 probes each."""
    model, x, y, _ = case(name, batch=16)
    ours = trace(model, "cross_entropy", (x, y), probes=200)
    monkeypatch.setattr(probes.Places, "settle_in", lambda self, z: None)
    plain = trace(model, "cross_entropy", (x, y), probes=200)
    assert ours.sem**2 < plain.sem**2 / 1.5  # F(199, 199) stays below 1.5 but once in 400


def test_a_parameter_used_twice_is_probed_as_one():
    """Probes behind each of its uses would know nothing of what lies between them."""
    torch.manual_seed(0)
    fc = nn.Linear(3, 3)
    model = nn.Sequential(fc, nn.Tanh(), fc).double().eval()
    x, y = 2 * torch.randn(4, 3).double(), torch.tensor([0, 1, 2, 0])
    found, true = trace(model, "cross_entropy", (x, y), probes=2000), dense(model, x, y)
    for name, part in found.by_parameter.items():
        assert abs(part.value - true[name]) <= Z * part.sem
        assert part.sem < 0.1 * abs(true[name])


def test_gauss_newton_is_exact_everywhere():
    model, x, y, _ = case("attention")
    with dither.inject(model, dither.Weight(1.0)) as noise, torch.no_grad():
        R = dither.explicit(noise, x, y).R.item()
    found = trace(model, "cross_entropy", (x, y), of="gauss_newton")
    assert found.exact
    assert found.value == pytest.approx(2 * R, rel=1e-12)


def test_batches_count_by_their_size():
    model, x, y, _ = case("relu mlp")
    whole = trace(model, "cross_entropy", (x, y))
    parts = trace(model, "cross_entropy", [(x[:4], y[:4]), (x[4:], y[4:])])
    assert parts.value == pytest.approx(whole.value, rel=1e-12)


def test_a_requested_error_is_reached():
    model, x, y, _ = case("tanh mlp")
    rough = trace(model, "cross_entropy", (x, y), probes=64)
    found = trace(model, "cross_entropy", (x, y), precision=rough.sem / 2, seed=3)
    assert found.probes > 64
    assert found.sem < rough.sem  # the pilot of 16 probes knows the spread only roughly


def test_two_stages_are_unbiased_and_reach_the_precision():
    """300 calls at ±3 on ⟨1, p⟩²: a probe is 2 (Σ of six signs)², mean 12, skewed. A probe that
    both sizes and counts would bias the mean: few small ones stop early.
    """
    model = Of(lambda x, p, W, V: x * p.sum().square()).double()
    model.p = nn.Parameter(torch.full((6,), 0.5).double())
    batch = torch.ones(1, 1).double(), torch.zeros(1)
    calls = [trace(model, lambda z, y: z.sum(-1), batch, precision=3.0, seed=s) for s in range(300)]
    error = torch.tensor([found.value - 12 for found in calls])
    for draws, most in ((error, 0.0), (-error, 0.0), ((error / 3) ** 2, 1.0)):
        assert draws.mean() < most + Z * draws.std() / 300**0.5
    assert all(found.probes >= 16 for found in calls)


def test_the_plan_allows_for_what_a_pilot_does_not_know():
    """Stein 1945: of N normal probes the mean square error is E 1/N = precision², over all pilots;
    planned as if the pilot's spread were the true one it would be 15/13 of that.
    """
    rng, precision, pilots = torch.Generator().manual_seed(0), 0.05, 4000
    settings = curvature._settings("hessian", precision, None, 10**6, 0)

    def probing(probes):
        return torch.randn(1, len(probes), generator=rng, dtype=torch.float64)

    plans = [curvature._plan(settings, probing) for _ in range(pilots)]
    found = torch.tensor([1 / len(plan) for plan in plans]) / precision**2
    rounding = 1 / min(map(len, plans))  # N is rounded up
    assert found.mean() < 1 + Z * found.std() / pilots**0.5
    assert found.mean() > 1 - rounding - Z * found.std() / pilots**0.5


def test_noise_on_the_model_is_silent():
    model, x, y, _ = case("tanh mlp")
    clean = trace(model, "cross_entropy", (x, y))
    exact = trace(model, "cross_entropy", (x, y), of="gauss_newton")
    noises = dither.Additive(1.0), dither.Weight(1.0)
    injections = [dither.inject(model, noise, when="always") for noise in noises]
    assert trace(model, "cross_entropy", (x, y)).value == clean.value
    assert trace(model, "cross_entropy", (x, y), of="gauss_newton").value == exact.value
    assert not multilinear(model, x)
    assert [noise.step for noise in injections] == [0, 0]
    assert not torch.equal(model(x), model(x))  # and speaks again afterwards
    assert [noise.step for noise in injections] == [2, 2]


@pytest.mark.parametrize(
    "build",
    [
        lambda: DiagonalNet(5).build(0),
        lambda: nn.Sequential(nn.LayerNorm(5), nn.Tanh()),
    ],
)
def test_models_without_a_matrix_product_are_probed_too(build):
    model, x = build().double().eval(), torch.randn(6, 5).double()
    y = torch.randn(model(x).shape).double()
    found = trace(model, "half_square", (x, y), probes=200)
    assert not found.exact
    true = dense(model, x, y, lambda z, y: 0.5 * (z - y).square().sum(-1).mean())
    assert abs(found.value - sum(true.values())) <= Z * found.sem + 1e-12


def test_a_list_of_two_tensors_is_one_batch():
    model, x, y, _ = case("relu mlp")
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)
    whole = trace(model, "cross_entropy", (x, y))
    assert trace(model, "cross_entropy", [x, y]) == whole
    assert trace(model, "cross_entropy", loader).value == pytest.approx(whole.value, rel=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_inference_mode_is_left(name):
    model, x, y, _ = case(name)
    true = trace(model, "cross_entropy", (x, y))
    with torch.inference_mode():
        found = trace(model, "cross_entropy", (x.clone(), y.clone()))
        assert torch.is_inference_mode_enabled()
    assert found == true


def test_a_model_made_in_inference_mode_is_told():
    with torch.inference_mode():
        model = mlp(nn.Tanh)
    with pytest.raises(dither.DitherError, match=r"'0.weight' was made under .* torch.no_grad"):
        trace(model, "cross_entropy", (torch.randn(4, 5), torch.zeros(4).long()))


def test_layers_add_up_to_the_whole():
    model, x, y, _ = case("relu cnn")
    found = trace(model, "cross_entropy", (x, y))
    assert sum(found.by_layer.values()) == pytest.approx(found.value)
    assert set(found.by_layer) == {"0", "1", "4", "7"}


@pytest.mark.parametrize(
    ("build", "linear"),
    [
        (lambda: nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.5), nn.Linear(5, 3)), True),
        (lambda: nn.Sequential(*[nn.Linear(5, 5)] * 2), False),  # one weight used twice
        (lambda: nn.Sequential(nn.Linear(5, 3), nn.Sigmoid()), False),
        (lambda: nn.Sequential(nn.Linear(5, 3), nn.LayerNorm(3)), False),
    ],
)
def test_what_is_linear_in_each_tensor(build, linear):
    assert multilinear(build().eval(), torch.randn(4, 5)) == linear


@pytest.mark.parametrize("name", OF)
def test_linear_is_what_has_no_second_derivative_in_a_tensor(name):
    """Against ∂²⟨c, z⟩/∂W² along a random direction, c random."""
    torch.manual_seed(0)
    f, linear = OF[name]
    model, x = Of(f).double().eval(), torch.randn(5, 5).double()
    largest = 0.0
    for p in model.parameters():
        z = model(x)
        z = (z * torch.randn_like(z)).sum()
        (slope,) = torch.autograd.grad(z, p, create_graph=True, allow_unused=True)
        if slope is not None and slope.requires_grad:
            (row,) = torch.autograd.grad(
                (slope * torch.randn_like(p)).sum(), p, allow_unused=True, materialize_grads=True
            )
            largest = max(largest, row.abs().max().item())
    assert (largest < 1e-10) == linear
    assert multilinear(model, x) == linear


def test_looking_changes_nothing():
    model, x, y, _ = case("attention")
    model.train()
    frozen = model.head.weight.requires_grad_(False)
    before = {n: p.clone() for n, p in model.state_dict().items()}
    state = torch.get_rng_state()
    trace(model, "cross_entropy", (x, y), probes=4)
    assert model.training
    assert not frozen.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"of": "fisher"}, r"'hessian' or 'gauss_newton': got 'fisher'"),
        ({"precision": -1.0}, r"a standard error > 0: got -1.0"),
        ({"precision": 0.1, "probes": 4}, r"precision or a number of probes: got 0.1 and 4"),
        ({"probes": 1}, r"probes.*≥ 2.*got 1"),
        ({"probes": 0}, r"probes.*≥ 2.*got 0"),
        ({"probes": 2.5}, r"probes.*≥ 2.*got 2.5"),
        ({"precision": 1e-9}, r"needs about \d+ probes.*4096"),
    ],
)
def test_bad_input_is_told(arguments, says):
    model, x, y, _ = case("tanh mlp")
    with pytest.raises(dither.DitherError, match=says):
        trace(model, "cross_entropy", (x, y), **arguments)
    with pytest.raises(dither.DitherError, match="at least one batch"):
        trace(model, "cross_entropy", [])
    with pytest.raises(dither.DitherError, match="at least one sample in a batch"):
        trace(model, "cross_entropy", [(x, y), (x[:0], y[:0])])
    with pytest.raises(dither.DitherError, match="more than once"):
        trace(model, "cross_entropy", iter([(x, y)]))


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh], ids=["exact", "probed"])
def test_an_injection_names_the_parameters(activation):
    """At σ = 1 and each at all of it, whatever the injection's noise, draws and schedule are; and
    it is left as it was.
    """
    model = nn.Sequential(nn.Linear(4, 5), activation(), nn.Linear(5, 3)).double()
    x, y = torch.randn(6, 4).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    data = (x, y)
    whole = trace(model, "cross_entropy", data, of="gauss_newton")  # the last layer's whole Hessian
    law = dither.Weight(0.3, dither.uniform)
    with dither.inject(model, {"2.*": law}, draw="cycle", seed=0) as noise:
        before = noise.get_extra_state()
        for _ in range(2):
            part = trace(noise, "cross_entropy", data, probes=400)
        assert noise.sites["2.weight"].noise is law
        assert noise.draw == "cycle"
        assert noise.get_extra_state() == before
    assert set(part.by_parameter) == {"2.weight", "2.bias"}
    assert part.exact == (activation is nn.ReLU)
    for name, found in part.by_parameter.items():
        there = whole.by_parameter[name].value
        assert abs(found.value - there) < (1e-12 * there if part.exact else Z * found.sem)


def test_an_injection_on_activations_has_no_trace():
    model = nn.Sequential(nn.Linear(4, 3))
    with (
        dither.inject(model, dither.Additive(0.1)) as noise,
        pytest.raises(dither.DitherError, match="'0:in' is an activation; pass the model"),
    ):
        trace(noise, "cross_entropy", (torch.randn(2, 4), torch.tensor([0, 1])))


def test_a_trace_of_a_relu_net_draws_nothing():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    before = torch.get_rng_state()
    assert trace(net, "cross_entropy", (x, y)).exact
    assert torch.equal(torch.get_rng_state(), before)


def test_a_trace_names_its_arguments():
    model, x, y, _ = case("tanh mlp")
    with pytest.raises(dither.DitherError, match=r"take \(model, loss, data\)"):
        trace(model, x, y)
