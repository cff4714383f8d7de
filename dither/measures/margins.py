"""Distance of an example to another answer, in the outputs and in the inputs.

    output margin  m = f_y − max_{j≠y} f_j
    input margin   γ = min_{j≠y} (f_y − f_j) / ‖∇_x(f_y − f_j)‖₂

γ is the distance from x to the nearest decision boundary, to first order in x. It is exact if f is
affine. It is negative if the answer is wrong: then −γ is the distance to the right answer, to first
order, or with several wrong rivals a lower bound of it. A smaller Jacobian gives a larger γ, and
the explicit regulariser penalises the Jacobian. On the input, for softmax cross-entropy,

    R = ½σ² E Σ_{i<j} p_i p_j ‖∇_x(f_i − f_j)‖²

(docs/math.md, section 12; Camuto et al. 2020, App. D, after Sokolić et al. 2017). `boundary` checks
first order: it follows the linearisation until the answer changes (DeepFool, Moosavi-Dezfooli et
al. 2016).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dither.calling import check_class_numbers, check_classes, check_floats, ordinary, output
from dither.errors import DitherError
from dither.measures import robustness

__all__ = ["Margins", "boundary", "inputs", "outputs"]

CHUNK = 500  # examples in one batch
HALVINGS = 24  # bisection steps: 6e-8 of the length


class Margins(NamedTuple):
    """value [B], in the units of x; rival [B], the class on the other side of that boundary."""

    value: Tensor
    rival: Tensor


def outputs(z: Tensor, y: Tensor) -> Tensor:
    """The output margin z_y − max_{j≠y} z_j, [B], of z [B, C] and y [B]. Below 0 the answer is
    wrong.

    Bartlett et al. 2017. nan where z has a nan. Raises DitherError for other shapes, one class, no
    example, or y outside 0 … C − 1.
    """
    _check(z, y)
    return torch.where(z.isnan().any(1), torch.nan, -robustness.margin(z, y.long()))


def inputs(model: nn.Module, x: Tensor, y: Tensor) -> Margins:
    """First-order input margins γ of x [B, …] with classes y [B], in ℓ₂ and the units of x.

    γ is ±∞ if the gradient is 0 and m is not; it is nan if an output or a gradient is. It is
    computed in float64 and given in the wider of the types of x and the outputs. The model is in
    eval mode with every noise of dither off, and afterwards as before, also under
    torch.inference_mode. Costs C + 1 backward passes for C outputs. Raises DitherError if x is
    empty or has no floats, or if the outputs are not [B, C] or do not depend on x.
    """
    x, y = _ready(model, x, y)
    with torch.inference_mode(False), robustness.silent(model):
        parts = [_linearised(model, a, b)[:2] for a, b in _parts(x, y)]
    value, rival = (torch.cat(part) for part in zip(*parts, strict=True))
    return Margins(value, rival)


def boundary(model: nn.Module, x: Tensor, y: Tensor, *, steps: int = 50) -> Tensor:
    """The ℓ₂ distance of x [B, …] to a point with another answer than y, [B]. An upper bound.

    It steps to the nearest boundary of the linearisation, and 2 % further, until the answer
    changes. Then it bisects the line back to x. 0 if the answer is wrong at x, ∞ if it does not
    change within `steps`, nan if an output is. Costs up to `steps` times `inputs`, and raises as it
    does.
    """
    x, y = _ready(model, x, y)
    with torch.inference_mode(False), robustness.silent(model):
        return torch.cat([_walk(model, a, b, steps) for a, b in _parts(x, y)])


def _ready(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The batch, checked, as tensors that can be differentiated by, also in inference mode."""
    check_floats("margins", x)
    check_classes("margins", x, y)
    if any(t.is_inference() for t in (*model.parameters(), *model.buffers())):
        raise DitherError(
            "margins: the model was made under torch.inference_mode(), where nothing can be "
            "differentiated: make it outside, or under torch.no_grad()"
        )
    with torch.inference_mode(False):
        return ordinary(x), ordinary(y)


