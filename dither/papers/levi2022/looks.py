"""What Levi et al. look at: accuracy on spoilt images, and the local Hessian that explains it.

Their strengths are in pixels, which lie in [0, 1] before they are standardised: an attack gets
those bounds and strengths in the units the net sees. Of a net whose outputs are not finite nothing
is noted: it has the accuracy of chance, like one that diverged (`ends.end`).
"""

import math
from dataclasses import dataclass

from dither.attach.reading import probing
from dither.errors import NotFinite
from dither.lab import State
from dither.measures import robustness
from dither.measures.local import local, terms
from dither.noise import Additive

LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
STRENGTHS = (0.0, 0.02, 0.05, 0.1)  # in pixels; the paper names none


def corrupted(level: float) -> str:
    """The name of the accuracy under eq. 8 at s = level."""
    return f"corrupted/{level:g}"


def attacked(method: str, target: str, strength: float) -> str:
    """The name of the accuracy under an attack."""
    return f"{method} on the {target}/{strength:g}"


@dataclass(frozen=True)
class Corrupted:
    """Accuracy on test images under eq. 8 at each level: "corrupted/0.4"."""

    levels: tuple[float, ...] = LEVELS
    limit: int | None = None
    every: int | None = None

    def __call__(self, state: State) -> dict[str, float]:
        x, y = state.examples("test", self.limit)
        try:
            accuracy = robustness.corruption(state.model, x, y, self.levels, seed=state.seed)
        except NotFinite:
            return {}
        return {corrupted(level): estimate.value for level, estimate in accuracy.items()}


@dataclass(frozen=True)
class Attacks:
    """Accuracy on the first `limit` test images under FGSM and PGD, on the loss and on the margin,
    and the share of images without a gradient ("vanishing").

    PGD is `steps` steps of ε/4 from the image itself. bounds: what pixels 0 and 1 have become, read
    off the test images, which hold both.
    """

    strengths: tuple[float, ...] = STRENGTHS
    limit: int | None = None
    steps: int = 10
    every: int | None = None

    def __call__(self, state: State) -> dict[str, float]:
        low, high = float(state.data.x_test.min()), float(state.data.x_test.max())
        x, y = state.examples("test", self.limit)
        seen: dict[str, float] = {}
        for method in ("fgsm", "pgd"):
            for target in ("loss", "margin"):
                try:
                    attack = robustness.attack(
                        state.model, x, y,
                        strengths=[e * (high - low) for e in self.strengths], bounds=(low, high),
                        method=method, target=target, loss=state.run.loss, steps=self.steps,
                    )  # fmt: skip
                except NotFinite:
                    return {}
                values = [e.value for e in attack.accuracy.values()]
                for strength, value in zip(self.strengths, values, strict=True):
                    seen[attacked(method, target, strength)] = value
                if (method, target) == ("fgsm", "loss"):
                    seen["vanishing"] = attack.vanishing
        return seen


@dataclass(frozen=True)
class LocalHessian:
    """λ_max and the trace of the local Hessian on the first `limit` training images, the noise off.

    "top at node" and "trace at node" are of the first layer's pre-activation, where the node is and
    its Hessian is H₀ of eq. 7; "top at input" and "trace at input" are of the image. A run whose
    noise is one node has "R1" and "R2" too: the standard deviation of R₁ on a batch of the run, and
    the mean of R₂ (eq. 4).
    """

    limit: int
    every: int | None = None

    def __call__(self, state: State) -> dict[str, float]:
        x, y = state.examples("train", self.limit)
        first = next(name for name, _ in state.model.named_modules() if name in ("fc0", "conv0"))
        seen = {}
        for place, site in {"node": f"{first}:out", "input": f"{first}:in"}.items():
            probe = {site: Additive(1.0)}
            with probing(state.model, probe, example=x) as noise:
                (here,) = local(noise, x, y, state.run.loss).values()
            seen |= {f"top at {place}": here.top, f"trace at {place}": here.trace}
        if state.noise is not None and len(state.noise.sites) == len(state.noise.nodes) == 1:
            one, two = terms(state.noise, x, y, state.run.loss, order=2)
            seen |= {"R1": one.sd * math.sqrt(len(y) / (state.run.batch or len(y))), "R2": two.mean}
        return seen
