"""How complex a function a network's weights allow: norm-based capacity measures.

    frobenius   Π_l ‖W_l‖_F                 of the weights as they are stored (a kernel once)
    spectral    Π_l ‖A_l‖₂                  A_l the layer as a linear operator: the Lipschitz
                                            constant of the net is below it (slopes ≤ 1)
    path        √(Σ_paths Π_l w_l²)         over all paths from an input to an output
    complexity  Π_l ‖A_l‖₂ √(Σ_l ‖W_l‖_F²/‖A_l‖₂²)

and each divided by the output margin, which takes the scale of the outputs out. Neyshabur et al.
2015 (path) and 2017; Bartlett et al. 2017, Neyshabur et al. 2018 (complexity); Camuto et al. 2020,
App. E. Weights only: a bias has no part in a Jacobian. Noise on the input of a softmax classifier
has R ≤ ½σ² E[1 − Σ_i p_i²] spectral² (docs/math.md, section 13), so a small capacity gives a small
R; the converse is a question for experiments.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dither.errors import DitherError
from dither.forward import output
from dither.measures import margins, robustness
from dither.measures.jacobian import ACTIVATIONS

__all__ = ["Capacity", "Norms", "capacity", "layers", "path"]

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NEUTRAL = (nn.Flatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, *ACTIVATIONS)
STEPS = 200  # of Lanczos, at most
ACCURACY = 1e-6  # relative, of ‖A‖₂²


@dataclass(frozen=True)
class Norms:
    """Of one layer: ‖W‖_F, and ‖A‖₂ on inputs of the size that it met."""

    frobenius: float
    spectral: float


@dataclass(frozen=True)
class Capacity:
    """The four measures of a network, and the output margin that `normalised` divides by."""

    frobenius: float
    spectral: float
    path: float
    complexity: float
    margin: float

    def normalised(self) -> dict[str, float]:
        """{measure: measure/margin}; nan where the margin is not above 0 and none is defined."""
        names = ("frobenius", "spectral", "path", "complexity")
        positive = self.margin > 0
        return {n: getattr(self, n) / self.margin if positive else math.nan for n in names}


def capacity(model: nn.Module, x: Tensor, y: Tensor, *, quantile: float = 0.1) -> Capacity:
    """The measures of a chain of Linear and Conv layers, with the margin of (x, y).

    x [B, …], y [B]: the training examples; `quantile` of their output margins f_y − max_j f_j is
    the margin (Jiang et al. 2020 take a tenth; a minimum would be one example's). Raises
    DitherError where `layers` or `path` does, or quantile is not in [0, 1].
    """
    if not 0 <= quantile <= 1:
        raise DitherError(f"capacity: quantile = {quantile!r} is not in [0, 1]")
    norms = layers(model, x[:1])
    with robustness.silent(model), torch.no_grad():
        m = margins.outputs(output(model, x), y)
    spectral = math.prod(n.spectral for n in norms.values())
    ratios = sum((n.frobenius / n.spectral) ** 2 for n in norms.values()) if spectral else 0.0
    return Capacity(
        frobenius=math.prod(n.frobenius for n in norms.values()),
        spectral=spectral,
        path=path(model, x[:1]),
        complexity=spectral * math.sqrt(ratios),
        margin=float(m.double().quantile(quantile)),
    )


def layers(model: nn.Module, x: Tensor) -> Mapping[str, Norms]:
    """{name: Norms} of the Linear and Conv layers that x [B, …] goes through, in that order.

    A convolution's ‖A‖₂ is that of the whole linear map from its input (of the size it met, with
    its stride, zero padding and groups) to its output, not of the kernel reshaped to a matrix:
    found by Lanczos' iteration on AᵀA in float64, to 1e-6. Raises DitherError where there is no
    such layer, a convolution does not pad with zeros, or the iteration does not settle.
    """
    shapes: dict[str, tuple[nn.Module, torch.Size]] = {}

    def note(name: str):
        def hook(module: nn.Module, args: tuple) -> None:
            shapes.setdefault(name, (module, args[0].shape))

        return hook

    kinds = (nn.Linear, *CONVS)
    handles = [
        m.register_forward_pre_hook(note(name))
        for name, m in model.named_modules()
        if isinstance(m, kinds)
    ]
    try:
        with robustness.silent(model), torch.no_grad():
            output(model, x)
    finally:
        for handle in handles:
            handle.remove()
    if not shapes:
        raise DitherError("capacity: x went through no Linear and no Conv layer")
    return {name: _norms(name, module, shape) for name, (module, shape) in shapes.items()}


def path(model: nn.Module, x: Tensor) -> float:
    """√(Σ_paths Π w²): the root of the sum of outputs of the net with its weights squared, its
    activations left out and its biases 0, at an input of ones.   Neyshabur et al. 2015, eq. 7

    x [B, …] gives the input's shape. Raises DitherError for anything but Linear, Conv, elementwise
    activations, dropout and flattening: a path has no weight there.
    """
    for name, module in model.named_modules():
        known = (nn.Linear, *CONVS, *NEUTRAL)
        if not any(module.children()) and not isinstance(module, known):
            raise DitherError(
                f"path: {name!r} ({type(module).__name__}) is no Linear, Conv, elementwise "
                "activation, dropout or flattening, and its paths have no weights"
            )
    with _squared(model), torch.no_grad():
        total = output(model, torch.ones_like(x[:1])).sum()
    return math.sqrt(float(total))


@contextmanager
def _squared(model: nn.Module) -> Iterator[None]:
    """Inside, layers compute with W² and without bias, and activations hand on what they get."""

    def through(module: nn.Module, args: tuple, out: Any) -> Tensor:
        (h,) = args
        if isinstance(module, nn.Linear):
            return h @ module.weight.square().T
        if isinstance(module, CONVS):
            return module._conv_forward(h, module.weight.square(), None)  # pyright: ignore
        return h if not isinstance(module, nn.Flatten) else out

    with robustness.silent(model):
        leaves = [m for m in model.modules() if not any(m.children())]
        handles = [m.register_forward_hook(through) for m in leaves]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _norms(name: str, module: nn.Module, shape: torch.Size) -> Norms:
    w: Tensor = module.weight.detach().double()  # type: ignore[union-attr]
    frobenius = w.norm().item()
    if isinstance(module, nn.Linear):
        return Norms(frobenius, torch.linalg.matrix_norm(w, 2).item())
    return Norms(frobenius, _operator(name, module, w, shape))


def _operator(name: str, conv: Any, w: Tensor, shape: torch.Size) -> float:
    """‖A‖₂ of x ↦ conv(x), by Lanczos with full reorthogonalisation on AᵀA.

    θ, the largest eigenvalue of the tridiagonal matrix, and the last entry u of its eigenvector
    give an eigenvalue within β|u| of θ.
    """
    if conv.padding_mode != "zeros":
        raise DitherError(
            f"capacity: {name!r} pads with {conv.padding_mode!r}; the operator's norm is known for "
            "zeros"
        )
    like = torch.zeros(1, *shape[1:], dtype=w.dtype, device=w.device)

    def forward(v: Tensor) -> Tensor:
        return conv._conv_forward(v.view_as(like), w, None)

    def gram(v: Tensor) -> Tensor:  # AᵀA v, the transpose by autograd: any stride and padding
        with torch.enable_grad():
            at = v.clone().requires_grad_()
            a = forward(at)
            return torch.autograd.grad(a, at, a.detach())[0]

    rng = torch.Generator().manual_seed(0)
    v = torch.randn(like.numel(), generator=rng, dtype=w.dtype).to(w.device)
    basis, alphas, betas = [v / v.norm()], [], []
    for step in range(min(STEPS, like.numel())):
        u = gram(basis[-1])
        alphas.append(float(u @ basis[-1]))
        for _ in range(2):  # twice is enough (Giraud et al. 2005)
            q = torch.stack(basis)
            u = u - q.T @ (q @ u)
        beta = float(u.norm())
        side = torch.tensor(betas, dtype=w.dtype)
        t = torch.tensor(alphas, dtype=w.dtype).diag() + side.diag(1) + side.diag(-1)
        thetas, vectors = torch.linalg.eigh(t)
        top = max(float(thetas[-1]), 0.0)
        last = step + 1 == like.numel()
        if last or beta * abs(float(vectors[-1, -1])) <= ACCURACY * top:
            return math.sqrt(top)
        betas.append(beta)
        basis.append(u / beta)
    raise DitherError(f"capacity: the norm of {name!r} did not settle in {STEPS} steps")
