"""Ways of drawing weight noise: one R, and what else they do.

Orvieto et al. 2022, §3.2, §4, App. F (footnote 7).

A ReLU network with BatchNorm on Fashion-MNIST, trained with noise of one σ on all weights (σ/√M
each), on one tensor per step (cyclic or at random), on one layer per step, on weights without
biases, with the noise stopped before the end, in antithetic pairs, with BatchNorm's running
statistics kept from the noisy forwards (and set by clean ones), and the relatives of weight noise:
Anti-PGD, whose weights carry the noise, and Langevin-like noise after the step. One R holds for all
that have one M; the first panel is what of E[Δℓ] it leaves, by Monte Carlo.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import dither
from dither.lab import MLP, Claim, Data, Figure, Progress, Table, Task, Verdict, generator
from dither.lab.rule import Comparison, below, decide, exact, near, unlearnt
from dither.measures.curvature import trace
from dither.papers import style
from dither.schedule import Until

SIGMA, WIDTHS = 0.1, (784, 100, 100, 10)
FLOOR = 0.05  # of a trace, of a test loss
LEARNT = 1.0  # a training loss above which a network is not compared
LEVEL = 0.1  # of the training loss on 256 images, looked at every 10 steps
Row = tuple[float, str, float]

# how inject is called; M is counted over what the pattern names
WAYS: dict[str, dict[str, Any]] = {
    "no noise": {},
    "all": {"draw": "all"},
    "cyclic": {"draw": "cycle"},
    "random": {"draw": "random"},
    "by layer": {"draw": "cycle", "by": "layer"},
    "weights only": {"draw": "cycle", "what": "*.weight"},
    "stopped": {"draw": "cycle", "until": 0.8},
    "antithetic": {"draw": "cycle", "pairs": True},
    "statistics kept": {"draw": "cycle", "statistics": "keep"},
    "Anti-PGD": {"after": dither.anti_pgd},
    "Langevin": {"after": dither.langevin},
}
SAME_R = ("all", "cyclic", "random")  # one M: every tensor


def network(seed: int) -> nn.Sequential:
    """784-100-100-10 ReLU with a BatchNorm before each ReLU."""
    layers: list[nn.Module] = []
    for layer in MLP(WIDTHS).build(seed):
        if isinstance(layer, nn.ReLU):
            layers.append(nn.BatchNorm1d(WIDTHS[1]))
        layers.append(layer)
    return nn.Sequential(*layers)


def injected(net: nn.Module, way: dict[str, Any], sigma: Any, seed: int) -> dither.Injection:
    keep = {k: way[k] for k in ("draw", "by", "statistics") if k in way}
    return dither.inject(net, {way.get("what", "*"): dither.Weight(sigma)}, seed=seed, **keep)


def task(
    seed: int, progress: Progress, *, way: str, train: int, steps: int, batch: int
) -> Iterator[Row]:
    """Loss, test loss, accuracy, trace of the Hessian at the end, in eval mode and without noise;
    R and E[Δℓ] at the start.
    """
    how = WAYS[way]
    data = Data("fashion-mnist", train=train, test=2000, subset_seed=None).load(seed)
    x, y, net = data.x_train, data.y_train, network(seed)
    if "draw" in how:
        yield from first_look(net, how, x, y, seed)
    optimiser = torch.optim.SGD(net.train().parameters(), 0.05, momentum=0.9)
    sigma = Until(SIGMA, round(how["until"] * steps)) if "until" in how else SIGMA
    noise = injected(net, how, sigma, seed) if "draw" in how else None
    if "after" in how:
        m = len(list(net.parameters()))
        how["after"](optimiser, Until(SIGMA / m**0.5, steps - 1), seed=seed)
    order, passed = generator(seed, "order"), []
    for step in range(steps):
        chosen = torch.randint(train, (batch,), generator=order)
        optimiser.zero_grad()
        descend(net, noise, x[chosen], y[chosen], pairs="pairs" in how)
        optimiser.step()
        if noise is not None and how.get("statistics") == "keep":
            clean(net, noise, x[chosen])
        if not passed and step % 10 == 9:
            passed = list(at_level(net, x[:256], y[:256]))
            yield from passed
        progress.update(step + 1, steps)
    net.eval()
    yield from last_look(net, data)


def at_level(net: nn.Module, x: Tensor, y: Tensor) -> Iterator[Row]:
    """The trace when the training loss first is below a level that all ways reach."""
    net.eval()
    with torch.no_grad():
        low = nn.functional.cross_entropy(net(x), y).item() <= LEVEL
    if low:
        value = trace(net, "cross_entropy", (x, y), of="gauss_newton").value
        yield 0, f"trace at loss {LEVEL:g}", value
    net.train()


def descend(net: nn.Module, noise: Any, x: Tensor, y: Tensor, *, pairs: bool) -> None:
    """The gradient at w + δ. For a pair: half of it, and half of that at w − δ."""
    loss = nn.functional.cross_entropy
    if not pairs:
        loss(net(x), y).backward()
        return
    (loss(net(x), y) / 2).backward()
    with noise.mirrored():
        (loss(net(x), y) / 2).backward()


@torch.no_grad()
def clean(net: nn.Module, noise: dither.Injection, x: Tensor) -> None:
    """A forward without noise, which sets BatchNorm's running statistics."""
    noise.pause()
    net(x)
    noise.resume()


