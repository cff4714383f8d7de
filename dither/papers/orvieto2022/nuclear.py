"""Noise on the weights of a linear network with one hidden layer is the nuclear norm.

Orvieto et al. 2022, §2.4, eq. 9 and 10, App. C.2.

Φ = W₂W₁Xᵀ, L = ‖Yᵀ − Φ‖²/2n, M = W₂W₁. The regulariser of eq. 9, minimised over the factorisations
of M, is the nuclear norm of eq. 10, and the minimum is attained if the hidden layer is wide enough:

    ½[d₂‖W₁Xᵀ‖² + ‖W₂‖²‖X‖²] ≥ √d₂ ‖X‖_F ‖MXᵀ‖_*.

The convex problem is solved by its singular values. Full noise adds only the constant σ⁴d₁d₂‖X‖²/2n
to eq. 9, so that its minimiser is eq. 10's at any σ.
"""

from collections.abc import Iterator

import numpy as np
import torch

from dither.lab import Array, Claim, Figure, LinearNet, Progress, Table, Task, Verdict, generator
from dither.lab.rule import above, decide, near
from dither.papers import style
from dither.papers.orvieto2022 import convex
from dither.papers.orvieto2022.simple import COLOURS, GD, NOISE, Row, attained, compared, draw_gaps
from dither.papers.orvieto2022.simple import reaches as reached

SIGMA, N, WIDTHS, RANK = 0.2, 40, (10, 20, 5), 2
SHOWN = min(WIDTHS)
HALF = 0.5  # of a rank


def problem(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """X [n, d₀] and Y = XM*ᵀ + 0.1 ξ [n, d₂], M* of rank 2."""
    rng = generator(seed, "low rank")
    d0, _, d2 = WIDTHS
    X, left, right, xi = (
        torch.randn(*shape, generator=rng, dtype=torch.float64)
        for shape in ((N, d0), (d0, RANK), (RANK, d2), (N, d2))
    )
    return X, X @ left @ right / RANK**0.5 + 0.1 * xi


def task(seed: int, progress: Progress, *, steps: int, starts: int, iterations: int):
    """Gaps of each method, and the singular values of W₂W₁Xᵀ beside the convex solution's."""
    return _rows(seed, progress, steps, starts, iterations)


def _rows(seed: int, progress: Progress, steps: int, starts: int, iterations: int) -> Iterator[Row]:
    X, Y = problem(seed)
    M, best = convex.nuclear(X.numpy(), Y.numpy(), SIGMA)

    def build(start: int) -> torch.nn.Module:
        return LinearNet(WIDTHS, init="lecun").build(100 * seed + start).double()

    models = yield from compared(
        build, X, Y, best, sigma=SIGMA, steps=steps, rate=0.02, seed=seed, starts=starts,
        iterations=iterations,
    )  # fmt: skip
    products = {m: (net[2].weight @ net[0].weight).detach().numpy() for m, net in models.items()}
    for name, product in {**products, "convex": M}.items():
        for k, s in enumerate(np.linalg.svd(product @ X.numpy().T, compute_uv=False)[:SHOWN]):
            yield k + 1, f"singular value {name}", s
    progress.update(1, 1)


def runs(steps: int, starts: int, iterations: int) -> dict[str, Task]:
    return {"net": Task.of(task, steps=steps, starts=starts, iterations=iterations)}


def minimum(t: Table) -> Verdict:
    return attained(t, "net")


def reaches(t: Table) -> Verdict:
    return reached(t, "net")


def low_rank(t: Table) -> Verdict:
    """The number of singular values above 1 % of the largest: its mean over seeds, within ½."""
    gd, noise, known = (
        _rank(t.series("net", f"singular value {name}")[1]) for name in (GD, NOISE, "convex")
    )
    third = {"convex": known}
    for name in (GD, NOISE):
        values = t.series("net", f"singular value {name}")[1]
        third[f"third over first, {name}"] = values[:, RANK] / values[:, 0]
    return decide(
        near(f"rank, {NOISE} − convex", noise, known, within=HALF),
        above(f"rank, {GD} − {NOISE}", gd, noise, by=HALF),
        numbers=third,
    )


def _rank(values: Array) -> Array:
    return (values > 0.01 * values.max(1, keepdims=True)).sum(1).astype(float)


def plot(t: Table):
    picture, ((gaps, spectrum),) = style.grid(1, 2, height=3.4)
    draw_gaps(gaps, t, "net")
    k, known = t.series("net", "singular value convex")
    spectrum.plot(k, known.mean(0), "o", ms=11, mfc="none", color=style.GREEN, label="eq. 10")
    for method, shift in ((GD, -0.12), (NOISE, 0.12)):
        values = t.series("net", f"singular value {method}")[1]
        style.dots(spectrum, k + shift, values, COLOURS[method], label=method)
    spectrum.set(xlabel="k", ylabel="k-th singular value of W$_2$W$_1$Xᵀ", xticks=k)
    style.legend(spectrum)
    return picture


figure = Figure(
    runs,
    plot,
    smoke={"steps": 40, "starts": 1, "iterations": 30},
    quick={"steps": 4000, "starts": 2, "iterations": 600},
    paper={"steps": 40_000, "starts": 10, "iterations": 2000},
    claims=[
        Claim("O2", "the minimum of eq. 9 over W₁, W₂ is eq. 10's, to 1e-4", minimum),
        Claim("O2 noise", "GD with noise ends within 5 % of eq. 10's minimum, GD without not",
              reaches),
        Claim("O2 rank", "W₂W₁Xᵀ has the rank of eq. 10's solution; without noise a higher one",
              low_rank),
    ],
    departures=[
        "§2.4 has no experiment; ours: n = 40, widths 10-20-5, rank 2 planted, noise 0.1, σ = 0.2",
        "GD starts from the same point as GD with noise",
        "changed after first results: means over seeds with 95 % intervals and n ≥ 5 (had been "
        "bare means, or every seed)",
        "smoke: 40 steps, far from converged",
    ],
    seeds={"smoke": 2, "quick": 5, "paper": 10},
    cost={"smoke": 0.1, "quick": 0.3, "paper": 15},
)  # fmt: skip
