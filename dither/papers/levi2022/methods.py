"""What Levi et al. compare, as runs: nothing, L2, dropout, training on corrupted inputs (CDT), and
noise nodes on the input ("in") or on every layer ("full") in the decay and the catapult phase.

The figures share them: a run is trained once, whichever figure asks first.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict

import numpy as np

from dither.lab import CNN, MLP, SGD, Accuracy, Array, Conv, Data, NodeNorms, Run, Table, rule
from dither.noise import Law, Multiplicative, Node, dropout, gaussian
from dither.papers import style
from dither.papers.ends import CHANCE, diverged, end
from dither.papers.levi2022.keras import ClippedSoftmax
from dither.papers.levi2022.looks import LEVELS, Attacks, Corrupted, LocalHessian, corrupted

Kind = Literal["FC", "CNN"]
NINR = ("in decay", "in catapult", "full decay", "full catapult")
CATAPULTS = ("in catapult", "full catapult")
BASELINES = ("none", "L2", "dropout")
METHODS = (*BASELINES, *NINR, "CDT .2", "CDT .4")
SIGMA: dict[Kind, dict[str, float]] = {  # Fig. 2's caption
    "FC": dict(zip(NINR, (51.8, 231.6, 16.4, 51.8), strict=True)),
    "CNN": dict(zip(NINR, (2.8, 87.5, 0.9, 62.0), strict=True)),
}
# Where the paper's σ leaves the catapult phase under cross-entropy on logits: the scan of Fig.
# "phases" (measures.phases.find) has one between growth at 70 and divergence at 155.
SCAN: dict[Kind, dict[str, float]] = {"FC": {"in catapult": 125.0}, "CNN": {}}
LR, BATCH, STOP = 0.05, 128, 0.98
DECAY = 5e-4  # the L2 coefficient, as weight decay
LARGE = (0.5, 0.6, 0.7, 0.8)  # "large corruption": the mean over these s
LEARNT = 0.7  # training accuracy below which a network is not compared
CLIPPED = ClippedSoftmax()
COLOURS = {
    "none": style.BLACK, "L2": style.GREY, "dropout": style.GREEN,
    "in decay": style.SKY, "in catapult": style.BLUE,
    "full decay": style.ORANGE, "full catapult": style.RED,
    "CDT .2": style.PURPLE, "CDT .4": style.PURPLE,
}  # fmt: skip
DASHED = ("L2", "CDT .2", "in catapult", "full catapult")


@dataclass(frozen=True)
class Setting:
    """A net and the length of its training. None: all images. width: that of FC's three hidden
    layers, or of CNN's dense layer. filters: those of CNN's two blocks (the paper gives no number).
    local: the images and the rhythm (a watch's `every`) of the local Hessian; None: it is not seen.
    tested: a watch's `every` of the test accuracy.
    """

    net: Kind
    width: int
    train: int | None
    test: int | None
    epochs: int
    attacked: int
    filters: tuple[int, int] = (32, 64)
    data: str = "fashion-mnist"
    precision: str = "float32"
    local: tuple[int, int | None] | None = None
    tested: int | None = 0

    @property
    def images(self) -> Data:
        flat = self.net == "FC"
        if self.data == "mnist-5000":
            return Data(self.data, train=self.train, flat=flat)
        return Data(self.data, train=self.train, test=self.test, flat=flat)

    def model(self, node: str) -> MLP | CNN:
        """The network. node: "none", "in" or "full", which the fan-in of dense layers counts."""
        if self.net == "CNN":
            blocks = tuple(Conv(n, kernel=2, norm=True, pool=2) for n in self.filters)
            return CNN(blocks, dense=(self.width,), activation="elu")
        extra = {"none": 0, "in": 1, "full": (1, 1, 1, 1)}[node]
        return MLP((784, self.width, self.width, self.width, 10), fan_extra=extra)

    def nodes(self, where: str, sigma: float, law: Law = gaussian) -> dict[str, Node]:
        """One node per layer, W_NI ~ N(0, 1/d); on an image d counts its pixels and the node."""
        if self.net == "FC":
            return {"fc0" if where == "in" else "fc*": Node(sigma, law)}
        model = self.model("none")
        assert isinstance(model, CNN)
        image, inner = (math.prod(shape) + 1 for shape in model.shapes[:2])
        nodes = {"conv0": Node(sigma, law, std=image**-0.5)}
        if where == "full":
            nodes |= {"conv1": Node(sigma, law, std=inner**-0.5), "fc*": Node(sigma, law)}
        return nodes

    def dropout(self) -> dict[str, Multiplicative]:
        """Dropout .5 after each hidden layer."""
        after = ["act*:out"] if self.net == "FC" else ["pool*:out", "act2:out"]
        return dict.fromkeys(after, Multiplicative(1.0, dropout(0.5)))


class Scales(TypedDict):
    """The arguments of `runs(fc, cnn)` at each scale: Figure(…, **AT_SCALE)."""

    smoke: dict[str, Setting]
    quick: dict[str, Setting]
    decisive: dict[str, Setting]
    paper: dict[str, Setting]


AT_SCALE: Scales = {
    "smoke": {
        "fc": Setting("FC", 16, 256, 64, 1, 8, local=(16, None)),
        "cnn": Setting("CNN", 16, 256, 64, 1, 8, (2, 4)),
    },
    "quick": {
        "fc": Setting("FC", 128, 2000, 1000, 60, 50, local=(128, 160), tested=None),  # of 10 epochs
        "cnn": Setting("CNN", 128, 1000, 500, 20, 20, (4, 8), tested=None),
    },
    "decisive": {
        "fc": Setting("FC", 512, 20_000, None, 500, 1000, local=(512, 785)),  # of 5 epochs
        "cnn": Setting(
            "CNN", 512, 20_000, None, 100, 1000, precision="bf16", local=(64, None), tested=None
        ),
    },
    "paper": {
        "fc": Setting("FC", 1024, None, None, 500, 1000),
        "cnn": Setting("CNN", 2048, None, None, 500, 1000),
    },
}
SEEN: Scales = {  # the local Hessian is seen at each scale
    **AT_SCALE,
    "paper": {
        "fc": replace(AT_SCALE["paper"]["fc"], local=(512, 2345)),  # of 5 epochs
        "cnn": replace(AT_SCALE["paper"]["cnn"], local=(64, None)),
    },
}
SEEDS = {"smoke": 2, "quick": 5, "decisive": 5, "paper": 10}
DEPARTURES = [
    "the L2 coefficient 5e-4 is taken as weight decay on all parameters of the net, none on W_NI; "
    "Keras' l2(λ) adds λ‖w‖² to the loss, which is a weight decay of 2λ",
    "training stops at 98 % training accuracy, measured with the noise off; the paper does not say",
    "a node on an image starts with variance 1/d, d its pixels and the node; the filters are not "
    "given: 32 and 64",
    "decisive: FC of 512³, at most 500 epochs; CNN with 32 and 64 filters and 512 dense units, at "
    "most 100 epochs, in bf16; both on 20 000 images; 5 seeds",
    "quick: FC of 128³ on 2 000 images, at most 60 epochs, 1 000 test images; CNN with 4 and 8 "
    "filters and 128 dense units on 1 000 images, at most 20 epochs, 500 test images",
    "smoke: nets of 16 units, 256 images, one epoch",
]
RULED = (
    "changed after first results: differences are paired by seed and need more than 1 point, "
    "outside a 95 % interval (had been bare means); every net compared must have learnt"
)


def run(
    setting: Setting,
    method: str,
    *,
    loss: Any = "cross_entropy",
    sigma: float | None = None,
    law: Law = gaussian,
    optimiser: Any = None,
    stop: float = STOP,
    watch: tuple[Any, ...] | None = None,
) -> Run:
    """The run of one of METHODS. sigma replaces the paper's."""
    where, _, phase = method.partition(" ")
    node = where if phase in ("decay", "catapult") else "none"
    noise: Any = None
    if node != "none":
        noise = setting.nodes(node, SIGMA[setting.net][method] if sigma is None else sigma, law)
    elif method == "dropout":
        noise = setting.dropout()
    data = replace(setting.images, corrupt=float(phase)) if where == "CDT" else setting.images
    optimiser = optimiser or SGD(LR)
    if method == "L2":
        optimiser = replace(optimiser, weight_decay=DECAY)
    looks = (Corrupted(),) if where == "CDT" else (Corrupted(), Attacks(limit=setting.attacked))
    if setting.local is not None:
        looks += (LocalHessian(*setting.local),)
    return Run(
        data=data,
        model=setting.model(node),
        noise=noise,
        optimiser=optimiser,
        loss=loss,
        batch=BATCH,
        epochs=setting.epochs,
        stop=stop,
        precision=setting.precision,
        watch=(
            Accuracy("train"), Accuracy("test", setting.tested), NodeNorms(),
            *(looks if watch is None else watch),
        ),
    )  # fmt: skip


def compared(setting: Setting, methods: Iterable[str] = METHODS) -> dict[str, Run]:
    """{"FC none": …}: the methods as the paper has them, cross-entropy on logits; then what a
    reading of the text leaves open: the clipped loss, and the σ of the scan.
    """
    net, methods = setting.net, tuple(methods)
    by_label = {f"{net} {m}": run(setting, m) for m in methods}
    by_label |= {
        f"{net} {m}, clipped": run(setting, m, loss=CLIPPED) for m in methods if m in CATAPULTS
    }
    scan = {m: s for m, s in SCAN[net].items() if m in methods}
    return by_label | {f"{net} {m}, scan": run(setting, m, sigma=s) for m, s in scan.items()}


def in_phase(net: Kind, method: str) -> str:
    """The label of a method's run at the σ that lies in its phase: the paper's, or the scan's."""
    return f"{net} {method}{', scan' if method in SCAN[net] else ''}"


# ------------------------------------------------------------------------------- reading a table


def curve(t: Table, label: str) -> Array:
    """Accuracy against `LEVELS`, [S, T]."""
    return np.stack([end(t, label, corrupted(s), CHANCE) for s in LEVELS], 1)


def large(t: Table, label: str) -> Array:
    """Accuracy at large corruption, [S]: the mean over `LARGE`."""
    return np.stack([end(t, label, corrupted(s), CHANCE) for s in LARGE], 1).mean(1)


def unlearnt(t: Table, labels: Iterable[str], at_least: float = LEARNT) -> str:
    """A sentence that names the runs that have not learnt their images; "" if all have."""
    return rule.unlearnt({m: end(t, m, "accuracy/train") for m in labels}, at_least=at_least)


def share_diverged(t: Table, label: str) -> float:
    return float(diverged(t, label).mean())


def shown(t: Table, labels: Iterable[str], value: Callable[[Table, str], Array]) -> dict[str, Any]:
    """The values of each run, and the share of its seeds that diverged."""
    labels = list(labels)
    lost = {f"{m}: share diverged": share_diverged(t, m) for m in labels if diverged(t, m).any()}
    return {**{m: value(t, m) for m in labels}, **lost}


def lines(
    ax: Any, t: Table, labels: Mapping[str, str], levels: Any = LEVELS, read: Any = curve
) -> None:
    """A line for each run; labels {run: method}."""
    for label, method in labels.items():
        how = "--" if method in DASHED else "-"
        style.band(ax, levels, read(t, label), COLOURS[method], ls=how, label=method)
    ax.set(ylim=(0, 1))
