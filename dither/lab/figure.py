"""Experiments as data: Run and Task (the computation), Claim (what it should show), and Figure,
which has both.

A figure's module has a docstring (title, setting, source), `runs`, `plot`, and

    figure = Figure(runs, plot, smoke=…, quick=…, paper=…, claims=[Claim("L5", "…", check)])

Nothing here imports torch. A figure's module may import it.
"""

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from dither.errors import DitherError
from dither.lab import identity
from dither.lab.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

    from dither.attach.inject import DrawMode, Group, Keep

__all__ = [
    "SCALES", "Claim", "Figure", "Progress", "Run", "Silent", "Table", "Task", "Verdict"
]  # fmt: skip

SCALES = ("smoke", "quick", "decisive", "paper")  # seconds; minutes; hours; what the paper did
SEEDS = 5  # the default number; a claim is not judged on fewer
OBJECTIVES = ("noise", "explicit", "sampled")
PRECISIONS = ("float32", "bf16", "double")
NARROW = 64  # units; up to this width many seeds run faster as one program than as processes
BUGS = (Exception, SystemExit)  # what the code of one figure may raise without ending the others
Rows = list[tuple[float, str, float]]  # (step, quantity, value)
Verdict = tuple[bool | None, Mapping[str, Any]]


class Progress(Protocol):
    """A run reports its progress: `done` of `total` steps (or epochs, or draws) are complete."""

    def update(self, done: float, total: float) -> None: ...


