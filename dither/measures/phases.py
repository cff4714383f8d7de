"""The phase of a run with noise nodes, and the σ at which phases begin.   Levi et al. 2022, §2.2

The phase of a run follows from ‖W_NI‖ and the training loss with the noise on, from step 0 on:

    divergent   the loss is not finite, or it does not end below its start, or ‖W_NI‖ ends above ten
                times its start (units died: the loss falls to that of guessing, which is no
                recovery)
    catapult    else, if ‖W_NI‖ rises by more than 5 %, or the loss by more than 20 %
    decay       else, if ‖W_NI‖ ends more than 5 % below its start
    decoupled   else

Before training the network alone predicts them. H is the local Hessian at the node, r₁ and r₂ are
the sizes of R₁ and R₂ at σ = 1, and v is the variance of ε at σ = 1:

    decay      σ = r₁/r₂                R₂ > R₁ = O(1/√B): W_NI falls instead of walking;
                                        r₂ = ½ v W_NIᵀ H W_NI
    catapult   σ² = 2/(η v λ_max(H))    W_NI ← (1 − ησ²vH) W_NI grows
    divergent  σ² = 4/(η v λ_max(H))    the end of the catapult of the linear toy; a loss that
                                        saturates diverges later
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dither import loss as losses
from dither.attach.find import find_sites
from dither.attach.inject import inject
from dither.attach.reading import probing
from dither.calling import output
from dither.errors import DitherError, check_whole
from dither.measures.local import local, norms, terms
from dither.noise.draw import key
from dither.noise.laws import Law, gaussian
from dither.noise.noises import Node

__all__ = [
    "MOVES",
    "PHASES",
    "SPIKES",
    "Boundaries",
    "Found",
    "Short",
    "find",
    "nodes",
    "phase",
    "predict",
]

PHASES = ("decoupled", "decay", "catapult", "divergent")
MOVES = 0.05  # relative change of ‖W_NI‖ that counts
SPIKES = 0.2  # relative change of the loss that counts
LOST = 10  # ‖W_NI‖ at the end over its start; above, it has not recovered
LAST = 0.2  # the share of a run over which its last loss is averaged
RATIOS = (0.01, 0.03, 0.1, 0.3, 0.6, 0.85, 1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 3.6, 4.5, 6.0)


def phase(node: Sequence[float], loss: Sequence[float]) -> str:
    """The phase of a run from its ‖W_NI‖ and its noisy training loss, both from step 0 on.

    The docstring of the module has the rule. The end of the loss is its mean over the last fifth. A
    rise is measured by the largest single value, so take large batches.
    """
    w, ell = np.asarray(node, float), np.asarray(loss, float)
    if w.size < 2 or ell.size < 2:
        raise DitherError(f"phase needs 2 norms and 2 losses or more: got {w.size} and {ell.size}")
    if not (np.isfinite(ell).all() and np.isfinite(w).all()):
        return "divergent"
    if ell[-max(1, round(LAST * ell.size)) :].mean() >= ell[0] or w[-1] > LOST * w[0]:
        return "divergent"
    if w.max() > (1 + MOVES) * w[0] or ell.max() > (1 + SPIKES) * ell[0]:
        return "catapult"
    return "decay" if w[-1] < (1 - MOVES) * w[0] else "decoupled"


@dataclass(frozen=True)
class Boundaries:
    """The σ at which each phase begins; inf or nan if it was not reached."""

    decay: float
    catapult: float
    divergent: float

    def phase(self, sigma: float) -> str:
        """The phase these boundaries give to a σ."""
        below = [sigma >= self.divergent, sigma >= self.catapult, sigma >= self.decay, True]
        return PHASES[::-1][below.index(True)]


@dataclass(frozen=True)
class Short:
    """A short run: σ, its phase, and the curves that say it (‖W_NI‖ relative to its start)."""

    sigma: float
    phase: str
    node: tuple[float, ...]
    loss: tuple[float, ...]


@dataclass(frozen=True)
class Found:
    """Predicted and measured boundaries, λ_max of each site, and the short runs."""

    predicted: Boundaries
    measured: Boundaries | None
    top: dict[str, float]
    runs: tuple[Short, ...] = ()

    def __str__(self) -> str:
        """A table of the three boundaries."""
        lines = ["σ at the start of    predicted    measured"]
        for name in PHASES[1:]:
            measured = "–" if self.measured is None else f"{getattr(self.measured, name):.4g}"
            lines.append(f"{name:<18}{getattr(self.predicted, name):>12.4g}{measured:>12}")
        return "\n".join(lines)


def predict(
    model: nn.Module,
    x: Any,
    y: Tensor,
    lr: float,
    *,
    loss: Any = "cross_entropy",
    where: str | Sequence[str] | None = None,
    law: Law = gaussian,
    seed: int = 0,
) -> tuple[Boundaries, dict[str, float]]:
    """The boundaries from the untrained network alone, and λ_max(H) of each site.

    x, y   a batch of the size that training uses, as r₁ falls with 1/√B. A few hundred samples are
           enough.
    where  the node's pattern, or several, as in `inject`; None: the first Linear or convolution.

    If there are several nodes, each boundary is the smallest one among them.
    """
    if not lr > 0:
        raise DitherError(f"phases: lr = {lr!r}; give the learning rate, a number above 0")
    what = nodes(model, where, 1.0, law)
    with probing(model, what, seed=seed, example=x) as noise:
        felt = local(noise, x, y, loss)
        names = list(noise.sites)
    top = {name: here.top for name, here in felt.items()}
    decay = []
    for name in names:
        what = {name: Node(1.0, law)}
        with probing(model, what, seed=seed, example=x) as noise:
            (first,) = terms(noise, x, y, loss, order=1)
            w = next(iter(noise.parameters())).detach()
        second = law.variance * felt[name].along(w.double()) / 2
        decay.append(first.sd / second if second > 0 else math.inf)
    steepest = max(top.values())
    if not steepest > 0:
        raise DitherError(
            "phases: the local Hessian is 0 on this batch, so that no σ has an effect: take other "
            "data"
        )
    edge = 2 / (lr * law.variance * steepest)
    return Boundaries(min(decay), math.sqrt(edge), math.sqrt(2 * edge)), top


def find(
    model: nn.Module,
    x: Any,
    y: Tensor,
    lr: float,
    *,
    loss: Any = "cross_entropy",
    where: str | Sequence[str] | None = None,
    law: Law = gaussian,
    batch: int = 128,
    steps: int = 100,
    ratios: Sequence[float] = RATIOS,
    seed: int = 0,
) -> Found:
    """The σ at which decay, catapult and divergence begin, predicted, and measured by short runs.

    A short run is `steps` steps of plain SGD on batches of (x, y), on a copy of the model. There is
    one for each of `ratios`, at that multiple of the σ predicted for the catapult. A measured
    boundary is the geometric mean of two neighbouring σ, one with the phase (or a later one) and
    one without. Decay takes time: its measured boundary falls with the steps, roughly as 1/√steps.
    ratios=() only predicts.
    """
    check_whole("phases: steps", steps, 2)
    check_whole("phases: batch", batch)
    example = some(x, slice(2))
    predicted, top = predict(
        model,
        some(x, slice(max(batch, 2))),
        y[: max(batch, 2)],
        lr,
        loss=loss,
        where=where,
        law=law,
        seed=seed,
    )
    sigmas = sorted(r * predicted.catapult for r in ratios)
    runs = tuple(
        short(model, x, y, lr, nodes(model, where, sigma, law), loss=loss, batch=batch,
              steps=steps, seed=seed, example=example)
        for sigma in sigmas
    )  # fmt: skip
    measured = boundaries([(r.sigma, r.phase) for r in runs]) if runs else None
    return Found(predicted, measured, top, runs)


def some(x: Any, chosen: Any) -> Any:
    """Some samples of a tensor, of a tuple of tensors or of a mapping."""
    if isinstance(x, Mapping):
        return {name: part[chosen] for name, part in x.items()}
    return tuple(part[chosen] for part in x) if isinstance(x, tuple | list) else x[chosen]


def boundaries(runs: Sequence[tuple[float, str]]) -> Boundaries:
    """The measured boundaries of a scan of (σ, phase): the first σ from which on every run has the
    phase or a later one. inf if there is none; the lowest σ if all runs have it.
    """
    runs = sorted(runs)
    order = [PHASES.index(p) for _, p in runs]
    edges = []
    for level in (1, 2, 3):
        above = [o >= level for o in order]
        start = next((i for i in range(len(above)) if all(above[i:])), None)
        if start is None:
            edges.append(math.inf)
        else:
            lower = runs[max(start - 1, 0)][0]
            edges.append(math.sqrt(lower * runs[start][0]))
    return Boundaries(*edges)


def short(
    model: nn.Module,
    x: Any,
    y: Tensor,
    lr: float,
    what: Any,
    *,
    loss: Any = "cross_entropy",
    batch: int = 128,
    steps: int = 100,
    seed: int = 0,
    example: Any = None,
) -> Short:
    """Train a copy of the model with noise nodes for some steps of SGD."""
    net, each = copy.deepcopy(model).train(), losses.get(loss)
    rng = torch.Generator().manual_seed(key("phases", seed))
    node, seen = [], []
    with inject(net, what, seed=seed, example=example) as noise:
        sgd = torch.optim.SGD([*net.parameters(), *noise.parameters()], lr)
        order = torch.empty(0, dtype=torch.long)
        while len(seen) < steps:
            if len(order) < min(batch, len(y)):
                order = torch.randperm(len(y), generator=rng)
            chosen, order = order[:batch], order[batch:]
            value = each.per_sample(output(net, some(x, chosen)), y[chosen]).mean()
            node.append(math.hypot(*norms(noise).values()))
            seen.append(float(value.detach()))
            if not math.isfinite(seen[-1]):
                break
            sgd.zero_grad()
            value.backward()
            sgd.step()
        sigma = max(s.noise.sigma for s in noise.sites.values())
    if len(seen) < 2:  # diverged at once
        seen, node = [*seen, math.inf], [*node, math.inf]
    start = node[0]
    return Short(sigma, phase(node, seen), tuple(w / start for w in node), tuple(seen))


def nodes(
    model: nn.Module, where: str | Sequence[str] | None, sigma: float, law: Law = gaussian
) -> dict[str, Node]:
    """{pattern: node}. For None, one node at the first site that takes one."""
    if where is None:
        where = next(iter(find_sites(model, Node(1.0))))
    return dict.fromkeys([where] if isinstance(where, str) else where, Node(sigma, law))
