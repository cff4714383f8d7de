"""CIFAR-10, a VGG net.   Levi et al. 2022, Fig. 9, App. D

Three VGG blocks with batch norm, dropout .2, .3, .4 and L2 1e-4, then 500 dense ReLU; SGD, η =
0.05, |B| = 128, 500 epochs or 98 % training accuracy. Test accuracy against the corruption s of
eq. 8, with in-NINR (σ = 17.5 decay, 55.4 catapult), without, and trained on corrupted inputs.
"""

from dataclasses import dataclass, replace

from dither.lab import CNN, SGD, Accuracy, Claim, Data, Figure, NodeNorms, Run, Table, Verdict
from dither.lab.nets.specs import levi_vgg
from dither.lab.rule import above, decide, not_below
from dither.noise import Node
from dither.papers import style
from dither.papers.ends import POINT, end
from dither.papers.levi2022.looks import Corrupted
from dither.papers.levi2022.methods import BATCH, LR, RULED, SEEDS, STOP, large, lines, unlearnt

SIGMA = {"in decay": 17.5, "in catapult": 55.4}  # the caption
SHOWN = ("none", *SIGMA, "CDT .2", "CDT .4")
POINTS = 0.015  # as in Table 2's claim
PIXELS = 3 * 32 * 32 + 1  # and the node


@dataclass(frozen=True)
class Images:
    """The number of images, and the width of the net: `blocks` divides the filters."""

    train: int | None
    test: int | None
    epochs: int
    divide: int = 1
    precision: str = "float32"


def model(divide: int = 1) -> CNN:
    """The network of App. D, with filters and dense units divided."""
    net = levi_vgg()
    convs = tuple(replace(c, filters=c.filters // divide) for c in net.convs)
    return replace(net, convs=convs, dense=(500 // divide,))


def runs(images: Images, methods: tuple[str, ...] = SHOWN) -> dict[str, Run]:
    def run(method: str) -> Run:
        corrupt = float(method.split()[1]) if method.startswith("CDT") else 0.0
        node = Node(SIGMA[method], std=PIXELS**-0.5) if method in SIGMA else None
        return Run(
            data=Data(
                "cifar-10", train=images.train, test=images.test, flat=False, corrupt=corrupt
            ),
            model=model(images.divide),
            noise=node and {"conv0": node},
            optimiser=SGD(LR, weight_decay=1e-4),
            batch=BATCH,
            epochs=images.epochs,
            stop=STOP,
            precision=images.precision,
            watch=(Accuracy("train"), Accuracy("test"), NodeNorms(), Corrupted()),
        )

    return {f"VGG {method}": run(method) for method in methods}


OURS, NONE = "VGG in decay", "VGG none"


def robust(t: Table) -> Verdict:
    ours, none = (large(t, m) for m in (OURS, NONE))
    asked = above("decay − none", ours, none, by=POINT)
    return decide(asked, unless=unlearnt(t, (OURS, NONE)), numbers={OURS: ours, NONE: none})


def clean(t: Table) -> Verdict:
    ours, none = (end(t, m) for m in (OURS, NONE))
    asked = not_below("decay − none", ours, none, within=POINTS)
    return decide(asked, unless=unlearnt(t, (OURS, NONE)), numbers={OURS: ours, NONE: none})


def plot(t: Table):
    picture, axes = style.grid(1, 1, width=6, height=4)
    lines(axes[0, 0], t, {f"VGG {m}": m for m in SHOWN if f"VGG {m}" in t.labels})
    axes[0, 0].set(xlabel="corruption s", ylabel="test accuracy")
    style.legend(axes[0, 0], loc="upper right")
    return picture


figure = Figure(
    runs,
    plot,
    smoke={"images": Images(256, 64, 1, 16)},
    quick={"images": Images(1000, 500, 10, 8)},
    decisive={
        "images": Images(20_000, None, 80, 2, "bf16"),
        "methods": ("none", "in decay", "CDT .4"),
    },
    paper={"images": Images(None, None, 500)},
    claims=[
        Claim("L18", "decay: above none at large corruption, by more than 1 point", robust),
        Claim("L18 clean", "decay: clean accuracy is not 1.5 points below none's", clean),
    ],
    departures=[
        "L2 1e-4 on all parameters, not on the convolutions alone; Keras' l2(λ) would be a weight "
        "decay of 2λ",
        "training stops at 98 % training accuracy, measured with the noise off",
        RULED,
        "the node starts with variance 1/d, d = 3073, the pixels and itself",
        "decisive: half of the filters and dense units, 20 000 images, at most 80 epochs, in bf16; "
        "without the catapult phase and CDT .2",
        "quick: an eighth of the filters, 1 000 images, at most 10 epochs; 500 test images",
    ],
    seeds=SEEDS,
    needs=("cifar-10",),
    cost={"smoke": 0.3, "quick": 1.8, "decisive": 240, "paper": 20_000},
)
