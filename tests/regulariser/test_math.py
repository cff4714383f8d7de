"""The closed forms of docs/math.md against the library, section by section."""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import dither
from dither import loss as losses
from dither.lab.nets.specs import DiagonalNet
from dither.measures import robustness
from dither.papers.camuto2020.nets import Diagonal

pytestmark = pytest.mark.usefixtures("double")
SIGMA = 0.3
ROOT = Path(__file__).parents[2]


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def close(a, b):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-10, atol=1e-12)


def classifier(outputs=3):
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, outputs))
    return model, torch.randn(5, 4), torch.randint(outputs, (5,))


def all_signs(n):
    return (torch.tensor(r) for r in itertools.product([1.0, -1.0], repeat=n))


# ---------------------------------------------------------------- §2: what R leaves out


def test_the_residual_vanishes_at_interpolation():
    model, x, _ = classifier()
    noise = dither.inject(model, dither.Additive(SIGMA))
    z = model.eval()(x).detach()
    fitted = dither.explicit(noise, x, z, "half_square", curvature="full").R
    missed = dither.explicit(noise, x, z + 1, "half_square", curvature="full").R
    close(fitted, dither.explicit(noise, x, z, "half_square").R)
    assert abs(missed / fitted - 1) > 0.01


@pytest.mark.parametrize("loss", ["cross_entropy", "half_square"])
def test_relu_nets_have_no_residual_under_weight_noise(loss):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    x = torch.randn(5, 4)
    y = torch.randint(3, (5,)) if loss == "cross_entropy" else torch.randn(5, 3)
    noise = dither.inject(model, dither.Weight(SIGMA))
    full = dither.explicit(noise, x, y, loss, curvature="full")
    close(full.R, dither.explicit(noise, x, y, loss).R)


# ---------------------------------------------------------------- §4: nodes, and σ over tensors


def test_a_nodes_gradient_is_the_local_hessian_times_its_vector():
    model, x, y = classifier()
    noise = dither.inject(model, {"0": dither.Node(SIGMA)})
    (w,) = noise.parameters()
    (slope,) = torch.autograd.grad(dither.explicit(noise, x, y).R, w)
    hessian = torch.zeros(6, 6)
    for a in model.eval()[0](x).detach():
        rest = nn.Sequential(model[1], model[2])
        J = torch.autograd.functional.jacobian(rest, a)
        p = rest(a).softmax(0)
        hessian += J.T @ (p.diag() - p.outer(p)) @ J / len(x)
    close(slope[0], SIGMA**2 * hessian @ w[0])


@pytest.mark.parametrize("draw", ["all", "cycle", "random"])
def test_three_ways_to_spend_sigma_have_one_regulariser(draw):
    model, x, y = classifier()
    each = dither.inject(model, dither.Weight(SIGMA))
    spread = dither.inject(model, dither.Weight(SIGMA), draw=draw)
    close(dither.explicit(spread, x, y).R, dither.explicit(each, x, y).R / 4)  # M = 4 tensors


# ---------------------------------------------------------------- §5, §6: the root of H


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_one_column_less_than_classes(classes):
    z, y = torch.randn(1, classes), torch.zeros(1, dtype=torch.long)
    columns = losses.get("cross_entropy").columns(z, y)
    S = torch.stack([column[0] for _, column in columns], 1)
    p = z[0].softmax(0)
    assert S.shape == (classes, classes - 1)
    close(S @ S.T, p.diag() - p.outer(p))


def test_signs_have_the_value_and_the_gradient():
    z = torch.randn(1, 4, requires_grad=True)
    y, J = torch.zeros(1, dtype=torch.long), torch.randn(4, 5)
    columns = losses.get("cross_entropy").columns(z, y)
    draws = [columns.mixed(r[None])[0][1] for r in all_signs(4)]
    mean = torch.stack([(s @ J).square().sum() for s in draws]).mean()
    p = z[0].softmax(0)
    truth = torch.trace(J.T @ (p.diag() - p.outer(p)) @ J)
    close(mean, truth)
    close(*(torch.autograd.grad(f, z, retain_graph=True)[0] for f in (mean, truth)))


def test_a_common_function_on_all_logits_changes_nothing():
    model, x, y = classifier()
    noise = dither.inject(model, dither.Additive(SIGMA))
    before = dither.explicit(noise, x, y).R.detach()
    with torch.no_grad():
        model[2].weight += torch.randn(6)
    close(dither.explicit(noise, x, y).R, before)