def _parts(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(x.split(CHUNK), y.split(CHUNK), strict=True)


def _check(z: Tensor, y: Tensor) -> None:
    if not isinstance(z, Tensor) or z.dim() != 2 or z.shape[1] < 2:
        got = list(z.shape) if isinstance(z, Tensor) else type(z).__name__
        raise DitherError(f"margins need outputs [B, C] of two classes or more: got {got}")
    check_classes("margins", z, y)
    if not len(z):
        raise DitherError("margins need one example or more: got none")
    check_class_numbers("margins", y, z.shape[1])


def _linearised(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """γ [B], its rival [B], and the step to that boundary, m ∇m/‖∇m‖² [B, …], of m = f_y − f_j."""
    x = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        z = output(model, x)
        _check(z, y)
        if not z.requires_grad:
            raise DitherError(
                "margins: the outputs have no gradient by x: compute them from x with torch, "
                "without detach() or no_grad()"
            )
        y = y.long()
        own = z.gather(1, y[:, None])[:, 0]
        gamma = torch.full_like(own, torch.inf, dtype=torch.float64, requires_grad=False)
        rival, step = y.clone(), torch.zeros_like(x, dtype=torch.float64, requires_grad=False)
        for j in range(z.shape[1]):
            m = own - z[:, j]
            (slope,) = torch.autograd.grad(m.sum(), x, retain_graph=True)
            m, slope = m.detach().double(), slope.double()
            norm, unit = _norm(slope)
            far = torch.where(m == 0, 0.0, m / norm)
            far = torch.where(m.isnan() | norm.isnan(), torch.nan, far)
            better = (far < gamma) | (rival == y) | (far.isnan() & ~gamma.isnan())
            nearer = (y != j) & better
            gamma, rival = torch.where(nearer, far, gamma), torch.where(nearer, j, rival)
            shape = (-1, *[1] * (x.dim() - 1))
            size = torch.where(norm > 0, far, 0.0).view(shape)
            step = torch.where(nearer.view(shape), size * unit, step)
    return gamma.to(torch.promote_types(x.dtype, z.dtype)), rival, step


def _norm(slope: Tensor) -> tuple[Tensor, Tensor]:
    """‖g‖ [B] and g/‖g‖ [B, …] of g [B, …]; scaled first, because squares underflow."""
    shape = (-1, *[1] * (slope.dim() - 1))
    largest = slope.flatten(1).abs().amax(1)
    scaled = slope / torch.where(largest > 0, largest, 1.0).view(shape)
    norm = scaled.flatten(1).norm(dim=1)
    unit = scaled / torch.where(norm > 0, norm, 1.0).view(shape)
    return torch.where(largest == 0, 0.0, norm * largest), unit


def _walk(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> Tensor:
    def stands(at: Tensor) -> Tensor:
        with torch.no_grad():
            return output(model, at).argmax(1) == y.long()

    shape = (-1, *[1] * (x.dim() - 1))
    with torch.no_grad():
        z = output(model, x)
        _check(z, y)
    at, right = x.clone(), stands(x)
    walking = right.clone()
    for _ in range(steps):
        if not walking.any():
            break
        _, _, step = _linearised(model, at[walking], y[walking])
        at[walking] = (at[walking] - 1.02 * step).to(x.dtype)
        walking = walking & stands(at)
    near, far = torch.zeros_like(y, dtype=x.dtype), torch.ones_like(y, dtype=x.dtype)
    for _ in range(HALVINGS):  # the answer is y at `near` of the way, and not at `far`
        middle = (near + far) / 2
        still = stands(x + middle.view(shape) * (at - x))
        near, far = torch.where(still, middle, near), torch.where(still, far, middle)
    length = far * (at - x).flatten(1).norm(dim=1)
    length = torch.where(walking, torch.inf, length)
    length = torch.where(right, length, torch.zeros_like(length))
    return torch.where(z.isnan().any(1), torch.nan, length)
