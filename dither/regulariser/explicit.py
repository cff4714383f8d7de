"""The regulariser a noise is equal to at second order.

    R = ½ · E_batch Σ_sites Σ_c Var⟨g_c, δ⟩,     g_c = J_siteᵀ S_c,     S Sᵀ = ∂²ℓ/∂z²
    (★)

`pull` computes the sum, `second` the whole second-order term. Derived in
docs/math.md.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dither import loss as losses
from dither.attach.find import check_passes
from dither.attach.inject import Injection
from dither.attach.reading import reading
from dither.calling import check_devices, mixing, ordinary, tensors
from dither.errors import DitherError, check_whole
from dither.picture import BLUE, SOFT, panel
from dither.plain import thrice, twice
from dither.regulariser.gradient_check import check_gradients
from dither.regulariser.padding import padded
from dither.regulariser.pull import Pull
from dither.regulariser.reads import check_reads
from dither.regulariser.second import Second
from dither.regulariser.sharded import sharded
from dither.regulariser.usable import check_usable
from dither.torch_internals import version, without_checkpoints

MOST = 30  # bars of a plot


class Explicit(NamedTuple):
    """The loss without noise, the regulariser R, and each site's share of it: scalars, by_site
    {name: scalar} sums to R.
    """

    loss: Tensor
    R: Tensor
    by_site: dict[str, Tensor]

    def plot(self, ax: Any = None) -> Any:
        """Each site's share of R, in the order of the model from above; beyond 30 sites the largest
        29, and the sum of the others. As a figure of pyplot; or drawn into the axes `ax`. Raises
        DitherError if matplotlib is missing.
        """
        parts = {name: float(part.detach()) for name, part in self.by_site.items()}
        if len(parts) > MOST:
            large = sorted(parts, key=lambda name: -abs(parts[name]))[: MOST - 1]
            rest = sum(part for name, part in parts.items() if name not in large)
            shown = {name: part for name, part in parts.items() if name in large}
            parts = {**shown, f"{len(parts) - len(large)} others": rest}
        figure, ax = panel(ax, height=0.9 + 0.26 * max(len(parts), 3))
        bars = ax.barh(list(parts), list(parts.values()), height=0.7, color=BLUE)
        ax.bar_label(bars, [f"{part:.3g}" for part in parts.values()], padding=3, fontsize="small")
        ax.axvline(0, color=SOFT, lw=1)
        ax.margins(x=0.15)
        ax.locator_params(axis="x", nbins=4)
        ax.set(ylim=(len(parts) - 0.4, -0.6), xlabel="share of R, in units of the loss")
        R, loss = self.R.detach(), self.loss.detach()
        ax.set_title(f"R = {R:.3g}, loss {loss:.3g}", fontsize="medium")
        return figure


def explicit(
    noise: Injection,
    x: Any,
    y: Tensor,
    loss: Any = "cross_entropy",
    *,
    samples: int | None = None,
    curvature: Literal["gauss_newton", "full"] = "gauss_newton",
) -> Explicit:
    """R = ½ E_batch Σ_sites Σ_c Var⟨g_c, δ⟩, exact or sampled; differentiable where gradients are
    on.   (★)

    noise      an Injection; whether its noise is on plays no part, and σ is that of its present
               step.
    x, y       a batch: x a tensor, a tuple of arguments or a mapping of keywords; samples in
               dimension 0 of the output. If the model gives a tuple or mapping, the output is
               its `logits`, or the one real tensor [B, …] in it; what is nested is left out.
    loss       "cross_entropy", "half_square", "logistic", a loss of `dither.loss`, a torch loss
               module or a callable; outputs of half precision reach it in single.
    samples    None: exact, a pull-back per column of √H (C − 1 for softmax, times the positions
               of a sequence). n: n pull-backs of columns mixed with random signs, of torch's
               default generator; value and gradient are unbiased.
    curvature  "gauss_newton": R as the papers have it. "full": the whole second-order term ½ E Σ
               tr(Σ_site ∇²ℓ), R and the residual part Σ_i ∂ℓ/∂z_i tr(Σ_site ∇²z_i); exact by one
               double backward per element of a site.

    Weights under fully_shard have sampled R alone, under `torch.no_grad()`, on all ranks at once:
    loss and R are those of the ranks' batches together.

    Returns (loss, R, by_site), scalars in the loss' units. Under `torch.no_grad()` only values,
    at a third of the cost. Raises DitherError for exact R where something mixes the batch (such
    as BatchNorm in train mode), where no site is called, targets out of range, several devices or
    outputs; for both curvatures where a site is used with gradients off, where a forward
    differentiates what multiplicative noise is on, and where a model draws by itself in eval mode.
    """
    if curvature not in ("gauss_newton", "full"):
        raise DitherError(f"curvature is 'gauss_newton' or 'full': got {curvature!r}")
    check_samples(samples)
    return _explicit(noise, x, y, losses.get(loss), samples, curvature == "full", unit=False)


def _explicit(
    noise: Injection,
    x: Any,
    y: Tensor,
    loss: Any,
    samples: int | None,
    full: bool,
    *,
    unit: bool,
    own: bool = False,
    kind: Any = Pull,
) -> Explicit:
    check_usable(noise, y, loss)
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False), torch.no_grad():
            return _explicit(
                noise, ordinary(x), ordinary(y), loss, samples, full, unit=unit, own=own, kind=kind
            )
    model = noise.model
    if any(p.is_inference() for p in model.parameters()):
        raise DitherError(
            "the model was made under torch.inference_mode(), where nothing can be differentiated: "
            "make it outside, or under torch.no_grad()"
        )
    if any(site.sharded is not None for site in noise.ordered):
        return Explicit(*sharded(noise, x, y, loss, samples, full, unit=unit))
    check_devices(model, x, y)
    coupled = mixing(model)
    if coupled and samples is None:
        raise DitherError(
            f"exact R needs independent samples, but {coupled[0]!r} ({coupled[1]}) mixes the batch "
            "in train mode: call model.eval(), or pass samples=1"
        )
    live = [*model.parameters(), *noise.parameters(), *tensors(x)]
    differentiable = torch.is_grad_enabled() and any(p.requires_grad for p in live)
    if differentiable or full:
        check_passes(model)
    if full:
        pull = Second(noise, loss, samples, differentiable)
    else:
        pull = kind(
            noise,
            loss,
            samples,
            coupled=bool(coupled) or own,
            differentiable=differentiable,
            unit=unit,
        )
    versions = [version(p) for p in model.parameters()]
    with (
        torch.enable_grad(),
        reading(noise, pull),
        thrice(full) if differentiable else twice(full),
        padded(noise),
        without_checkpoints(),
    ):
        value, by_site = pull.run(x, y)
    with padded(noise):
        check_reads(noise, x)
        writes = [version(p) for p in model.parameters()] != versions
        # last, as other refusals say more
        check_gradients(noise, x, unit=unit, graph=pull.graph, writes=writes)
    if not differentiable:
        value, by_site = value.detach(), {name: r.detach() for name, r in by_site.items()}
    return Explicit(value, sum(by_site.values(), torch.zeros_like(value)), by_site)


def explicit_at_unit(
    noise: Injection,
    x: Any,
    y: Tensor,
    loss: Any,
    samples: int | None,
    *,
    own: bool = False,
    kind: Any = Pull,
) -> Explicit:
    """`explicit` at σ = 1 of every site, whatever σ its noise has; `loss` is one of
    `dither.loss`. With `own`, sampled R of parameters is from their own gradients, as where samples
    are coupled: unbiased by the random signs, at the cost of one backward, with a wider spread.
    `kind` makes the `Pull`, for one that does more than sum.
    """
    check_samples(samples)
    own = own and samples is not None
    return _explicit(noise, x, y, loss, samples, full=False, unit=True, own=own, kind=kind)


def check_samples(samples: Any) -> None:
    """Raises DitherError unless it is None or a whole number ≥ 1."""
    if samples is not None:
        check_whole("samples", samples, why="or None for the exact R")
