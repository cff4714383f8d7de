"""Pulling the columns of √H back to the sites and taking the noises' variances there: the sum in ★.

The ½, the sum over columns and the batch mean stand in this file (and in `second`, for the
other way to the same sum).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dither.attach.hooks import real
from dither.attach.inject import Injection
from dither.attach.reading import leaves
from dither.attach.site import CONV, Site
from dither.calling import output, tensors
from dither.engine.batch_axis import belongs, start_at, tells
from dither.engine.ghost import Gradient, Use
from dither.engine.replay import Hooked, Replay, agree, equal
from dither.engine.tap import Tap
from dither.engine.uses import Uses
from dither.errors import DitherError
from dither.loss.columns import Columns, of_type, signs
from dither.noise.noises import Additive, Weight
from dither.precision import wide
from dither.regulariser.independence import keep_apart


class Pull:
    """One exact or sampled R: a forward with taps, columns pulled back, variances summed by site.

    Where samples are coupled (BatchNorm in train mode) a parameter's own gradient is used instead
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
        self.coupled, self.differentiable, self.unit = coupled, differentiable, unit
        self.totals: dict[str, Tensor] = {}
        self.listening, self.alone, self.called, self.hooked = False, False, False, False
        self.met: list[Uses] = []  # of every forward
        self.signs: list[float] = [1.0]  # of the columns under way
        self.reached: list[tuple[str, Tensor]] | None = None
        self.weights = [s for s in noise.sites.values() if s.side == "parameter"]
        self.leaf: dict[str, Tensor] = {}

    def law(self, site: Site) -> Any:
        """The noise whose variance counts: at its present σ, or at σ = 1."""
        return site.unit if self.unit else self.noise.noise_at(site)

    def activation(self, site: Site, h: Tensor) -> Tensor | None:
        """A tap at an activation: the noise's variance is taken as the gradient comes by."""
        law = self.law(site)
        site.seen = tuple(h.shape)
        real(site, h)
        if law.sigma == 0 or self.alone:
            return None
        here = self.noise.here(site, h if self.differentiable else h.detach())

        def catch(g: Tensor) -> None:
            if self.listening:
                self.add(site, law.variance(wide(g), here.wide()))
            elif self.reached is not None:
                self.reached.append((site.name, (g[0] != 0) & g[0].isfinite()))

        if site.side == "out" or not isinstance(site.module, nn.Linear | CONV):
            h = h.clone()  # what follows may work in place, and `here` needs h as it is
        self.called = True
        return Tap.apply(h, self.anchor, catch, False, type(law) is Additive)  # pyright: ignore

    def add(self, site: Site, variance: Tensor, at: slice = slice(None)) -> None:
        """Variance [K, B] of the columns under way, or of those of them that stand at `at`."""
        signs = self.signs[at]
        if variance.dim() != 2 or len(variance) != len(signs):
            raise DitherError(
                f"variance of {type(site.noise).__name__} must be [K, B], a number per column and "
                f"sample: got {list(variance.shape)} for K = {len(signs)} at {site.name!r}; see "
                "norm2"
            )
        if len(set(signs)) == 1:
            total = signs[0] * wide(variance).sum()
        else:
            total = (wide(variance).sum(1) * variance.new_tensor(signs)).sum()
        share = self.noise.share(site) * total
        self.totals[site.name] = (
            self.totals[site.name] + share if site.name in self.totals else share
        )

    def run(self, x: Any, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, {site: its share of R})."""
        device = next((t.device for t in [*self.noise.model.parameters(), *tensors(x)]), None)
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        try:
            with leaves(self.noise) as self.leaf:
                z, uses, stray = self.forward(x)
                value = self.loss.per_sample(wide(z), y).mean()
                columns = self.loss.columns(wide(z if self.differentiable else z.detach()), y)
                columns = columns if wide(z) is z else of_type(columns, z.dtype)
                self.columns(x, z, columns, uses, stray)
            totals = self.totals
        finally:
            self.let_go()
        if not (self.called or self.weights) and any(
            self.law(s).sigma for s in self.noise.sites.values()
        ):
            raise DitherError(
                f"none of the sites ({', '.join(self.noise.sites)}) was called in this forward: "
                "was a module replaced after inject? Inject again"
            )
        scale = 0.5 / z.shape[0]
        zero = torch.zeros_like(value)
        return value, {
            name: scale * totals[name] if name in totals else zero for name in self.noise.sites
        }

    def let_go(self) -> None:
        """The taps hold this object and the uses: what these hold of the taps' graph would stay for
        ever, and so would what a user's own backward hands them.
        """
        self.totals, self.leaf, self.reached, self.listening = {}, {}, None, False
        for uses in self.met:
            for use in uses.uses:
                use.let_go()
        self.met.clear()

    def columns(
        self, x: Any, z: Tensor, columns: Columns, uses: list[Use], stray: set[str]
    ) -> None:
        """All columns, or so many mixtures, pulled back and their variances added up."""
        sites = [s for s in self.weights if s.name in stray and self.law(s).sigma != 0]
        if self.called and self.samples is None:
            keep_apart(self, z)
        total = columns.count if self.samples is None else self.samples
        for use in uses:
            use.columns = max(total, 1)
        replay = None if sites else self.replay(z, uses, columns, total)
        for chunk in _chunks(self.chosen(columns, z), replay.chunk if replay else 1):
            self.signs = [sign for sign, _ in chunk]
            if replay is None:
                back = functools.partial(self.back, z, chunk[0][1], sites if self.samples else [])
            else:
                back = functools.partial(replay, torch.stack([column for _, column in chunk]))
            self.pulled(back, uses)
        if sites and self.samples is None:
            self.one_by_one(x, z, columns, sites)

    def pulled(self, back: Callable[[], None], uses: list[Use]) -> None:
        """Pull the columns under way back and add their variances up."""
        for use in uses:
            use.forget()
        self.listening = True
        back()
        self.listening = False
        for site, gradient in self.gradients(uses):
            law, here = self.law(site), self.noise.here(site, site.parameter)
            if type(law) is Weight:  # asks for norms only, and these can be had together
                gradient.columns = len(self.signs)
                self.add(site, law.variance(gradient, here))
                continue
            for k in range(len(self.signs)):
                for use in gradient.uses:
                    use.turn(k)
                self.add(site, law.variance(gradient, here), slice(k, k + 1))

    def replay(self, z: Tensor, uses: list[Use], columns: Columns, total: int) -> Replay | None:
        """A faster way through the recorded graph, if it is one: once for a graph of these shapes,
        a random column and the first of √H are pulled back both ways, and both must say the same.
        """
        if not (z.requires_grad and total) or (self.differentiable and total == 1) or self.hooked:
            return None
        found = Replay(z, total, recorded=self.differentiable)
        if not found.fits or (self.differentiable and found.chunk == 1):
            return None
        mark, known = ("replay", found.mark), self.noise.layouts
        if mark not in known:
            noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0)).to(z)
            known[mark] = all(
                agree(
                    self.tally(functools.partial(self.back, z, column, []), uses),
                    self.tally(functools.partial(found, column.unsqueeze(0)), uses),
                )
                for column in (noise, columns.column(0))
            )
        return found if known[mark] else None

    def tally(self, back: Callable[[], None], uses: list[Use]) -> dict[str, Tensor]:
        """{site: the variance of one column}; nothing is added up."""
        before, self.totals, self.signs = self.totals, {}, [1.0]
        self.pulled(back, uses)
        found, self.totals = self.totals, before
        return found

    def chosen(self, columns: Columns, z: Tensor) -> Iterator[tuple[float, Tensor]]:
        """(sign, column): all of them, or so many mixtures, whose weight is in the sign."""
        if self.samples is None:
            yield from ((float(sign), column) for sign, column in columns)
        else:
            for _ in range(self.samples):
                mixed = columns.mixed(signs(wide(z)))
                yield from ((sign / self.samples, column) for sign, column in mixed)

    def back(self, z: Tensor, column: Tensor, sites: list[Site]) -> None:
        """Pull one column back through the taps and, for `sites`, to the parameters themselves."""
        if not z.requires_grad:
            return
        inputs = [self.anchor, *(self.leaf[s.name] for s in sites)]
        keep = {"retain_graph": True, "create_graph": self.differentiable, "allow_unused": True}
        for site, g in zip(sites, torch.autograd.grad(z, inputs, column, **keep)[1:], strict=True):
            if g is not None:
                here = self.noise.here(site, site.parameter)
                self.add(site, self.law(site).variance(g[None, None], here))

    def reach(self, z: Tensor, i: int) -> list[tuple[str, Tensor]]:
        """(site, the elements that sample i reaches) for every call of a site, from the output
        on.
        """
        self.reached = []
        self._engine(z, start_at(z, i), [])
        found, self.reached = self.reached, None
        return found

    # ---------------------------------------------------------------------------------- parameters

    def output(self, x: Any) -> Tensor:
        """The output; through DDP where a backward will follow, whose gradients it averages."""
        with Hooked() as hooked:
            z = output(self.noise.wrapper if self.differentiable else self.noise.model, x)
        self.hooked = hooked.found
        return z

    def forward(self, x: Any) -> tuple[Tensor, list[Use], set[str]]:
        """The output, the uses of parameters, and the parameters that rules can't meet.

        Where a use turns out to have no rule, its parameter is left alone in a second forward;
        that is kept for the next call.
        """
        if not self.weights:
            return self.output(x), [], set()
        if self.coupled:
            return self.output(x), [], set(self.leaf)
        stray: set[str] = self.noise.layouts.setdefault("stray", set())
        while True:
            names = {id(leaf): name for name, leaf in self.leaf.items() if name not in stray}
            uses = Uses(names, self.anchor, self.differentiable)
            self.met.append(uses)
            with uses:
                z = self.output(x)
            new = self.place(uses, z)
            if not new:
                return z, uses.uses, set(stray)
            stray |= new

    def gradients(self, uses: list[Use]) -> Iterator[tuple[Site, Gradient]]:
        """The per-sample gradients of the parameters whose uses the column has reached."""
        found: dict[str, list[Use]] = {}
        for use in uses:
            if use.g is not None and self.law(self.noise.sites[use.name]).sigma != 0:
                found.setdefault(use.name, []).append(use)
        for name, reached in found.items():
            yield self.noise.sites[name], Gradient(reached, self.leaf[name])

    def place(self, uses: Uses, z: Tensor) -> set[str]:
        """Settle where each use has its samples; the names of parameters that can't be met.

        A gradient that starts at one sample must stay with it: layouts that say otherwise are
        struck out. The first and the last sample tell; others are asked where these two are
        silent. What was learnt is kept for the next call with the same shapes.
        """
        known, batch = self.noise.layouts, z.shape[0]
        uses.settle(batch)
        marks = [(n, u.name, u.kind, u.region, u.out, batch) for n, u in enumerate(uses.uses)]
        open_ = [n for n, mark in enumerate(marks) if mark not in known]
        silent = set(open_)
        if batch > 1 and z.requires_grad and open_:
            for asked, i in enumerate(self._samples(z, uses.uses)):
                told: dict[int, bool] = {}  # uses behind one tap share what comes by
                for n in open_:
                    use = uses.uses[n]
                    if use.g is None:
                        continue
                    if id(use.caught) not in told:
                        told[id(use.caught)] = tells(use.g)
                    if told[id(use.caught)]:
                        fits = (c for c in use.candidates if belongs(use.g, c, use.features, i))
                        use.candidates = list(fits)
                        silent.discard(n)
                if asked and not any(len(uses.uses[n].candidates) > 1 for n in silent):
                    break
        for n, (use, mark) in enumerate(zip(uses.uses, marks, strict=True)):
            if mark in known:
                use.candidates = known[mark]
            elif n not in silent:
                known[mark] = use.candidates
        return uses.stray(z)

    def _samples(self, z: Tensor, uses: list[Use]) -> Iterator[int]:
        """Each sample, the first and the last before the others, once a random column that is zero
        elsewhere has been pulled back from it. With the first, a replay is compared to autograd.
        """
        self._engine(z, start_at(z, 0), uses)
        yield 0
        ahead = None if self.called or self.differentiable or self.hooked else Replay(z, 2)
        if ahead is not None and ahead.fits:
            found = [use.g for use in uses]
            for use in uses:
                use.forget()
            ahead(torch.stack([start_at(z, 0), start_at(z, len(z) - 1)]))
            agrees = all(equal(g, use.g) for g, use in zip(found, uses, strict=True))
            self.noise.layouts["replay", ahead.mark] = agrees
            for use in uses:
                use.turn(1)
        else:
            agrees = False
        if not agrees:
            self._engine(z, start_at(z, len(z) - 1), uses)
        yield len(z) - 1
        for i in range(1, len(z) - 1):
            self._engine(z, start_at(z, i), uses)
            yield i

    def _engine(self, z: Tensor, column: Tensor, uses: list[Use]) -> None:
        """Pull a column back by autograd; the uses hold what came by."""
        for use in uses:
            use.forget()
        torch.autograd.grad(z, self.anchor, column, retain_graph=True, allow_unused=True)

    def one_by_one(self, x: Any, z: Tensor, columns: Columns, sites: list[Site]) -> None:
        """Exact, for what no rule has met: every sample's columns by themselves; B·C backward
        passes.

        Of batch 1 where the model gives for a sample alone what it gives in the batch, else of
        batch B. Replicas of a stacked model share no parameter: the i-th samples of all go
        together.
        """
        batch = z.shape[0] // (len(self.noise.seeds) if self.noise.stack else 1)
        for i in range(batch):
            alone = self.by_itself(x, z, i)
            for sign, column in columns:
                self.signs = [float(sign)]
                if alone is not None:
                    self.back(alone, column[i : i + 1], sites)
                    continue
                start = torch.zeros_like(column)
                start[i::batch] = column[i::batch]
                self.back(z, start, sites)

    def by_itself(self, x: Any, z: Tensor, i: int) -> Tensor | None:
        """The output of sample i alone, or None where it differs from that in the batch."""
        if self.noise.stack or not isinstance(x, Tensor) or x.shape[0] != z.shape[0]:
            return None
        self.alone = True
        try:
            z_i = output(self.noise.model, x[i : i + 1])
        except (RuntimeError, ValueError):  # some models refuse a batch of one
            return None
        finally:
            self.alone = False
        here = z[i : i + 1]
        same = z_i.shape == here.shape and torch.allclose(z_i, here, rtol=1e-3, atol=1e-6)
        return z_i if same else None


def _chunks(columns: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """So many at a time."""
    columns = iter(columns)
    while chunk := list(itertools.islice(columns, size)):
        yield chunk