class Silent:
    """A progress that ignores all reports."""

    def update(self, done: float, total: float) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run: all that it depends on, except the seed.

    objective    "noise": train with the noise on; "explicit": on loss + exact R, with the noise
                 off; "sampled": on loss + R from one sample
    batch        None: the full batch
    epochs, steps  exactly one of them
    stop         a training accuracy at which the run stops (noise off, checked once per epoch)
    watch        what is measured on the way; their order is part of the identity
    statistics   what noisy forwards do to BatchNorm's: "update" or "keep" (`inject`)
    precision    "float32"; "bf16": forward and loss of a training step run under autocast, weights
                 and watches stay in float32; "double": all is float64, and the draws are others.
                 "bf16" is faster on processors with bf16 arithmetic (AMX, AVX512-BF16) and much
                 slower on others
    """

    data: Any
    model: Any
    optimiser: Any
    noise: Any = None
    draw: "DrawMode" = "each"
    by: "Group" = "tensor"
    objective: str = "noise"
    loss: Any = "cross_entropy"
    batch: int | None = None
    epochs: int | None = None
    steps: int | None = None
    stop: float | None = None
    schedule: str = "constant"
    watch: tuple[Any, ...] = ()
    statistics: "Keep" = field(default="update", metadata=identity.LATER)
    precision: str = field(default="float32", metadata=identity.LATER)

    def __post_init__(self) -> None:
        if isinstance(self.noise, Mapping):
            object.__setattr__(self, "noise", tuple(self.noise.items()))
        object.__setattr__(self, "watch", tuple(self.watch))
        for name, known in (("objective", OBJECTIVES), ("precision", PRECISIONS)):
            if (got := getattr(self, name)) not in known:
                raise DitherError(f"run: {name} {got!r} is none of {', '.join(known)}")
        if self.objective != "noise" and self.noise is None:
            raise DitherError(
                f"run: objective {self.objective!r} penalises a noise, and noise is None: give one"
            )
        if (self.epochs is None) == (self.steps is None):
            raise DitherError(
                f"run: give epochs or steps, one of the two (got {self.epochs} and {self.steps})"
            )
        for name in ("epochs", "steps", "batch"):
            if (n := getattr(self, name)) is not None and n < 1:
                raise DitherError(f"run: {name} = {n} leaves nothing to do; give 1 or more")

    @property
    def key(self) -> str:
        return identity.key(self)

    @property
    def stacked(self) -> bool:
        """Whether many seeds run as one program: the model must support it and be narrow."""
        widths = getattr(self.model, "widths", ())
        return hasattr(self.model, "build_stacked") and max(widths[1:], default=0) <= NARROW


@dataclass(frozen=True)
class Task:
    """A computation that is no training run: f(seed, progress, **kwargs) → iterable of (step,
    quantity, value).

    `function` is "package.module:name", so that a worker can import it. The code is not part of the
    identity: if a change of it changes the results, run with `--again`.
    """

    function: str
    kwargs: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.]+:\w+", self.function):
            raise DitherError(
                f"task: the function is named 'package.module:name', got {self.function!r}"
            )
        object.__setattr__(self, "kwargs", tuple(sorted(self.kwargs)))

    @classmethod
    def of(cls, function: str | Callable[..., Iterable], **kwargs: object) -> "Task":
        """Task.of("dither.papers.orvieto2022.fig1:explosion", d=100); lists become tuples."""
        if callable(function):
            said = identity.canonical(function, "task: the function")
            function = f"{said['name']}" if isinstance(said, dict) else str(said)
        return cls(
            function, tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in kwargs.items())
        )

    @property
    def key(self) -> str:
        return identity.key(self)

    @property
    def stacked(self) -> bool:
        return False


@dataclass(frozen=True)
class Claim:
    """A statement of the paper that may be false.

    check(table) → (holds, {name: number}). holds is True, False, or None if this scale can't judge
    the claim; then "why" among the numbers gives the reason. A number may be a float, an Estimate,
    a pair (mean, spread), an array [S] of one value per seed (shown as mean ± sd), a `rule.Finding`
    (shown with its interval), or another array, whose values are shown. counts: False for a claim
    that can't fail.

    runs, seeds   of a claim that asks seeds of its own: the labels of its runs, and {scale: which}.
                  Its check sees these runs at these seeds alone, and it is not judged if one of
                  them is missing, or if the figure has no seed with all its runs. Another scale
                  does not have it. The figure's other claims and its picture see the figure's
                  seeds alone
    """

    id: str
    text: str
    check: Callable[[Table], Verdict]
    counts: bool = True
    runs: Sequence[str] = ()
    seeds: Mapping[str, Sequence[int]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        what = f"claim {self.id}:"
        if isinstance(self.runs, str):
            raise DitherError(f"{what} runs are a list of labels, got {self.runs!r}")
        if bool(self.runs) != bool(self.seeds):
            raise DitherError(f"{what} seeds of its own need runs, and runs need seeds: give both")
        for scale, seeds in self.seeds.items():
            if scale not in SCALES:
                raise DitherError(f"{what} {scale!r} is no scale; there are {', '.join(SCALES)}")
            if not seeds or min(seeds) < 0 or len({*seeds}) < len(seeds):
                raise DitherError(f"{what} seeds {[*seeds]}: give each once, from 0 on")
        object.__setattr__(self, "runs", tuple(self.runs))


@dataclass(frozen=True)
class Figure:
    """A figure: runs(**arguments of a scale) → {label: Run | Task}; plot(table) → a matplotlib
    figure; claims.

    smoke, quick, paper   the keyword arguments of `runs` at each scale
    decisive              the arguments for the smallest runs that can decide the claims; None: the
                          figure has no such scale
    seeds                 the number of seeds at each scale; a claim may ask more seeds of some runs
    departures            differences from the paper; "quick: …" is shown at that scale only
    needs                 data sets; without them the figure is "not run: data absent"
    cost                  rough minutes on one core at each scale; the cheapest figures run first,
                          figures without a cost last
    """

    runs: Callable[..., Mapping[str, Run | Task]]
    plot: "Callable[[Table], Picture]"
    smoke: Mapping[str, Any] = field(default_factory=dict)
    quick: Mapping[str, Any] = field(default_factory=dict)
    paper: Mapping[str, Any] = field(default_factory=dict)
    claims: Sequence[Claim] = ()
    departures: Sequence[str] = ()
    seeds: Mapping[str, int] = field(default_factory=lambda: {"smoke": 2, "quick": 3, "paper": 10})
    needs: Sequence[str] = ()
    cost: Mapping[str, float] = field(default_factory=dict)
    decisive: Mapping[str, Any] | None = None
    module: str = ""  # set when the figure is found by name

    @property
    def name(self) -> str:
        """Like "levi2022/fig3", from the module's path."""
        return "/".join((self.module or self.runs.__module__).split(".")[-2:])

    @property
    def doc(self) -> str:
        return sys.modules[self.module or self.runs.__module__].__doc__ or self.name

    @property
    def scales(self) -> tuple[str, ...]:
        """The scales that the figure has."""
        return tuple(scale for scale in SCALES if getattr(self, scale) is not None)

    def seeds_at(self, scale: str) -> int:
        """The number of seeds at a scale."""
        return self.seeds.get(scale, SEEDS)

    def seeds_of(self, label: str, scale: str) -> tuple[int, ...]:
        """The seeds of a run at a scale: the figure's, and those that claims ask of it."""
        return tuple(sorted({*range(self.seeds_at(scale)), *self.asked_of(label, scale)}))

    def claims_at(self, scale: str) -> list[Claim]:
        """The claims that a scale has."""
        return [claim for claim in self.claims if not claim.seeds or scale in claim.seeds]

    def asked_of(self, label: str, scale: str) -> set[int]:
        """The seeds that claims with seeds of their own ask of a run."""
        asked = (claim.seeds.get(scale, ()) for claim in self.claims if label in claim.runs)
        return {seed for seeds in asked for seed in seeds}

    def at(self, scale: str) -> dict[str, Run | Task]:
        """The runs at a scale, by label. Raises DitherError for a scale that the figure lacks."""
        if scale not in SCALES:
            raise DitherError(f"scale {scale!r} is none of {', '.join(SCALES)}")
        if scale not in self.scales:
            raise DitherError(
                f"{self.name} has no {scale} scale: ask for one of {', '.join(self.scales)}"
            )
        runs = dict(self.runs(**getattr(self, scale)))
        for label, run in runs.items():
            if not isinstance(run, (Run, Task)):
                kind = type(run).__name__
                raise DitherError(f"{self.name}: {label!r} is a {kind}, not a Run or a Task")
        for claim in self.claims:
            if scale in claim.seeds and (lacks := [b for b in claim.runs if b not in runs]):
                named = ", ".join(map(repr, lacks))
                raise DitherError(f"{self.name}: claim {claim.id} asks runs that it lacks: {named}")
        return runs

    def departures_at(self, scale: str) -> list[str]:
        others = tuple(f"{other}:" for other in SCALES if other != scale)
        return [text for text in self.departures if not text.startswith(others)]
