"""R where the papers have it in closed form, and where E[Δℓ] has one too."""

import math

import pytest
import torch
from cases import MLP
from oracles import close, half, two_sided
from torch import nn

import dither
from dither.lab.nets.specs import DiagonalNet, LinearNet
from dither.noise import Additive, Multiplicative, Node, Weight, dropout


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def mlp(outputs=3):
    return half(MLP(outputs)), randn(6, 4), torch.tensor([0, 2, 1, 1, 0, 2])


def test_noise_on_the_input_of_a_linear_model_is_tikhonovs_penalty():
    """Bishop: ½ σ² ‖W‖² for the half-square loss."""
    sigma = 0.3
    model = half(nn.Linear(4, 3))
    noise = dither.inject(model, {"input": Additive(sigma)})
    R = dither.explicit(noise, randn(5, 4), randn(5, 3), "half_square").R
    close(R, sigma**2 / 2 * model.weight.square().sum())


def test_dropout_of_a_linear_model_weighs_features_by_their_second_moment():
    """½ p/(1−p) Σ_j mean(x_j²)‖w_j‖²."""
    p = 0.3
    model, x = half(nn.Linear(4, 3)), randn(5, 4)
    noise = dither.inject(model, Multiplicative(law=dropout(p)))
    penalty = (x.square().mean(0) * model.weight.square().sum(0)).sum()
    close(dither.explicit(noise, x, randn(5, 3), "half_square").R, p / (1 - p) / 2 * penalty)


def test_a_node_on_a_pre_activation_is_levis_penalty():
    """Levi eq. 4: ½ σ² wᵀ H w, H the mean softmax Hessian."""
    sigma = 1.3
    model, x = half(nn.Linear(4, 3)), randn(5, 4)
    noise = dither.inject(model, Node(sigma))
    (w,) = noise.parameters()
    p = model(x).softmax(1)
    h = (torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)).mean(0)
    close(dither.explicit(noise, x, torch.arange(5) % 3).R, sigma**2 / 2 * (w @ h @ w.T).squeeze())


def test_diagonal_net():
    """R_σ = R_eff + 2σ⁴‖X‖²/n exactly at any σ; R is σ²·2/n Σ_i ‖x_i∘w‖²."""
    sigma = 0.7
    net = DiagonalNet(5, spread=0.4).build(0).double()
    x, y = randn(7, 5), randn(7, 1)
    noise = dither.inject(net, Weight(sigma))
    R = dither.explicit(noise, x, y, "half_square").R
    w2 = net.w1.square() + net.w2.square()
    close(R, sigma**2 * 2 / 7 * (x.square() @ w2).sum())
    full = dither.explicit(noise, x, y, "half_square", curvature="full").R
    close(full, R)  # the curvatures of w1² and −w2² cancel: R_eff is R
    e = dither.expected(noise, x, y, "half_square", draws=4000, seed=0)
    truth = R + 2 * sigma**4 * x.square().sum() / 7
    assert abs(e.value - truth) / e.sem < two_sided(1e-5)
    assert (truth - R) / e.sem > 10  # sharp enough to see the fourth order


def linear_net(widths=(4, 3, 2, 2)):
    net = LinearNet(widths).build(1).double()
    for p in net.parameters():
        p.data.mul_(2)
    return net, randn(6, widths[0]), randn(6, widths[-1])


def deep_mean(weights, x, y, sigmas):
    """E of the loss, all layers perturbed at once: S_j = W_j S W_jᵀ + σ_j² tr(S) I."""
    s, phi = x.T @ x, x.T
    for w, sigma in zip(weights, sigmas, strict=True):
        s = w @ s @ w.T + sigma**2 * s.trace() * torch.eye(len(w), dtype=x.dtype)
        phi = w @ phi
    return (s.trace() - 2 * (y.T * phi).sum() + y.square().sum()) / (2 * len(x))