def twice(z, y):
    return 2 * nn.functional.cross_entropy(z, y, reduction="none")


def test_label_smoothing_leaves_R_alone_and_a_factor_scales_it():
    model, x, y = classifier()
    noise = dither.inject(model, dither.Additive(SIGMA))
    plain = dither.explicit(noise, x, y).R
    close(dither.explicit(noise, x, y, nn.CrossEntropyLoss(label_smoothing=0.2)).R, plain)
    close(dither.explicit(noise, x, y, twice).R, 2 * plain)


# ---------------------------------------------------------------- §8: σ from R


@pytest.mark.filterwarnings("ignore:balance. the net is too young")
def test_balance_gives_equal_shares_of_a_tenth_of_R():
    model, x, y = classifier()
    with dither.inject(model, dither.Additive(1.0)) as noise:
        sigmas = dither.balance(noise, x, y, ratio=0.1, draws=0, bound=math.inf)
    noise = dither.inject(model, {site: dither.Additive(s) for site, s in sigmas.items()})
    loss, R, by_site = dither.explicit(noise, x, y)
    close(R, 0.1 * loss)
    close(*by_site.values())


# ---------------------------------------------------------------- §9: exact oracles


def half_square_R(model, x, y, noise):
    return R_of(model, noise, x, y, "half_square")


def mean_loss(model, x, y, sigma, law):
    """Over every draw of a two-point law at ±σ on all parameters: no Monte Carlo."""
    parameters = list(model.parameters())
    kept = [p.detach().clone() for p in parameters]
    total, n = 0.0, sum(p.numel() for p in parameters)
    with torch.no_grad():
        for r in all_signs(n):
            for p, k, e in zip(
                parameters, kept, r.split([p.numel() for p in parameters]), strict=True
            ):
                p.copy_(k + sigma * law * e.view_as(p))
            total += (model(x) - y).square().sum(1).mean().item() / 2
        for p, k in zip(parameters, kept, strict=True):
            p.copy_(k)
    return total / 2**n


def test_a_diagonal_net_under_two_point_noise_has_no_remainder():
    net, x, y = DiagonalNet(3).build(0).double(), torch.randn(6, 3), torch.randn(6, 1)
    with torch.no_grad():
        for p in net.parameters():
            p.normal_()
        loss = (net(x) - y).square().sum(1).mean() / 2
    R = half_square_R(net, x, y, dither.Weight(SIGMA))
    c = x.square().mean(0)
    eq7 = 2 * SIGMA**2 * sum((c * w.square().flatten()).sum() for w in net.parameters())
    close(R, eq7)
    close(mean_loss(net, x, y, SIGMA, 1.0), loss + R)


def test_a_linear_net_exceeds_R_by_sigma4_d1_d2():
    net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False))
    x, y = torch.randn(4, 2), torch.randn(4, 2)
    loss = (net(x) - y).square().sum(1).mean() / 2
    W1, W2 = (p.detach() for p in net.parameters())
    R = half_square_R(net, x, y, dither.Weight(SIGMA))
    square, size = (x @ W1.T).square().sum(), x.square().sum()
    close(R, SIGMA**2 / 8 * (2 * square + W2.square().sum() * size))  # eq. 9, n = 4, d2 = 2
    close(mean_loss(net, x, y, SIGMA, 1.0), loss + R + SIGMA**4 / 8 * 3 * 2 * size)


def test_a_relu_layer_has_the_factors_that_the_text_lacks():
    net = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False))
    x, y = torch.randn(5, 4), torch.randn(5, 3)
    a, W2 = x @ net[0].weight.T, net[2].weight
    outer = (W2.square().sum(0) * (a > 0) * x.square().sum(1, keepdim=True)).sum()
    truth = SIGMA**2 / 10 * (3 * a.relu().square().sum() + outer)
    close(half_square_R(net, x, y, dither.Weight(SIGMA)), truth)


class Square(nn.Module):
    """Φ = w wᵀ, whatever the input."""

    def __init__(self, d, r):
        super().__init__()
        self.w = nn.Parameter(torch.randn(d, r))

    def forward(self, x):
        return (self.w @ self.w.T).flatten().expand(len(x), -1)


