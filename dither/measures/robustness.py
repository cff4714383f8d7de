"""Accuracy on corrupted inputs: by noise (Levi et al. 2022, eq. 8), or by an attack (FGSM, their
eq. 17, and PGD).

    corrupt  x ↦ √(1 − s²) x + s δ,  δ ~ N(0, 1)   it shrinks x, so it is a corruption, no noise
    FGSM     x ↦ clip(x + ε sign ∇_x ℓ)            PGD: the same in small steps, within ε

Both give {strength: Estimate}: the share of right answers and its standard error over the images.
The model is in eval mode with every noise of dither off. `draws` takes the noisy model instead; its
answer is the mean of its probabilities. An attack with a noisy gradient misses, which is no
robustness: so the gradient is that of the mean. An attack fails too if gradients vanish: so their
share is reported, and there is an attack on the margin, whose gradient does not saturate.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dither import loss as losses
from dither.attach.reading import injections, silenced
from dither.calling import check_class_numbers, check_classes, check_floats, evaluating, output
from dither.errors import DitherError, NotFinite, check_whole, is_number
from dither.estimate import Estimate
from dither.noise.draw import key

__all__ = ["Attacked", "attack", "corrupt", "corruption", "vanishing"]

CHUNK = 500  # images in one batch
Method = Literal["fgsm", "pgd"]


def corrupt(x: Tensor, sigma: float, rng: torch.Generator | None = None) -> Tensor:
    """√(1 − s²) x + s δ with s = sigma in [0, 1]. It keeps the variance of a standardised x.

    Levi et al. 2022, eq. 8. x has the unit of its own standard deviation.
    """
    if not 0 <= sigma <= 1:
        raise DitherError(f"corrupt: sigma = {sigma!r} is not in [0, 1] (Levi et al. 2022, eq. 8)")
    check_floats("corrupt", x)
    delta = torch.randn(x.shape, generator=rng, dtype=x.dtype).to(x.device)
    return math.sqrt(1 - sigma**2) * x + sigma * delta


def corruption(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    levels: Sequence[float],
    *,
    draws: int = 1,
    seed: int = 0,
) -> dict[float, Estimate]:
    """Accuracy on x corrupted at each level s of eq. 8; s = 0 is the clean accuracy.

    x [n, …] standardised, y [n] class numbers.   Levi et al. 2022, Fig. 2

    draws: how many δ an image gets, equal at all levels. The standard error is that over images;
    more draws make it smaller.
    """
    check_whole("corruption: draws", draws)
    _check("corruption", x, y)
    levels, accuracy = _numbers("corruption: levels", levels), {}
    with silent(model), torch.no_grad():
        for level in levels:
            rng = torch.Generator().manual_seed(key("corruption", seed))
            right = torch.zeros(len(y), dtype=torch.float64)
            for _ in range(draws):
                spoilt = corrupt(x, level, rng)
                right += torch.cat([_right(output(model, a), b) for a, b in _parts(spoilt, y)])
            accuracy[level] = Estimate.of(right / draws)
    return accuracy


class Attacked(NamedTuple):
    """accuracy: {strength: Estimate}; vanishing: the share of images with ∇_x ℓ = 0 at x."""

    accuracy: dict[float, Estimate]
    vanishing: float


def attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    strengths: Sequence[float],
    bounds: tuple[float, float],
    method: Method = "fgsm",
    target: Literal["loss", "margin"] = "loss",
    loss: Any = "cross_entropy",
    steps: int = 10,
    step: float = 0.25,
    draws: int | None = None,
) -> Attacked:
    """Accuracy under an ℓ_∞ attack of each strength ε; ε = 0 is the clean accuracy.

    strengths  in the units of x.
    bounds     (lowest, highest) value an input can take, in the units of x: a standardised pixel
               lies between (0 − mean)/std and (1 − mean)/std. Raises DitherError if x is outside.
    method     "fgsm", or "pgd": `steps` projected steps of size `step` · ε, which start at x.
    target     what the attack raises: "loss", or "margin", max_{j≠y} z_j − z_y, which can't
               saturate.
    draws      None: the noise is off. n: it is on, and gradient and answer are those of the mean
               of the probabilities over n draws.

    Costs a forward and a backward per step and image.
    """
    _check("attack", x, y)
    try:
        low, high = map(float, bounds)
    except (TypeError, ValueError):
        low, high = 0.0, 0.0
    if not low < high:
        raise DitherError(f"attack: bounds = {bounds}; give (lowest, highest) in the units of x")
    if float(x.min()) < low - 1e-4 or float(x.max()) > high + 1e-4:
        raise DitherError(
            f"attack: x lies in [{x.min():.3g}, {x.max():.3g}] and not within its bounds "
            f"[{low:.3g}, {high:.3g}]: give both in the same units (a standardised pixel is not in "
            "[0, 1])"
        )
    if not bool(torch.isfinite(x).all()):
        raise DitherError("attack: x is not finite")
    strengths = _numbers("attack: strengths", strengths)
    check_whole("attack: steps", steps)
    if not (is_number(step) and step > 0):
        raise DitherError(f"attack: step is a size > 0, in the units of x: got {step!r}")
    if method not in ("fgsm", "pgd") or target not in ("loss", "margin"):
        raise DitherError(
            f"attack takes method 'fgsm' or 'pgd' and target 'loss' or 'margin': got {method!r} "
            f"and {target!r}"
        )
    each = losses.get(loss).per_sample if target == "loss" else margin
    x = x.clamp(low, high)
    quiet = silent(model) if draws is None else noisy(model, draws)
    with quiet, _frozen(model):
        answer = _Answer(model, draws)
        none = torch.cat([_still(answer, each, a, b) for a, b in _parts(x, y)])
        size, count = (1.0, 1) if method == "fgsm" else (step, steps)
        right = [
            torch.cat(
                [_attacked(answer, each, a, b, e, bounds, size, count) for a, b in _parts(x, y)]
            )
            for e in strengths
        ]
    table = torch.stack(right).double().cpu()
    accuracy = {e: Estimate.of(row) for e, row in zip(strengths, table, strict=True)}
    return Attacked(accuracy, none.double().mean().item())


def vanishing(model: nn.Module, x: Tensor, y: Tensor, loss: Any = "cross_entropy") -> float:
    """The share of images with ∇_x ℓ = 0 exactly, in the precision of x. An attack along such a
    gradient does nothing.
    """
    _check("vanishing", x, y, least=1)
    per_sample = losses.get(loss).per_sample
    with silent(model), _frozen(model):
        still = [_still(_Answer(model, None), per_sample, a, b) for a, b in _parts(x, y)]
    return torch.cat(still).double().mean().item()


def margin(z: Tensor, y: Tensor) -> Tensor:
    """max_{j≠y} z_j − z_y, [B]. The answer is wrong if it is above 0."""
    y = y.long()
    own = z.gather(1, y[:, None])
    other = z.scatter(1, y[:, None], -math.inf).amax(1, keepdim=True)
    return (other - own).squeeze(1)


class _Answer(nn.Module):
    """The model's logits, or the log of its probabilities' mean over draws of its noise."""

    def __init__(self, model: nn.Module, draws: int | None) -> None:
        super().__init__()
        self.model, self.draws = model, draws
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if self.draws is None:
            return output(self.model, x)
        logs = [torch.log_softmax(output(self.model, x), -1) for _ in range(self.draws)]
        return torch.stack(logs).logsumexp(0) - math.log(self.draws)


def _attacked(
    answer: nn.Module,
    each: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    strength: float,
    bounds: tuple[float, float],
    step: float,
    steps: int,
) -> Tensor:
    """Whether the answer is right after `steps` steps x ← x + step·ε sign ∇ℓ, [B]. Each step ends
    with a projection on |x − x₀| ≤ ε and on the bounds. FGSM is one step of size 1.   Goodfellow et
    al. 2015; Madry et al. 2018
    """
    low, high = (x - strength).clamp_min(bounds[0]), (x + strength).clamp_max(bounds[1])
    at = x
    for _ in range(steps):
        at = at.detach().requires_grad_()
        with torch.enable_grad():
            (g,) = torch.autograd.grad(each(answer(at), y).sum(), at)
        at = torch.clamp(at.detach() + step * strength * g.sign(), low, high)
    with torch.no_grad():
        return answer(at).argmax(-1) == y


def _still(
    answer: nn.Module, each: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor
) -> Tensor:
    """Whether ∇_x is 0, [B]."""
    x = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        (g,) = torch.autograd.grad(each(_judged(answer(x), y), y).sum(), x)
    return g.flatten(1).abs().amax(1) == 0


def _right(z: Tensor, y: Tensor) -> Tensor:
    return (_judged(z, y).argmax(-1) == y).double().cpu()


def _judged(z: Tensor, y: Tensor) -> Tensor:
    """The outputs z [B, C]. Raises DitherError unless they are finite (argmax would answer for nan
    too) and y holds their classes.
    """
    if not bool(torch.isfinite(z).all()):
        raise NotFinite("robustness: the model's outputs are not finite on these inputs")
    check_class_numbers("robustness", y, z.shape[-1])
    return z


def _numbers(what: str, values: Any) -> list[float]:
    """A sequence of numbers ≥ 0, one or more."""
    try:
        numbers = [float(v) for v in values]
    except TypeError:
        raise DitherError(f"{what} are a sequence of numbers: got {values!r}") from None
    if not numbers or not all(math.isfinite(v) and v >= 0 for v in numbers):
        raise DitherError(f"{what} are finite numbers ≥ 0, one or more: got {values!r}")
    return numbers


def _check(what: str, x: Any, y: Any, least: int = 2) -> None:
    """Tensors x [n, …] and y [n] of `least` examples or more."""
    check_floats(what, x)
    check_classes(what, x, y)
    if len(x) < least:
        raise DitherError(f"{what}: a standard error needs two examples or more: got {len(x)}")


def _parts(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(x.split(CHUNK), y.split(CHUNK), strict=True)


@contextmanager
def silent(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, with all noise of dither off. Afterwards as before."""
    with evaluating(model), silenced(model):
        yield


@contextmanager
def noisy(model: nn.Module, draws: int) -> Iterator[None]:
    """Eval mode inside, with all noise on. Afterwards as before, clocks included."""
    check_whole("attack: draws", draws, why="or None for no noise")
    noises = injections(model)
    if not noises:
        raise DitherError(
            "attack: draws needs noise on the model, and it has none: inject it, or pass draws=None"
        )
    before = [(n, n.when, n.paused) for n in noises]
    with evaluating(model), ExitStack() as clocks:
        for noise in noises:
            clocks.enter_context(noise.own_steps())
            noise.when, noise.paused = "always", False
        try:
            yield
        finally:
            for noise, when, paused in before:
                noise.when, noise.paused = when, paused


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter takes a gradient inside, which saves its part of the backward."""
    taking = [p for p in model.parameters() if p.requires_grad]
    for p in taking:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in taking:
            p.requires_grad_(True)