def test_linear_net_one_layer_at_a_time_is_exact_at_any_sigma():
    """Orvieto: mean over layers of E[Δℓ] with noise σ on that layer = R, no higher orders."""
    sigma = 2.0
    net, x, y = linear_net()
    weights = [layer.weight for layer in net if isinstance(layer, nn.Linear)]
    m = len(weights)
    clean = deep_mean(weights, x, y, [0.0] * m)
    one_hot = [[sigma * (i == j) for j in range(m)] for i in range(m)]
    mean = sum(deep_mean(weights, x, y, s) - clean for s in one_hot) / m
    for draw in ("cycle", "random", "all"):
        noise = dither.inject(net, Weight(sigma), draw=draw)
        close(dither.explicit(noise, x, y, "half_square").R, mean)
        noise.remove()


@pytest.mark.parametrize("draw", ["each", "all", "cycle"])
def test_linear_net_by_monte_carlo(draw):
    """E[Δℓ] is the recursion's: with all layers at once more than R, in turn exactly R."""
    sigma, alarm = 0.8, 1e-5
    net, x, y = linear_net()
    weights = [layer.weight for layer in net if isinstance(layer, nn.Linear)]
    m = len(weights)
    clean = deep_mean(weights, x, y, [0.0] * m)
    noise = dither.inject(net, Weight(sigma), draw=draw)
    R = dither.explicit(noise, x, y, "half_square").R
    if draw == "cycle":
        truth = R
    else:
        truth = deep_mean(weights, x, y, [sigma / (m**0.5 if draw == "all" else 1)] * m) - clean
    e = dither.expected(noise, x, y, "half_square", draws=3000, seed=1)
    assert abs(e.value - truth) / e.sem < two_sided(alarm)
    if draw != "cycle":
        assert (truth - R) / e.sem > 5  # sharp enough to see the orders above


def test_the_least_R_of_a_factorisation_is_the_nuclear_norm():
    """Orvieto eq. 10: min ½[d₂‖W₁Xᵀ‖² + ‖W₂‖²‖X‖²] = √d₂ ‖X‖_F ‖M Xᵀ‖_*, attained."""
    net, x, y = linear_net((4, 3, 2))
    n, d2 = len(x), 2
    m = randn(2, 4)
    u, s, v = torch.linalg.svd(m @ x.T, full_matrices=False)
    w2 = torch.zeros(2, 3, dtype=x.dtype)
    w2[:, :2] = u @ torch.diag(s.sqrt())
    w1 = torch.zeros(3, 4, dtype=x.dtype)
    w1[:2] = torch.diag(s.sqrt()) @ v @ torch.linalg.pinv(x.T)
    first, second = (layer for layer in net if isinstance(layer, nn.Linear))

    def R(w2, w1):
        with torch.no_grad():
            first.weight.copy_(w1)
            second.weight.copy_(w2)
        noise = dither.inject(net, Weight(1.0))
        value = dither.explicit(noise, x, y, "half_square").R.detach()
        noise.remove()
        return value * n  # ½[d₂‖W₁Xᵀ‖² + ‖W₂‖²‖X‖²]

    least = math.sqrt(d2) * x.norm() * s.sum()
    scale = (d2 * (w1 @ x.T).square().sum() / (w2.square().sum() * x.square().sum())) ** 0.25
    close(R(w2 * scale, w1 / scale), least)
    for _ in range(5):  # any other factorisation of M is worse
        a = torch.eye(3, dtype=x.dtype) + 0.3 * randn(3, 3)
        assert R(w2 @ a, torch.linalg.solve(a, w1)) > least


def test_adding_one_function_to_all_logits_leaves_R_alone():
    """eq. 9, not eq. 14: the diagonal of H alone would move by far."""

    class Shifted(nn.Module):
        def __init__(self, net, size):
            super().__init__()
            self.net, self.shift, self.size = net, nn.Linear(4, 1), size

        def forward(self, x):
            return self.net(x) + self.size * self.shift(x)

    net, x, y = mlp()
    R = []
    for size in (0.0, 10.0):
        noise = dither.inject(half(Shifted(net, size)), {"input": Additive(0.1)})
        R.append(dither.explicit(noise, x, y).R)
    close(R[0], R[1])