def test_noise_on_a_square_root_is_a_trace_penalty():
    net, x, y = Square(3, 4), torch.zeros(2, 1), torch.randn(2, 9)
    R = half_square_R(net, x, y, dither.Weight(SIGMA))
    close(R, SIGMA**2 * (3 + 1) * net.w.square().sum())


# ---------------------------------------------------------------- §4, step by step


def R_of(model, noise, x, y, loss="cross_entropy"):
    with dither.inject(model, noise) as injected:
        return dither.explicit(injected, x, y, loss).R


def softmax_R(J, p, sigma):
    """½σ² tr(JᵀHJ) of Jacobians J [B, C, d] and probabilities p [B, C]."""
    H = p.diag_embed() - p.unsqueeze(2) * p.unsqueeze(1)
    return sigma**2 / 2 * torch.einsum("bcd,bce,bed->b", J, H, J).mean()


STEPS = {
    "additive": (dither.Additive(SIGMA), lambda J, h, w: J),
    "multiplicative": (dither.Multiplicative(SIGMA), lambda J, h, w: J * h.unsqueeze(1)),
    "node": (dither.Node(SIGMA), lambda J, h, w: J @ w.T),
}


@pytest.mark.parametrize("name", STEPS)
def test_each_noise_is_one_chain_of_jacobians(name):
    """J of the output by the source of the draw: J, J diag(h), J w, of the second layer's input."""
    model, x, y = classifier()
    noise, chain = STEPS[name]
    with dither.inject(model, {"2:in": noise}, seed=0) as injected:
        R = dither.explicit(injected, x, y).R
        w = next(iter(injected.parameters()), torch.zeros(1))
        h = model.eval()[:2](x)
    J = model[2].weight.expand(len(x), 3, 6)
    close(R, softmax_R(chain(J, h, w), model(x).softmax(1), SIGMA))


def test_weight_noise_is_the_jacobian_by_the_weights_sample_by_sample():
    model, x, y = classifier()
    R = R_of(model, {"0.weight": dither.Weight(SIGMA)}, x, y)
    h, W2 = model[1](model[0](x)), model[2].weight
    J = torch.einsum("ck,bk,bj->bckj", W2, 1 - h.square(), x).flatten(2)  # tanh′ = 1 − tanh²
    close(R, softmax_R(J, model(x).softmax(1), SIGMA))


# ---------------------------------------------------------------- §10, §16: the errata


def test_eq_14_is_off_by_the_pairs_of_logits():
    model, x, y = classifier()
    noise = {"input": dither.Additive(SIGMA)}
    right, printed = (R_of(model, noise, x, y, form) for form in ("cross_entropy", Diagonal()))
    pairs = torch.zeros(())
    for a in x:
        J, p = torch.autograd.functional.jacobian(model, a), model(a).softmax(0)
        pairs = pairs + sum(
            p[i] * p[j] * J[i] @ J[j] for i in range(3) for j in range(3) if i != j
        ) / len(x)  # fmt: skip
    close(printed - right, SIGMA**2 / 2 * pairs)


def test_of_two_opposite_logits_eq_14_is_half():
    model, x, y = classifier(2)
    with torch.no_grad():
        model[2].weight[1] = -model[2].weight[0]
    noise = dither.Additive(SIGMA)
    close(R_of(model, noise, x, y, Diagonal()), R_of(model, noise, x, y) / 2)


def test_gradients_never_move_what_all_logits_share():
    """So what of it there was at the start is in eq. 14 for ever."""
    model, x, y = classifier()
    loss = nn.functional.cross_entropy(model(x), y)
    noise, W = dither.Additive(SIGMA), model[2].weight
    (slope,) = torch.autograd.grad(loss + R_of(model, noise, x, y), W)
    close(slope.sum(0), torch.zeros(6))
    (slope,) = torch.autograd.grad(R_of(model, noise, x, y, Diagonal()), W)
    assert slope.sum(0).norm() > 0.01 * slope.norm()


def test_levi_eq_7_is_tr_W_H_W_transposed():
    model, x, y = nn.Linear(4, 3, bias=False), torch.randn(1, 4), torch.zeros(1).long()
    W = model.weight.T  # d_in × d_out: z = Wᵀx
    p = model(x)[0].softmax(0)
    R = R_of(model, dither.Additive(SIGMA), x, y)
    close(R, SIGMA**2 / 2 * torch.trace(W @ (p.diag() - p.outer(p)) @ W.T))


