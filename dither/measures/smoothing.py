"""Certified robustness of the smoothed classifier (randomised smoothing, Cohen et al. 2019).

    g(x) = argmax_c P(f(x + ε) = c),  ε ~ N(0, σ² I);     P(f(x + ε) = c_A) ≥ p > ½
    ⟹  g(x + δ) = c_A for all ‖δ‖₂ < σ Φ⁻¹(p)                                       Theorem 1

p is Clopper and Pearson's lower bound, exact at every n. The theorem knows nothing of f; the bound
is for Gaussian noise that is added to the input, and for no other. Derived in docs/math.md, §24.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dither.attach.inject import Injection
from dither.attach.reading import silenced
from dither.calling import check_devices, check_floats, evaluating, mixing, output
from dither.errors import DitherError, NotFinite, check_whole, is_number
from dither.noise.draw import key
from dither.noise.laws import Gaussian
from dither.noise.noises import Additive
from dither.regulariser.usable import check_there

__all__ = ["Certificate", "certificate", "lower_bound"]

ABSTAINS = -1
ELEMENTS = 2**22  # of noisy inputs in one forward, at most
ROWS = 2**10


class Certificate(NamedTuple):
    """What is certified of each of B inputs; each row by itself is wrong with chance α at most.

    classes  [B] of the smoothed classifier; −1 where it abstains
    radius   [B] in the ℓ₂ norm, in the units of x; 0 where it abstains
    lower    [B], the lower bound of the class's probability under noise
    """

    classes: Tensor
    radius: Tensor
    lower: Tensor


def certificate(
    noise: nn.Module | Injection,
    x: Tensor,
    *,
    sigma: float | None = None,
    draws: Sequence[int] = (100, 10_000),
    alpha: float = 0.001,
    seed: int = 0,
) -> Certificate:
    """Class and certified ℓ₂ radius σ Φ⁻¹(p_lower) of each input, or abstention: Cohen et al. 2019,
    CERTIFY.

    noise   a model, and then `sigma` with it; or an Injection of Gaussian `Additive` noise on
            "input", whose σ of the present step is taken. All other noise of dither is off, the
            model in eval mode.
    x       [B, …] floats, the model's only argument.
    draws   (n₀, n): n₀ draws choose the class c_A, n other ones count it. Where all n agree the
            radius is σ Φ⁻¹(α^(1/n)), the largest there is: 3.2 σ for n = 10⁴, 3.8 σ for 10⁵.
    alpha   the chance at most that a row that does not abstain is wrong.

    Abstains where p_lower ≤ ½. Cost: n₀ + n forwards of a row for each input. The guarantee is that
    of real numbers; it says nothing of rounding. Raises DitherError for noise that is not Gaussian,
    additive and on the input alone, for a model that mixes the batch, and for outputs that are not
    [B, C].

    >>> net = nn.Linear(1, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[-1.0], [1.0]]))  # class 1 where x > 0
    >>> found = certificate(net, torch.tensor([[0.5], [0.0]]), sigma=0.5)
    >>> found.classes.tolist(), bool(0 < found.radius[0] < 0.5)  # 0.5: the distance itself
    ([1, -1], True)
    """
    model, sigma = _smoothed(noise, sigma)
    n0, n = _checked(draws, alpha)
    check_floats("certificate", x)
    check_devices(model, x)
    with evaluating(model), silenced(model), torch.no_grad():
        if mixed := mixing(model):
            raise DitherError(
                f"certificate needs samples by themselves, but {mixed[0]!r} ({mixed[1]}) has no "
                "running statistics and mixes the batch"
            )
        rows = []
        for i, one in enumerate(x):
            rng = torch.Generator(x.device).manual_seed(key("certificate", seed, i))
            chosen = int(_counts(model, one, sigma, n0, rng).argmax())
            agreed = int(_counts(model, one, sigma, n, rng)[chosen])
            rows.append((chosen, lower_bound(agreed, n, alpha)))
    classes = torch.tensor([c for c, _ in rows])
    lower = torch.tensor([p for _, p in rows], dtype=torch.float64)
    sure = lower > 0.5
    radius = torch.where(sure, sigma * torch.special.ndtri(lower.clamp(min=0.5)), 0.0)
    return Certificate(torch.where(sure, classes, ABSTAINS), radius, lower)


def _smoothed(noise: Any, sigma: Any) -> tuple[nn.Module, float]:
    """(the model, σ)."""
    if not isinstance(noise, Injection):
        if not isinstance(noise, nn.Module):
            raise DitherError(
                f"certificate takes a model with sigma=, or an injection: got {noise!r}"
            )
        positive = isinstance(sigma, int | float) and 0 < sigma < math.inf
        if not positive:
            raise DitherError(
                f"certificate of a model needs sigma > 0, in the units of x: got {sigma!r}"
            )
        return noise, float(sigma)
    check_there(noise)
    if sigma is not None:
        raise DitherError(
            f"certificate takes σ from the injection: got sigma = {sigma!r} too; pass the model "
            "with sigma=, or the injection alone"
        )
    sites = list(noise.sites.values())
    law = noise.noise_at(sites[0])
    plain = type(law) is Additive and isinstance(law.law, Gaussian)
    if len(sites) > 1 or sites[0].name != "input" or not plain or noise.stack or not law.sigma > 0:
        raise DitherError(
            "certificate is of Gaussian noise of σ > 0 that is added to the input and nowhere "
            f"else: got {', '.join(f'{s.name!r}: {s.noise}' for s in sites[:3])}; inject "
            "{'input': dither.Additive(σ)}, or pass the model with sigma="
        )
    return noise.model, float(law.sigma)


def _checked(draws: Any, alpha: Any) -> tuple[int, int]:
    if not isinstance(draws, Sequence) or len(draws) != 2:
        raise DitherError(f"certificate: draws are two whole numbers (n0, n) ≥ 1: got {draws!r}")
    for name, n in zip(("n0", "n"), draws, strict=True):
        check_whole(f"certificate: {name} in draws", n)
    if not (is_number(alpha) and 0 < alpha < 0.5):
        raise DitherError(f"certificate: alpha is a chance in (0, ½): got {alpha!r}")
    return draws[0], draws[1]


def _counts(model: nn.Module, x: Tensor, sigma: float, n: int, rng: torch.Generator) -> Tensor:
    """How often each class is the answer at x + ε, n draws [C]."""
    total: Any = 0
    most = max(1, min(ROWS, ELEMENTS // max(1, x.numel())))
    while n:
        some = min(n, most)
        noisy = x.new_empty(some, *x.shape).normal_(generator=rng).mul_(sigma).add_(x)
        z = output(model, noisy)
        if z.dim() != 2 or z.shape[0] != some or z.shape[1] < 2:
            raise DitherError(
                f"certificate needs outputs [B, C] of two classes or more: got {list(z.shape)} for "
                f"{some} inputs"
            )
        if not bool(z.isfinite().all()):
            raise NotFinite("certificate: the model's outputs are not finite on noisy inputs")
        total, n = total + z.argmax(1).bincount(minlength=z.shape[1]), n - some
    return total


@cache
def lower_bound(k: int, n: int, alpha: float) -> float:
    """The p at which k or more of n have chance α:  P(Bin(n, p) ≥ k) = α; 0 for k = 0. The true
    share is below it with chance α at most, at every n.   Clopper & Pearson 1934

    By bisection on the logarithm of the tail, summed term by term: relative error 10⁻¹¹.
    """
    if k == 0:
        return 0.0
    j = torch.arange(n, k - 1, -1, dtype=torch.float64)
    steps = (j[:-1] / (n - j[:-1] + 1)).log()  # (n over j − 1) = (n over j) j/(n − j + 1)
    ways = torch.cat([j.new_zeros(1), steps.cumsum(0)])
    low, high = 0.0, 1.0
    while low < (p := (low + high) / 2) < high:
        tail = (ways + j * math.log(p) + (n - j) * math.log1p(-p)).logsumexp(0)
        low, high = (p, high) if tail <= math.log(alpha) else (low, p)
    return low
