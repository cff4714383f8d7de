"""The sum in ★:  R = ½ E_batch Σ_sites Σ_c Var⟨g_c, δ⟩.

One forward is recorded with the sites tapped (`engine.recording`), the columns of √H are pulled
back, and each noise's variance is taken of the gradients that come by. The ½, the sum over columns
and the batch mean stand in this file (and in `second`, for the other way to the same sum).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dither.attach.hooks import real
from dither.attach.injection import Injection
from dither.attach.reading import leaves
from dither.attach.site import CONV, Site
from dither.calling import output, tensors
from dither.engine.certificate import Compared, Violations, examine
from dither.engine.functions import check_twice
from dither.engine.ghost import Gradient
from dither.engine.recording import Graph, Recording
from dither.errors import DitherError
from dither.loss.columns import Columns, of_type
from dither.noise.here import Here
from dither.noise.noises import Additive, Weight
from dither.plain import twice
from dither.precision import wide
from dither.regulariser.independence import (
    check_repeats,
    check_seen,
    refuse_meeting,
    refuse_uncalled,
    refuse_writing,
    rows,
)
from dither.regulariser.one_by_one import one_by_one
from dither.signs import signs
from dither.torch_internals import version

SignedColumn = tuple[float, Tensor]
KNOWN = 256  # graphs that are remembered


class Pull:
    """One exact or sampled R.

    Where samples are coupled (BatchNorm in train mode) a parameter's own gradient is used in place
    of per-sample ones: with random signs its square has the same mean.
    """

    def __init__(
        self,
        noise: Injection,
        loss: Any,
        samples: int | None,
        *,
        coupled: bool,
        differentiable: bool,
        unit: bool,
    ) -> None:
        self.noise, self.loss, self.samples = noise, loss, samples
        self.coupled, self.differentiable = coupled, differentiable
        self.laws = {n: s.unit if unit else noise.noise_at(s) for n, s in noise.sites.items()}
        self.weights = [s.name for s in noise.ordered if s.side == "parameter"]
        self.wrote = False  # the forward has written to its input
        self.graph = 0  # what tells the graph of the forward from others
        self.known_as: tuple = ()
        self.examined = 0  # how often this call has asked everything
        self.copied: set[str] = set()  # activations that are changed in place later
        self.recording: Recording | None = None  # None: nothing is tapped
        self.here: dict[int, Here] = {}

    # ------------------------------------------------------------------------------ one forward

    def activation(self, site: Site, h: Tensor) -> Tensor | None:
        """Tap an activation. Called by the hooks."""
        law = self.laws[site.name]
        site.seen = tuple(h.shape)
        real(site, h)
        if law.sigma == 0 or self.recording is None:
            return None
        given = h if self.differentiable else h.detach()
        given = given.clone() if site.name in self.copied else given
        additive = type(law) is Additive
        if site.side == "out" or not isinstance(site.module, nn.Linear | CONV):
            h = h.clone()  # what follows may work in place
        here = self.noise.here(site, given).wide()
        n, tapped = self.recording.tap(
            site.name,
            h,
            normed=additive,
            rows=rows(here, law),
            value=None if additive else given,
        )
        self.here[n] = here
        return tapped

    def record(self, x: Any, leaf: dict[str, Tensor], stray: set[str]) -> Graph:
        """A forward with every site tapped but the stray parameters."""
        device = next((t.device for t in [*self.noise.model.parameters(), *tensors(x)]), None)
        met = {} if self.coupled else {n: p for n, p in leaf.items() if n not in stray}
        model = self.noise.wrapper if self.differentiable else self.noise.model
        versions = [version(t) for t in tensors(x)]
        while True:
            self.here = {}
            self.recording = Recording(met, device, recorded=self.differentiable)
            try:
                with twice(self.differentiable):
                    graph = self.recording(lambda: output(model, x))
            finally:
                self.recording = None
            self.wrote = self.wrote or [version(t) for t in tensors(x)] != versions
            self.graph = graph.nodes
            if not graph.overwritten:
                return graph
            self.copied |= graph.overwritten
            self.check_input()

    # ------------------------------------------------------------------------------ the sum

    def run(self, x: Any, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, {site: its share of R})."""
        known = self.noise.layouts
        stray: set[str] = known.setdefault(("stray", self.noise.model.training), set())
        with leaves(self.noise) as leaf:
            while True:
                graph = self.record(x, leaf, stray)
                if graph.stray - stray and not self.coupled:
                    stray |= graph.stray
                    self.check_input()
                    continue
                try:
                    return self.summed(graph, x, y, leaf, set(leaf) if self.coupled else stray)
                except _Elsewhere as found:
                    stray |= found.parameters
                    self.check_input()
                finally:
                    graph.let_go()

    def summed(
        self, graph: Graph, x: Any, y: Tensor, leaf: dict[str, Tensor], stray: set[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """★, of a recorded forward."""
        z, noisy = graph.z, [n for n, law in self.laws.items() if law.sigma != 0]
        self.check(graph, noisy)
        with twice(self.differentiable):
            value = self.loss.per_sample(wide(z), y).mean()
            columns = self.loss.columns(wide(z if self.differentiable else z.detach()), y)
        columns = columns if wide(z) is z else of_type(columns, z.dtype)
        total = columns.count if self.samples is None else self.samples
        own = [n for n in self.weights if n in stray and n in noisy]
        of_batch = own if self.samples else []  # their own gradients: unbiased by random signs
        graph.plan(0 if of_batch else total)
        compared = self.certify(graph, x)
        shares = Shares(self.noise)
        for chunk in _chunks(self.chosen(columns, z), graph.chunk):
            sign = [s for s, _ in chunk]

            def catch(n: int, g: Any, sign: list[float] = sign) -> None:
                site = self.noise.sites[graph.activations[n].name]
                shares.add(site, self.laws[site.name].variance(wide(g), self.here[n]), sign)

            stack = torch.stack([column for _, column in chunk])
            for name, gradient in graph.pull(stack, catch, compared).items():
                self.add_parameter(shares, name, gradient, leaf, sign)
            for name, g in graph.own(stack[0], {n: leaf[n] for n in of_batch}).items():
                self.add_parameter(shares, name, g[None, None], leaf, sign)
        if compared is not None:
            graph.compare(compared)
            self.judge_again(graph, compared.found)
        if own and self.samples is None:
            for name, sign, g in one_by_one(self, graph, x, columns, {n: leaf[n] for n in own}):
                self.add_parameter(shares, name, g, leaf, sign)
        zero = torch.zeros_like(value)
        return value, {n: 0.5 / z.shape[0] * shares.totals.get(n, zero) for n in self.noise.sites}

    def add_parameter(
        self, shares: Shares, name: str, g: Any, leaf: dict[str, Tensor], sign: list[float]
    ) -> None:
        """The variance of a parameter's gradients: a `Gradient`, or [K, B, *shape]."""
        site, law = self.noise.sites[name], self.laws[name]
        if law.sigma == 0:
            return
        here = self.noise.here(site, site.parameter)
        if isinstance(g, Gradient) and type(law) is not Weight:  # Weight asks for norms only
            for k, one in enumerate(sign):
                shares.add(site, law.variance(g.column(k), here), [one])
        else:
            shares.add(site, law.variance(g, here), sign)

    def chosen(self, columns: Columns, z: Tensor) -> Iterator[SignedColumn]:
        """(sign, column): all of them, or so many mixtures, whose weight is in the sign."""
        if self.samples is None:
            yield from ((float(sign), column) for sign, column in columns)
        else:
            for _ in range(self.samples):
                mixed = columns.mixed(signs(wide(z)))
                yield from ((sign / self.samples, column) for sign, column in mixed)

    # ------------------------------------------------------------------------------ the checks

    def check(self, graph: Graph, noisy: list[str]) -> None:
        """Raises DitherError where R can't see the sites."""
        activations = {t.name: self.laws[t.name] for t in graph.activations.values()}
        if noisy and not (activations or self.weights):
            raise refuse_uncalled(self.noise)
        check_seen(graph, activations)
        if graph.recorded:
            otherwise = "; or take R without its gradient, under torch.no_grad()"
            check_twice(graph.doubtful, "the gradient of R", otherwise)

    def certify(self, graph: Graph, x: Any) -> Compared | None:
        """The first graph of its kind is examined whole; each one is compared by a random half.

        Random signs make R unbiased whatever samples meet at an activation: sampled R asks of
        parameters alone.
        """
        if not graph.z.requires_grad:
            return None
        mark = self.known_as = self.mark(graph)
        known = self.noise.layouts
        if not (self.wrote or ("repeats", mark) in known):
            check_repeats(self.noise.model, graph.z, x)
            self.remember(("repeats", mark), True)
        asked = graph.activations if self.samples is None else {}
        if len(graph.z) < 2 or not (asked or graph.uses):
            return None
        if mark not in known:
            learnt, violations = examine(graph)
            self.examined += 1
            self.judge(graph, violations)
            if learnt.lasts:  # else everything is asked again at the next call
                self.remember(mark, learnt)
        else:
            learnt = known[mark]
        for use, layouts in zip(graph.uses, learnt.layouts, strict=True):
            use.candidates = layouts
        if not learnt.replay:
            graph.replay = None
        return Compared(asked, graph.used, graph.eps)

    def remember(self, mark: tuple, what: Any) -> None:
        """Keep what was learnt of a kind of graph, the latest `KNOWN` of it."""
        known = self.noise.layouts
        while len(known) >= KNOWN:
            known.pop(next(iter(known)))
        known[mark] = what

    def mark(self, graph: Graph) -> tuple:
        """By which what was learnt of a graph is known again."""
        return (
            graph.fingerprint,
            self.noise.model.training,
            bool(graph.replay),
            self.samples is None,
        )

    def judge_again(self, graph: Graph, found: Violations) -> None:
        """The same, of a graph that was known: what was learnt of it holds no more. It is asked
        everything anew before a parameter is met one by one.
        """
        if found.parameters and not self.examined:
            self.noise.layouts.pop(self.known_as, None)
            found = Violations(found.activations, set())
            self.judge(graph, found)
            raise _Elsewhere(set())
        self.judge(graph, found)

    def check_input(self) -> None:
        """Raises DitherError where a forward that must be run again has written to its input."""
        if self.wrote:
            raise refuse_writing(self.noise.model)

    def judge(self, graph: Graph, found: Violations) -> None:
        """Refuse what meets at an activation; mistaken parameters are met one by one."""
        if found.activations and self.samples is None:
            raise refuse_meeting(graph, found.activations[0])
        if found.parameters:
            raise _Elsewhere(found.parameters)


class Shares:
    """Each site's sum of variances."""

    def __init__(self, noise: Injection) -> None:
        self.noise = noise
        self.totals: dict[str, Tensor] = {}

    def add(self, site: Site, variance: Tensor, sign: list[float]) -> None:
        """Variance [K, B] of K columns, each with its sign."""
        if variance.dim() != 2 or len(variance) != len(sign):
            raise DitherError(
                f"variance of {type(site.noise).__name__} must be [K, B], a number per column and "
                f"sample: got {list(variance.shape)} for K = {len(sign)} at {site.name!r}; see "
                "norm2"
            )
        if len(set(sign)) == 1:
            total = sign[0] * wide(variance).sum()
        else:
            total = (wide(variance).sum(1) * variance.new_tensor(sign)).sum()
        share = self.noise.share(site) * total
        before = self.totals.get(site.name)
        self.totals[site.name] = share if before is None else before + share


class _Elsewhere(Exception):
    """Parameters whose samples are not where they were taken to be."""

    def __init__(self, parameters: set[str]) -> None:
        super().__init__(parameters)
        self.parameters = parameters


def _chunks(columns: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """So many at a time."""
    columns = iter(columns)
    while chunk := list(itertools.islice(columns, size)):
        yield chunk