def test_levi_eq_8_shifts_the_mean_by_the_order_of_R():
    model, x, y = classifier()
    draws = torch.Generator().manual_seed(0)
    s = 0.01
    shrunk = sum(robustness.corrupt(x, s, draws) for _ in range(4000)) / 4000
    assert (shrunk / x - math.sqrt(1 - s**2)).abs().median() < 4 * s / 4000**0.5
    a = x.clone().requires_grad_()
    loss = nn.functional.cross_entropy(model(a), y)
    (slope,) = torch.autograd.grad(loss, a)
    moved = nn.functional.cross_entropy(model(math.sqrt(1 - s**2) * x), y) - loss
    first = -(s**2) / 2 * (x * slope).sum()
    assert abs(moved / first - 1) < 1e-3
    R = R_of(model, {"input": dither.Additive(s)}, x, y)
    assert 0.1 < abs(first / R) < 100  # of one order, σ²


def test_levi_R1_has_mean_zero_and_the_size_of_a_batch_mean():
    """Of all 2^B draws of ε = ±1: w·⟨ε g⟩ has mean 0 and mean square σ² Σ_i (w·g_i)²/B²."""
    g, w = torch.randn(6, 4), torch.randn(4)
    R1 = torch.stack([SIGMA * (r[:, None] * g).mean(0) @ w for r in all_signs(6)])
    close(R1.mean(), 0.0)
    close(R1.square().mean(), SIGMA**2 * (g @ w).square().sum() / 36)


def test_orvietos_least_squares_term_is_half_the_squared_jacobian():
    """§2.2: σ²/(2n)‖DΦ‖²; the text's (σ²/n) tr[DL DLᵀ] is 0 where the data are fitted."""
    model, x, _ = classifier()
    y = model(x).detach()
    R = R_of(model, dither.Weight(SIGMA), x, y, "half_square")
    total = torch.zeros(())
    for z in model(x).flatten():
        slopes = torch.autograd.grad(z, list(model.parameters()), retain_graph=True)
        total += sum(slope.square().sum() for slope in slopes)
    close(R, SIGMA**2 / (2 * len(x)) * total)
    loss = (model(x) - y).square().sum() / 2
    assert all(not g.any() for g in torch.autograd.grad(loss, list(model.parameters())))


def gauss(f, nodes: int = 80) -> float:
    """E f(ε), ε ~ N(0, 1), by Gauss–Hermite quadrature."""
    e, weight = np.polynomial.hermite_e.hermegauss(nodes)
    return float((f(e) * weight).sum() / math.sqrt(2 * math.pi))


def test_odd_moments_vanish_so_that_the_rest_is_of_fourth_order():
    """§2.2 of Orvieto et al.: one weight, L = ½(tanh w − y)², L_σ − L − ½σ²L″."""
    w, y = 0.4, -0.3
    t = math.tanh(w)
    second = (1 - t**2) ** 2 + (t - y) * (-2 * t * (1 - t**2))
    third = -6 * t * (1 - t**2) ** 2 + (t - y) * (1 - t**2) * (6 * t**2 - 2)
    assert abs(third) > 0.5  # there is an odd derivative to vanish

    def rest(sigma: float) -> float:
        mean = gauss(lambda e: (np.tanh(w + sigma * e) - y) ** 2 / 2)
        return mean - (t - y) ** 2 / 2 - sigma**2 / 2 * second

    assert rest(0.02) / rest(0.01) == pytest.approx(16, rel=0.01)


def test_the_exponential_loss_has_a_moment_generating_function():
    """App. B of Orvieto et al.: exp(σ²D²/2), of which 1 + σ²D²/2 is the start."""
    phi, slope, sigma = 0.7, 1.3, 0.9
    mean = gauss(lambda e: np.exp(-(phi + sigma * slope * e)))
    assert mean == pytest.approx(math.exp(-phi + (sigma * slope) ** 2 / 2), rel=1e-12)
    assert mean > 1.05 * math.exp(-phi) * (1 + (sigma * slope) ** 2 / 2)


def test_every_test_that_the_page_names_is_there():
    page = (ROOT / "docs/math.md").read_text(encoding="utf-8")
    tests = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", page))
    assert named
    assert not {name for name in named if f"def {name}(" not in tests}
