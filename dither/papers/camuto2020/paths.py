"""Where training goes: the Hessian's trace along the way, as it is and as the authors took it, and
the distances between nets that started from the same weights.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dither.lab import Array, State, Table, Verdict
from dither.lab.rule import below, decide, nearer
from dither.measures.curvature import trace

BUCKETS = 512
TRACE, NEARER = 0.05, 0.1  # floors: of the baseline's trace, of the farther distance


class Shift(nn.Module):
    """h ↦ h + a fixed tensor: one draw of noise."""

    by: Tensor

    def __init__(self, by: Tensor) -> None:
        super().__init__()
        self.register_buffer("by", by)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.by


def noisy(model: nn.Module, x: Tensor, sigma: float, seed: int) -> nn.Sequential:
    """The chain with one draw of σ ε before every Linear, for the batch x alone. The parameters are
    the model's.
    """
    rng, layers = torch.Generator().manual_seed(seed), OrderedDict()
    for name, layer in model.named_children():
        if isinstance(layer, nn.Linear):
            epsilon = torch.randn(len(x), layer.in_features, generator=rng)
            layers[f"noise {name}"] = Shift(sigma * epsilon.to(x))
        layers[name] = layer
    return nn.Sequential(layers)


@dataclass(frozen=True)
class Traces:
    """Of the mean loss over the first `limit` training examples of an MLP:

    "trace"           tr ∇²L, the noise off, and its Monte-Carlo error "trace sem"
    "authors' trace"  Σ_l tr(∇²_{W_l} L̃)/n_l: the mean diagonal entry of each weight matrix, summed
                      over the L matrices, of the loss under one draw of noise of std `sigma`
                      (whatever the net was trained with), as the released code records it
    """

    sigma: float
    every: int | None
    limit: int = 512
    probes: int = 16

    def __call__(self, state: State) -> dict[str, float]:
        x, y = state.examples("train", self.limit)
        model, loss, seed = state.model, state.run.loss, state.seed
        whole = trace(model, loss, (x, y), probes=self.probes, seed=seed)
        theirs = trace(
            noisy(model, x, self.sigma, seed), loss, (x, y), probes=self.probes, seed=seed
        )
        sizes = {f"{n}.weight": m.weight.numel() for n, m in model.named_children()
                 if isinstance(m, nn.Linear)}  # fmt: skip
        mean = sum(part.value / sizes[name] for name, part in theirs.by_parameter.items())
        return {"trace": whole.value, "trace sem": whole.sem, "authors' trace": mean}


@dataclass(frozen=True)
class Sketch:
    """All parameters θ in 512 numbers, "θ/17": each entry goes with a fixed random sign into a
    fixed random bucket (Charikar et al. 2002), so that ‖sketch(θ) − sketch(θ')‖² has the mean
    ‖θ − θ'‖² and a relative standard deviation of √(2/512) = 6 %, the distance of 3 %.
    """

    every: int | None

    def __call__(self, state: State) -> dict[str, float]:
        theta = torch.cat([p.detach().flatten() for p in state.model.parameters()])
        return {f"θ/{i}": v for i, v in enumerate(sketch(theta).tolist())}


def sketch(theta: Tensor) -> Tensor:
    """[n] → [512]."""
    rng = torch.Generator().manual_seed(len(theta))
    bucket = torch.randint(BUCKETS, theta.shape, generator=rng)
    sign = 2.0 * torch.randint(2, theta.shape, generator=rng) - 1
    return torch.zeros(BUCKETS).index_add(0, bucket, (sign * theta.cpu()).float())


def sketches(t: Table, label: str) -> tuple[Array, Array]:
    """Steps [T] and sketches [S, T, 512]."""
    parts = [t.series(label, f"θ/{i}") for i in range(BUCKETS)]
    return parts[0][0], np.stack([values for _, values in parts], -1)


def distance(t: Table, a: str, b: str) -> tuple[Array, Array]:
    """Steps [T] and ‖θ_a − θ_b‖ [S, T], up to the last common step."""
    (steps, u), (others, v) = sketches(t, a), sketches(t, b)
    n = min(len(steps), len(others))
    return steps[:n], np.linalg.norm(u[:, :n] - v[:, :n], axis=-1)


def to_mean(t: Table, one: str, a: str, b: str) -> tuple[Array, Array]:
    """Steps [T] and ⟨θ − θ_a, θ − θ_b⟩ [S, T] for a and b that differ only in their draws of noise.
    It is unbiased for ‖θ − E θ_a‖², the distance to the mean path, without the variance of the
    draws.
    """
    (steps, u), (_, v), (_, w) = (sketches(t, label) for label in (one, a, b))
    n = min(part.shape[1] for part in (u, v, w))
    u, v, w = (part[:, :n] for part in (u, v, w))
    return steps[:n], ((u - v) * (u - w)).sum(-1)


# -------------------------------------------------------------------------------------- verdicts


def end_lower(t: Table, labels: Mapping[str, str], quantity: str, *, unless: str = "") -> Verdict:
    """C5: all others end below the baseline by more than 5 % of it. labels: {"baseline": its label,
    …}.
    """
    end = {m: t.last(label, quantity) for m, label in labels.items()}
    base, others = end["baseline"], {m: v for m, v in end.items() if m != "baseline"}
    numbers: dict[str, Any] = dict(end)
    if f"{quantity} sem" in t.quantities(labels["baseline"]):
        for m, label in labels.items():
            numbers[f"Monte-Carlo error, {m}"] = t.last(label, f"{quantity} sem")
    asked = [
        below(f"{m}/baseline − 1, {quantity}", values / base, 1, by=TRACE)
        for m, values in others.items()
    ]
    return decide(*asked, unless=unless, numbers=numbers)


def alike(t: Table, labels: Mapping[str, str], quantity: str, *, unless: str = "") -> Verdict:
    """C5 throughout: the mean over looks, without the first, of |R − GNI| is below that of |R −
    baseline| and of |GNI − baseline|.
    """
    path = {m: t.series(label, quantity)[1] for m, label in labels.items()}
    n = min(values.shape[1] for values in path.values())

    def gap(a: str, b: str) -> Array:
        return abs(path[a][:, 1:n] - path[b][:, 1:n]).mean(1)

    close, pairs = gap("R", "GNI"), (("R", "baseline"), ("GNI", "baseline"))
    asked = [nearer(f"R to GNI below {a} to {b}", close, gap(a, b), by=NEARER) for a, b in pairs]
    numbers = {"R to GNI": close} | {f"{a} to {b}": gap(a, b) for a, b in pairs}
    return decide(*asked, unless=unless, numbers=numbers)


def together(
    t: Table, labels: Mapping[str, str], noise: str, again: str, *, unless: str = ""
) -> Verdict:
    """C6, halfway and at the end: ‖θ_R − θ_noise‖ is below both distances to the baseline, by a
    tenth of them. labels: {"R", "baseline", noise: …}. again: the label of the noise with other
    draws.
    """
    pairs = (("R", noise), ("R", "baseline"), (noise, "baseline"))
    apart = {f"{a} to {b}": distance(t, labels[a], labels[b])[1] for a, b in pairs}
    end = {pair: d[:, -1] for pair, d in apart.items()}
    half = {f"{pair}, halfway": d[:, d.shape[1] // 2] for pair, d in apart.items()}
    asked = [
        nearer(f"{close} below {far}", distances[close], distances[far], by=NEARER)
        for distances in (half, end)
        for close, *others in [list(distances)]
        for far in others
    ]
    wandered = {f"{noise} to {noise} with other draws": distance(t, labels[noise], again)[1][:, -1]}
    return decide(*asked, unless=unless, numbers=end | half | wandered)


def together_in_mean(
    t: Table, labels: Mapping[str, str], noise: str, again: str, *, unless: str = ""
) -> Verdict:
    """C6 without the variance of the draws: ‖θ_R − E θ_noise‖² ends below the baseline's."""
    square = {m: to_mean(t, labels[m], labels[noise], again)[1][:, -1] for m in ("R", "baseline")}
    numbers = {f"square of {m} to {noise}'s mean": v for m, v in square.items()}
    asked = nearer("R below the baseline", square["R"], square["baseline"], by=NEARER)
    return decide(asked, unless=unless, numbers=numbers)
