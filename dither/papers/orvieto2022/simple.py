"""What the simple models of Orvieto et al. 2022, §2 and App. D.3, share: training and judging.

    GD            no noise, from the same point as
    GD + noise    weight noise of standard deviation σ on every tensor before each gradient
    minimised     L-BFGS on L + R, R by `dither.explicit`, from several points

each measured by how far L + R (eq. 6) is above the convex problem's minimum, relative to it: "gap".
"""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import dither
from dither import loss as losses
from dither.attach.inject import DrawMode
from dither.attach.reading import probing
from dither.lab import Array, Table, Verdict
from dither.lab.rule import above, decide, exact, few, not_above
from dither.lab.training.optimiser import SCHEDULES
from dither.papers import style

GD, NOISE, MINIMISED = "GD", "GD + noise", "minimised"
COLOURS = {GD: style.BLACK, NOISE: style.RED, MINIMISED: style.BLUE}
Row = tuple[float, str, float]
Build = Callable[[int], nn.Module]  # start → model, in float64
NEAR = 0.05  # as O1: what "reaches" means for GD with noise
FLOOR = 1e-5  # where the picture's logarithmic axis ends
EXACT = 1e-4  # what the convex solver and L + R's minimum must agree to


def descend(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    loss: str,
    *,
    sigma: float,
    steps: int,
    rate: float,
    seed: int,
    draw: DrawMode = "each",
    looks: int = 20,
) -> Iterator[int]:
    """Gradient descent with a cosine rate and weight noise. Yields the step at each look."""
    each, factor = losses.get(loss), SCHEDULES["cosine"]
    optimiser = torch.optim.SGD(model.train().parameters(), rate)
    what = dither.Weight(sigma * (2**0.5 if draw == "cycle" else 1))  # two tensors in turn
    with dither.inject(model, what, seed=seed, draw=draw):
        for step in range(steps):
            if step % max(1, steps // looks) == 0:
                yield step
            optimiser.param_groups[0]["lr"] = rate * factor(step, steps)
            optimiser.zero_grad()
            each.per_sample(model(x), y).mean().backward()
            optimiser.step()
    yield steps


def objective(model: nn.Module, x: Tensor, y: Tensor, loss: str, sigma: float) -> Tensor:
    """L + R of weight noise σ on every tensor, eq. 6; differentiable."""
    with probing(model, dither.Weight(sigma), seed=0) as noise:
        value, R, _ = dither.explicit(noise, x, y, loss)
    return value + R


def minimise(
    model: nn.Module, x: Tensor, y: Tensor, loss: str, *, sigma: float, steps: int
) -> nn.Module:
    """L-BFGS on L + R, restarted while it gains."""
    model.eval()
    optimiser = torch.optim.LBFGS(
        model.parameters(), max_iter=steps, tolerance_grad=1e-7, tolerance_change=1e-12,
        history_size=30, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = objective(model, x, y, loss, sigma)
        value.backward()
        return value

    optimiser.step(closure)  # pyright: ignore[reportArgumentType]
    return model


def compared(
    build: Build,
    x: Tensor,
    y: Tensor,
    best: float,
    *,
    sigma: float,
    steps: int,
    rate: float,
    seed: int,
    starts: int,
    iterations: int,
    draw: DrawMode = "each",
    loss: str = "half_square",
) -> Iterator[Row]:
    """Rows "gap METHOD" along each method's training, and "gap minimised" against the start's
    number; returns the trained models by method, minimised: the best.
    """

    def gap(model: nn.Module) -> float:
        with torch.no_grad():
            return objective(model, x, y, loss, sigma).item() / best - 1

    models: dict[str, nn.Module] = {}
    for method, s in ((GD, 0.0), (NOISE, sigma)):
        models[method] = model = build(0)
        how = {"sigma": s, "steps": steps, "rate": rate, "seed": seed, "draw": draw}
        for step in descend(model, x, y, loss, **how):
            yield step, f"gap {method}", gap(model)
    ends = []
    for start in range(starts):
        model = minimise(build(start), x, y, loss, sigma=sigma, steps=iterations)
        ends.append((gap(model), next(_ties), model))
        yield start, f"gap {MINIMISED}", ends[-1][0]
    models[MINIMISED] = min(ends)[2]
    return models


_ties = count()


# ------------------------------------------------------------------------------------- judging


def attained(t: Table, label: str) -> Verdict:
    """The least L + R over factorisations is the convex problem's minimum, to 1e-4, both ways."""
    gaps = t.series(label, f"gap {MINIMISED}")[1]  # [S, starts]
    asked = exact("best start, above the minimum", gaps.min(1), low=-EXACT, high=EXACT)
    return decide(asked, unless=few(len(gaps)), numbers={"worst start": gaps.max(1)})


def reaches(t: Table, label: str) -> Verdict:
    """GD with noise ends within 5 % of the minimum, GD from the same point does not."""
    noise, control = (t.last(label, f"gap {m}") for m in (NOISE, GD))
    return ends(noise, control)


def ends(noise: Array, control: Array) -> Verdict:
    """The value over a minimum, minus 1, for each seed."""
    return decide(
        not_above(NOISE, noise, within=NEAR), above(f"{GD}, same start", control, by=NEAR)
    )


def draw_gaps(ax: Any, t: Table, label: str) -> None:
    """The panel that all of these figures have: gaps along the training."""
    for method in (GD, NOISE):
        steps, values = t.series(label, f"gap {method}")
        values = np.maximum(values, FLOOR)
        style.band(ax, steps, values, COLOURS[method], log=True, label=method)
    least = t.series(label, f"gap {MINIMISED}")[1].min(1).max()
    said = f"L-BFGS on L + R{', < 1e-5' if least < FLOOR else ''}"
    ax.axhline(max(least, FLOOR), color=COLOURS[MINIMISED], ls="--", label=said)
    ax.axhline(NEAR, color=style.GREY, lw=1, ls=":")
    ax.set(xlabel="step", ylabel="L + R, above the minimum", yscale="log")
    style.legend(ax)