def first_look(net: nn.Module, how: dict, x: Tensor, y: Tensor, seed: int) -> Iterator[Row]:
    """R, and E[Δℓ] − R, with BatchNorm's running statistics."""
    net.eval()
    with injected(net, how, SIGMA, seed) as noise, torch.no_grad():
        _, total, by_site = dither.explicit(noise, x[:256], y[:256])
        R, among = total.item(), len(noise.groups)
        weights = sum(r.item() for name, r in by_site.items() if name.endswith(".weight"))
        rest = dither.remainder(noise, x[:256], y[:256], draws=240, antithetic=True, seed=seed)
    yield 0, "R", R
    yield 0, "R of weights", weights
    yield 0, "M", among
    yield 0, "rest", rest.value / R
    yield 0, "sem", rest.sem / R


def last_look(net: nn.Module, data: Any) -> Iterator[Row]:
    with torch.no_grad():
        for split in ("train", "test"):
            x, y = getattr(data, f"x_{split}"), getattr(data, f"y_{split}")
            z = net(x)
            yield 1, f"loss/{split}", nn.functional.cross_entropy(z, y).item()
            yield 1, f"accuracy/{split}", (z.argmax(1) == y).float().mean().item()
    some = data.x_train[:256], data.y_train[:256]
    yield 1, "trace", trace(net, "cross_entropy", some, of="gauss_newton").value


def runs(train: int, steps: int, batch: int) -> dict[str, Task]:
    how = {"train": train, "steps": steps, "batch": batch}
    return {way: Task.of(task, way=way, **how) for way in WAYS}


def one_R(t: Table) -> Verdict:
    """R of the ways with one M, to 1e-5; M R of the others is the same sum: over all tensors by
    layer, over the weights alone. Stopping, pairs and statistics are no part of R.
    """
    R, M, of_weights = (
        {way: t.last(way, q) for way in (*SAME_R, "by layer", "weights only")}
        for q in ("R", "M", "R of weights")
    )
    whole, part = M["all"] * R["all"], M["all"] * of_weights["all"]
    apart = {way: R[way] / R["all"] - 1 for way in SAME_R}
    apart["by layer"] = M["by layer"] * R["by layer"] / whole - 1
    apart["weights only"] = M["weights only"] * R["weights only"] / part - 1
    asked = [
        exact(f"relative difference, {way}", d, low=-1e-5, high=1e-5) for way, d in apart.items()
    ]
    return decide(*asked, numbers={f"R, {w}": v for w, v in R.items()})


LAYERWISE = ("cyclic", "random", "by layer")


def short(t: Table, *ways: str) -> str:
    """A sentence that names the nets whose training loss is not below `LEARNT`; "" if there are
    none.
    """
    loss = {way: t.last(way, "loss/train") for way in ways}
    return unlearnt(loss, at_most=LEARNT, what="training loss")


def lower(t: Table, quantity: str) -> list[Comparison]:
    """Layer-wise noise is below no noise by 5 %, seed by seed."""
    none = t.last("no noise", quantity)
    return [
        below(f"{quantity}, {w} / no noise, − 1", t.last(w, quantity) / none, 1, by=FLOOR)
        for w in LAYERWISE
    ]


def flatter(t: Table) -> Verdict:
    """The trace at the end: layer-wise noise against no noise."""
    return decide(*lower(t, "trace"), unless=short(t, "no noise", *LAYERWISE))


