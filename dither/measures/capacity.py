"""Norm-based capacity measures of a network.

    frobenius   Π_l ‖W_l‖_F                 of the weights as they are stored (a kernel once)
    spectral    Π_l ‖A_l‖₂                  A_l is the layer as a linear operator. It bounds the
                                            Lipschitz constant of the network (slopes ≤ 1)
    path        √(Σ_paths Π_l w_l²)         over all paths from an input to an output
    complexity  Π_l ‖A_l‖₂ √(Σ_l ‖W_l‖_F²/‖A_l‖₂²)

Each is also divided by the output margin, which removes the scale of the outputs. Neyshabur et al.
2015 (path) and 2017; Bartlett et al. 2017, Neyshabur et al. 2018 (complexity); Camuto et al. 2020,
App. E.

They are defined for a chain: each Linear or Conv layer is called once, and its input is the output
of the layer before, through elementwise activations and reshapes. An activation may be a module, or
a function that leaves numbers > 0 as they are, like relu. A forward tests whether a network is a
chain; other networks raise DitherError. Biases do not count, as they are not in a Jacobian. Noise
on the input of a softmax classifier has R ≤ ½σ² E[1 − Σ_i p_i²] spectral² (docs/math.md, section
13), so a small capacity gives a small R. The converse is a question for experiments.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dither.calling import check_classes, check_floats, output
from dither.errors import DitherError, is_number
from dither.measures import margins, robustness
from dither.measures.jacobian import ACTIVATIONS

__all__ = ["Capacity", "Norms", "capacity", "layers", "path"]

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS = (nn.Linear, *CONVS)
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
BESIDE = "beside_its_model"  # an Injection that is an attribute of its model
NEUTRAL = (nn.Flatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, *ACTIVATIONS)
STEPS = 200  # of Lanczos, at most
ACCURACY = 1e-6  # relative, of ‖A‖₂²


@dataclass(frozen=True)
class Norms:
    """One layer: ‖W‖_F, and ‖A‖₂ for inputs of the size it was called with."""

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
        """{measure: measure/margin}; nan unless the margin is above 0."""
        names = ("frobenius", "spectral", "path", "complexity")
        positive = self.margin > 0
        return {n: getattr(self, n) / self.margin if positive else math.nan for n in names}


def capacity(model: nn.Module, x: Tensor, y: Tensor, *, quantile: float = 0.1) -> Capacity:
    """The measures of a chain of Linear and Conv layers, with the margin of (x, y).

    x [B, …], y [B]: the training examples. The margin is the `quantile` of their output margins
    f_y − max_j f_j (Jiang et al. 2020 take .1; the minimum would depend on one example). Raises
    DitherError as `layers` and `path` do, for an empty batch, and unless quantile is in [0, 1].
    """
    if not (is_number(quantile) and 0 <= quantile <= 1):
        raise DitherError(f"capacity: quantile = {quantile!r} is not in [0, 1]")
    check_floats("capacity", x)
    check_classes("capacity", x, y)
    paths, norms = path(model, x[:1]), layers(model, x[:1])
    with robustness.silent(model), torch.no_grad():
        m = margins.outputs(output(model, x), y)
    spectral = math.prod(n.spectral for n in norms.values())
    ratios = sum((n.frobenius / n.spectral) ** 2 for n in norms.values()) if spectral else 0.0
    return Capacity(
        frobenius=math.prod(n.frobenius for n in norms.values()),
        spectral=spectral,
        path=paths,
        complexity=spectral * math.sqrt(ratios),
        margin=float(m.double().quantile(quantile)),
    )


def layers(model: nn.Module, x: Tensor) -> Mapping[str, Norms]:
    """{name: Norms} of the Linear and Conv layers that x [B, …] goes through, in that order.

    ‖A‖₂ of a convolution is that of the linear map from its input to its output, with the size of
    the input in this forward, its stride, zero padding and groups. It is not that of the kernel
    reshaped to a matrix. Lanczos' iteration on AᵀA computes it in float64, to 1e-6. `path` checks
    whether the layers are a chain. Raises DitherError if there is no such layer, if one is called
    twice, if a convolution does not pad with zeros, or if the iteration does not converge.
    """
    check_floats("capacity", x)
    shapes: dict[str, tuple[nn.Module, torch.Size]] = {}

    def note(name: str, module: nn.Module, h: Tensor) -> None:
        if name in shapes:
            raise DitherError(
                f"capacity: {name!r} is called twice, and a chain calls it once: use two layers"
            )
        shapes[name] = module, h.shape

    called = {n: m for n, m in _modules(model).items() if isinstance(m, LAYERS)}
    with _taking(called, note), robustness.silent(model), torch.no_grad():
        output(model, x)
    if not shapes:
        raise DitherError(
            "capacity: x goes through no Linear and no Conv layer; give a model that has one"
        )
    return {name: _norms(name, module, shape) for name, (module, shape) in shapes.items()}


def path(model: nn.Module, x: Tensor) -> float:
    """√(Σ_paths Π w²), in float64.   Neyshabur et al. 2015, eq. 7

    It is the root of the sum of outputs, at an input of ones, of the network with squared weights,
    without activations and biases.

    x [B, …] gives the input's shape. Raises DitherError for anything but a chain of Linear, Conv,
    elementwise activations, dropout and flattening: a path has no weight there.
    """
    check_floats("capacity", x)
    modules = _modules(model)
    for name, module in modules.items():
        known = isinstance(module, (*LAYERS, *NEUTRAL, *CONTAINERS)) or any(module.children())
        if not isinstance(module, LAYERS) and [*module.parameters(recurse=False)]:
            raise DitherError(
                f"path: {name!r} ({type(module).__name__}) has parameters of its own, and is no "
                "Linear or Conv: no measure here counts its parameters"
            )
        if not known:
            raise DitherError(
                f"path: {name!r} ({type(module).__name__}) is no Linear, Conv, elementwise "
                "activation, dropout or flattening, and its paths have no weights"
            )
    ones = torch.ones_like(x[:1])
    with robustness.silent(model), torch.no_grad():
        _chain(model, modules, ones)
        with _computing(modules, _squares):
            total = output(model, ones).sum()
    return math.sqrt(float(total))


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    """{name: module}, without modules inside a layer (parametrisations) and without an Injection
    that is an attribute.
    """
    modules = dict(model.named_modules())
    closed = [n for n, m in modules.items() if isinstance(m, LAYERS) or hasattr(m, BESIDE)]
    inside = tuple(f"{n}." if n else "" for n in closed)
    kept = {n: m for n, m in modules.items() if n in closed or not n.startswith(inside)}
    return {n: m for n, m in kept.items() if not hasattr(m, BESIDE)}


def _squares(name: str, module: nn.Module, h: Tensor) -> Tensor:
    """A layer with W² and without bias."""
    w: Tensor = module.weight.detach().double().square()  # type: ignore[union-attr]
    if isinstance(module, nn.Linear):
        return h @ w.T
    return module._conv_forward(h, w, None)  # pyright: ignore


def _chain(model: nn.Module, modules: Mapping[str, nn.Module], ones: Tensor) -> None:
    """Raises DitherError unless the inputs of each layer are, up to their order, the outputs of the
    layer before.

    Every layer is made to give numbers of its own, from ½ to 8. So any sum, scale, pooling or
    nonlinearity between layers shows, whatever the weights are.
    """
    rng = torch.Generator().manual_seed(0)

    def numbers(shape: torch.Size) -> Tensor:  # exact in any precision
        return (torch.randint(4, 65, shape, generator=rng) / 8).to(ones)

    given, called = numbers(ones.shape), []
    source = "the model's input"

    def same(h: Tensor, taker: str) -> None:
        a, b = (t.double().flatten().sort().values for t in (h, given))
        if not torch.equal(a, b):
            raise DitherError(
                f"path: {taker} is not what {source} gave, so that the network is no chain of its "
                "layers: something adds, scales, pools or bends on the way; activations must be "
                "modules"
            )

    def answer(name: str, module: nn.Module, h: Tensor) -> Tensor:
        nonlocal given, source
        if name in called:
            raise DitherError(f"path: {name!r} is called twice; its weights count for each call")
        same(h, f"the input of {name!r}")
        called.append(name)
        source, given = repr(name), numbers(_squares(name, module, h.double()).shape)
        return given.clone()

    with _computing(modules, answer):
        z = output(model, given.clone())
    if not called:
        raise DitherError("path: x went through no Linear and no Conv layer")
    same(z, "the output")


@contextmanager
def _computing(
    modules: Mapping[str, nn.Module], what: Callable[[str, nn.Module, Tensor], Tensor]
) -> Iterator[None]:
    """Inside, a layer gives what(name, layer, h) of its input h in float64, and activations hand on
    what they get.
    """
    taken: dict[str, Tensor] = {}

    def take(name: str, module: nn.Module, h: Tensor) -> Tensor:
        taken[name] = h if isinstance(module, NEUTRAL) else h.double()
        weight = module.weight if isinstance(module, LAYERS) else h
        return h.to(weight.dtype, copy=True)  # the layer itself may not know float64, or write

    def give(name: str):
        def hook(module: nn.Module, args: tuple, out: Any) -> Tensor | None:
            if isinstance(module, LAYERS):
                return what(name, module, taken.pop(name))
            return None if isinstance(module, nn.Flatten) else taken.pop(name)

        return hook

    active = {n: m for n, m in modules.items() if isinstance(m, (*LAYERS, *NEUTRAL))}
    handles = [m.register_forward_hook(give(n)) for n, m in active.items()]
    try:
        with _taking(active, take):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _taking(
    modules: Mapping[str, nn.Module], what: Callable[[str, nn.Module, Tensor], Tensor | None]
) -> Iterator[None]:
    """Inside, layers and activations hand their input h to what(name, module, h), by position or
    keyword, and take what it gives, if anything, in its place.
    """

    def before(name: str):
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            h = what(name, module, args[0] if args else kwargs["input"])
            if h is None:
                return None
            return ((h, *args[1:]), kwargs) if args else (args, {**kwargs, "input": h})

        return hook

    handles = [
        m.register_forward_pre_hook(before(name), with_kwargs=True)
        for name, m in modules.items()
        if isinstance(m, (*LAYERS, *NEUTRAL))
    ]
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
