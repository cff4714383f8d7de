"""Calibration on colour images: SVHN and CIFAR-10, where their files are on the machine.

The convolutional net of Fig. 3 at paper scale, an MLP below; none, noise and R from the same start.
"""

from dataclasses import replace

from dither.lab import MLP, Data, Figure, Run
from dither.lab.nets.specs import camuto_conv
from dither.papers.camuto2020 import calibration, nets
from dither.papers.camuto2020.epochs import RATE, steps

SIZES = {"smoke": (200, 100), "quick": (5_000, 5_000), "paper": (None, None)}


def runs(name: str, size: str) -> dict[str, Run]:
    """The runs: 250 epochs, or the number of steps with the same rate × steps."""
    if size == "decisive":
        return nets.nets(**nets.DECISIVE)
    train, test = SIZES[size]
    paper = size == "paper"
    scale = replace(
        nets.WHOLE if paper else nets.MEDIUM,
        data=Data(name, train=train, test=test, flat=not paper),
        model=camuto_conv(padding=1) if paper else replace(MLP_COLOUR, widths=WIDTHS[size]),
        steps=6 if size == "smoke" else steps(name, nets.MEDIUM.rate if size == "quick" else RATE),
    )
    return nets.nets(scale, settings=(nets.ALL,))


MLP_COLOUR = MLP((3072, 64, 64, 64, 10), activation="elu", bias=False, init="glorot")
WIDTHS = {"smoke": (3072, 16, 10), "quick": MLP_COLOUR.widths}


def figure_of(name: str) -> Figure:
    """The calibration figure on another data set. It is not run if the set is absent."""
    decided = name == nets.COLOUR.data.name
    more = nets.of_variances("C14", calibration.TEXT, calibration.lower)
    return Figure(
        runs,
        calibration.plot,
        smoke={"name": name, "size": "smoke"},
        quick={"name": name, "size": "quick"},
        decisive={"name": name, "size": "decisive"} if decided else None,
        paper={"name": name, "size": "paper"},
        claims=[*calibration.CLAIMS, *([*calibration.FITTED, *more] if decided else [])],
        departures=[
            "images standardised (the released code: in [0, 1]), so σ² = .1 is in units of their "
            "variance",
            "CONV without biases; 15 bins",
            *([nets.DECIDED] if decided else []),
            "quick: 5 000 images, a quarter of the images looked at, an MLP of three hidden layers "
            "of 64 instead of CONV, R by random signs; rate × steps as the paper's, at rate "
            ".05 instead of .001",
        ],
        seeds=nets.SEEDS,
        needs=(name,),
        cost={"smoke": 0.2, "quick": 2, "paper": 20_000} | ({"decisive": 90} if decided else {}),
    )