def flatter_at_level(t: Table) -> Verdict:
    """The same at equal training loss: the trace of cross-entropy goes to 0 with the loss."""
    name = f"trace at loss {LEVEL:g}"
    reached = [w for w in WAYS if name in t.quantities(w)]
    if "no noise" not in reached or not set(LAYERWISE) <= set(reached):
        return None, {"why": f"not all come to a training loss of {LEVEL:g} at this scale"}
    none = t.last("no noise", name)
    rest = [w for w in reached if w not in (*LAYERWISE, "no noise")]
    numbers = {f"{name}, {w} / no noise": t.last(w, name) / none for w in rest}
    return decide(*lower(t, name), numbers=numbers)


def order(t: Table) -> Verdict:
    """Cyclic or random order, as in the paper's text and its code: test losses within 5 %."""
    ratio = t.last("random", "loss/test") / t.last("cyclic", "loss/test")
    asked = near("test loss, random / cyclic, − 1", ratio, 1, within=FLOOR)
    return decide(asked, unless=short(t, "random", "cyclic"))


def statistics(t: Table) -> Verdict:
    ratio = t.last("statistics kept", "loss/test") / t.last("cyclic", "loss/test")
    right = t.last("statistics kept", "accuracy/test") - t.last("cyclic", "accuracy/test")
    return decide(
        below("test loss, kept / updated, − 1", ratio, 1, by=FLOOR),
        unless=short(t, "statistics kept", "cyclic"),
        numbers={"kept − updated, test accuracy": right},
    )


def plot(t: Table):
    picture, axes = style.grid(2, 2, height=4.0)
    names = list(WAYS)
    panels = {
        "rest": "(E[Δℓ] − R) / R before training",
        "loss/train": "training loss",
        "loss/test": "test loss",
        f"trace at loss {LEVEL:g}": f"trace when the training loss is {LEVEL:g}",
    }
    for ax, (quantity, said) in zip(axes.flat, panels.items(), strict=True):
        for place, way in enumerate(names):
            if quantity not in t.quantities(way):
                continue
            values, colour = t.last(way, quantity), _colour(way)
            ax.plot(values, np.full(len(values), place), "o", ms=4, color=colour, alpha=0.6)
            ax.plot(values.mean(), place, "|", ms=16, mew=2, color=colour)
        ax.set(xlabel=said, yticks=range(len(names)), yticklabels=names)
        ax.set_ylim(len(names) - 0.5, -0.5)
        if quantity == "rest":
            ax.axvline(0, color=style.BLACK, lw=1, ls=":")
        elif quantity in t.quantities("no noise"):
            ax.axvline(t.last("no noise", quantity).mean(), color=style.BLACK, lw=1, ls=":")
        ax.set_xscale("log" if quantity == "loss/train" else "linear")
    for ax in axes[:, 1]:
        ax.set_yticklabels([])
    return picture


def _colour(way: str) -> str:
    if "after" in WAYS[way]:
        return style.ORANGE
    return {"no noise": style.BLACK, "all": style.RED}.get(way, style.BLUE)


figure = Figure(
    runs,
    plot,
    smoke={"train": 256, "steps": 5, "batch": 64},
    quick={"train": 1024, "steps": 200, "batch": 128},
    paper={"train": 60_000, "steps": 20_000, "batch": 128},
    claims=[
        Claim("one R", "all, cyclic and random have one R; by layer and of weights only M R is the "
              "same sum, over M layers or weights", one_R),
        Claim("flatter", "layer-wise noise, cyclic, at random or by layer, ends with a trace 5 % "
              "lower than none's", flatter),
        Claim("flatter at one loss", "the same when the training loss first is below 0.1",
              flatter_at_level),
        Claim("order", "cyclic and random order end with one test loss, to 5 %", order),
        Claim("statistics", "running statistics kept from noisy forwards give a test loss 5 % "
              "lower", statistics),
    ],
    departures=[
        "no figure of the paper: it draws in one way (cyclic, every tensor) and says another",
        "784-100-100-10 with BatchNorm, rate 0.05, momentum 0.9, σ = 0.1; the trace is of the "
        "Gauss–Newton part, on 256 images, in eval mode",
        "the trace at equal training loss was added when the end was seen to compare training "
        "losses: noise keeps them up, and cross-entropy's curvature with them",
        "Anti-PGD and Langevin have σ/√M on every tensor and end one step before the last; with "
        "their noise on the weights they need not come to a training loss of 0.1",
        "changed after first results: 95 % intervals of paired differences against 5 % (had been "
        "every seed, and two standard errors); all must have learnt",
        "quick: 1024 images, 200 steps",
    ],
    needs=("fashion-mnist",),
    seeds={"smoke": 2, "quick": 5, "paper": 5},
    cost={"smoke": 0.3, "quick": 0.5, "paper": 150},
)  # fmt: skip
