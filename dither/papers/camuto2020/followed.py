"""The networks of Fig. 3: without noise, with it, and on R, from the same weights and in the same
order of the data, on images in [0, 1] and standardised.
"""

import math
from dataclasses import replace
from typing import Any

import dither
from dither.lab import CNN, MLP, SGD, Accuracy, Conv, Data, Loss, Run
from dither.lab.data import needs
from dither.papers import style
from dither.papers.camuto2020 import epochs
from dither.papers.camuto2020.paths import Sketch, Traces

SIGMA = math.sqrt(0.1)
FEW, LONGER = 1000, 72  # images, where few are to be fitted, and rate × steps that it takes
LOOKS = 12
METHODS = {"baseline": style.BLACK, "GNI": style.BLUE, "R": style.ORANGE}
AGAIN = "GNI, other draws"  # from the same weights, in the same order of the data
NETS = ("CONV", "MLP", "2 × 32")
SCARCE = {"MLP, few images": "MLP", "2 × 32, few images": "2 × 32"}
SETS = {"Fashion-MNIST": "fashion-mnist", "SVHN": "svhn", "CIFAR-10": "cifar-10"}
ALWAYS, STANDARDISED = "Fashion-MNIST", ", standardised"
SLOW = 0.01  # the rate at which the MLP is trained once more, as far in rate × steps
SLOWER = f"MLP, rate {SLOW:g}"
HOUSES, HOUSES_RATE = "Boston", 0.01  # rate × steps as for the images of ALWAYS
AT_SCALE: dict[str, dict[str, Any]] = {
    "smoke": {"rate": 0.1, "steps": 4, "batch": 16, "scarce": (0.1, 16), "train": 64, "test": 64,
              "width": 16, "filters": (2, 4)},
    "quick": {"rate": 0.1, "batch": 256, "scarce": (0.1, 64), "train": None, "test": 2000,
              "twice": ("2 × 32",), "beside": ("2 × 32",), "width": 64, "filters": (4, 8)},
    "decisive": {"rate": 0.05, "batch": 512, "scarce": (0.1, 64), "train": None, "test": None,
                 "twice": (), "width": 512, "filters": (32, 128), "houses": True, "slow": True},
    "paper": {"rate": 1e-3, "batch": 512, "scarce": (1e-3, 512), "train": None, "test": None,
              "width": 512, "filters": (32, 128)},
}  # fmt: skip


def model(net: str, data: str, width: int, filters: tuple[int, int]) -> MLP | CNN:
    image = (1, 28, 28) if data == "fashion-mnist" else (3, 32, 32)
    if net == "CONV":
        blocks = tuple(Conv(n, kernel=4, stride=2, padding=1) for n in filters)  # SAME
        return CNN(blocks, image=image, activation="elu", bias=False, init="glorot")
    hidden = [32] * 2 if net == "2 × 32" else [width] * 4
    return MLP((math.prod(image), *hidden, 10), activation="elu", bias=False, init="glorot")


def methods(base: Run, net: str) -> dict[str, Run]:
    """{"baseline", "GNI", "R", "GNI, other draws"}; R of the 2 × 32 exact, of the others from one
    random column. By default noise is on the input of every layer: h₀ … h_{L−1}.
    """
    plain = tuple(watch for watch in base.watch if not isinstance(watch, Traces))
    noise, penalty = dither.Additive(SIGMA), "explicit" if net == "2 × 32" else "sampled"
    return {
        "baseline": base,
        "GNI": replace(base, noise=noise),
        "R": replace(base, noise=noise, objective=penalty),
        # the same places by other names, which are part of the draws' key
        AGAIN: replace(base, noise={"input": noise, "act*:out": noise}, watch=plain),
    }


def trained(
    net: str, data: str, *, rate: float, batch: int, scarce: tuple[float, int], train: int | None,
    test: int | None, width: int, filters: tuple[int, int], standardise: bool = False,
    few: bool = False, steps: int | None = None,
) -> dict[str, Run]:  # fmt: skip
    """The methods on images. scarce: rate and batch where images are few; steps: None for as long
    as the paper trains.
    """
    if few:
        (rate, batch), train = scarce, min(FEW, train or FEW)
    steps = steps or (round(LONGER / rate) if few else epochs.steps(data, rate))
    every = max(1, steps // LOOKS)
    small = net == "2 × 32" and not few
    paths = (Traces(SIGMA, 2 * every), Sketch(2 * every)) if small else ()
    base = Run(
        data=Data(data, train=train, test=test, flat=net != "CONV",
                  standardise=None if standardise else False),
        model=model(net, data, width, filters),
        optimiser=SGD(rate),
        batch=batch,
        steps=steps,
        watch=(
            Loss("test", every), Loss("train", every, limit=2000), Accuracy("test", every),
            Accuracy("train", every, limit=2000), *paths,
        ),
    )  # fmt: skip
    return methods(base, net)


def with_houses(net: str, width: int) -> dict[str, Run]:
    """The methods on Boston's 405 houses: full batch, ½(f − y)², inputs and prices standardised."""
    hidden = [32] * 2 if net == "2 × 32" else [width] * 4
    steps = epochs.steps("fashion-mnist", HOUSES_RATE)
    every = max(1, steps // LOOKS)
    paths = (Traces(SIGMA, 2 * every), Sketch(2 * every)) if net == "2 × 32" else ()
    base = Run(
        data=Data("boston"),
        model=MLP((13, *hidden, 1), activation="elu", bias=False, init="glorot"),
        optimiser=SGD(HOUSES_RATE),
        loss="half_square",
        steps=steps,
        watch=(Loss("test", every), Loss("train", every), *paths),
    )
    return methods(base, net)


def runs(
    *, twice: tuple[str, ...] = NETS, beside: tuple[str, ...] = NETS, houses: bool = False,
    slow: bool = False, **setting: Any,
) -> dict[str, Run]:  # fmt: skip
    """The runs. twice: the nets that are also trained on standardised images; without any of them
    there are no few images either. beside: those that are also trained on sets other than
    Fashion-MNIST. houses: train on Boston's too. slow: train the MLP once more, at the rate
    `SLOW`.
    """
    by_label = {}
    for name, data in SETS.items():
        if name != ALWAYS and not needs.found(data):
            continue
        scarce = SCARCE if name == ALWAYS else {}
        for tail in ("", STANDARDISED) if twice else ("",):
            nets = [net for net in NETS if name == ALWAYS or net in beside]
            cases = [(net, net, False) for net in nets if not tail or net in twice]
            cases += [(c, net, True) for c, net in scarce.items() if tail]
            for case, net, few in cases:
                each = trained(net, data, few=few, standardise=bool(tail), **setting)
                by_label |= {f"{name}{tail} {case} {method}": run for method, run in each.items()}
    if slow:
        each = trained("MLP", SETS[ALWAYS], **{**setting, "rate": SLOW})
        by_label |= {f"{ALWAYS} {SLOWER} {method}": run for method, run in each.items()}
    for net in NETS[1:] if houses else ():
        each = with_houses(net, setting["width"])
        by_label |= {f"{HOUSES} {net} {method}": run for method, run in each.items()}
    return by_label
