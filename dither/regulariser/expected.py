"""What the noise really costs: E[Δℓ] by Monte Carlo, and what of it R does not explain."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dither import loss as losses
from dither.attach.hooks import real
from dither.attach.inject import Injection
from dither.attach.reading import reading
from dither.attach.shadow import showing
from dither.attach.site import Site
from dither.calling import check_devices, evaluating, output, tensors
from dither.errors import check_whole
from dither.estimate import Estimate
from dither.noise.draw import Source, key
from dither.precision import double, wide
from dither.regulariser.explicit import explicit
from dither.regulariser.independence import check_same, refuse_writing
from dither.regulariser.reads import check_reads
from dither.regulariser.usable import check_usable
from dither.torch_internals import version

FEW = 64  # samples, below which the calls of a forward take its time
ROWS = 8192  # of a stacked batch, at most: several draws in one forward
ELEMENTS = 2**22  # of its largest site, or of x, at most


def expected(
    noise: Injection,
    x: Any,
    y: Tensor,
    loss: Any = "cross_entropy",
    *,
    draws: int = 1000,
    antithetic: bool = False,
    seed: int | None = None,
) -> Estimate:
    """E[Δℓ] = E_noise mean_batch(ℓ with noise − ℓ without), with its standard error; in eval
    mode, without gradients.

    `draws` independent draws at every site, at the present step's σ; weight noise is shared by
    the batch. `antithetic` draws pairs (ε and its mirror image), draws/2 of them: odd orders
    cancel, so small σ need far fewer. `seed` None takes one from torch's default generator; the
    noise's own clock stands still. The model's output is found as in `explicit`. Raises DitherError
    for fewer than 2 draws (4 in pairs), and for several outputs.
    """
    each = losses.get(loss)
    check_whole("draws", draws, 4 if antithetic else 2, "a standard error needs two, or two pairs")
    check_usable(noise, y, each)
    for site in noise.shadowed:
        _ = site.parameter  # raises where it is gone
    check_devices(noise.model, x, y)
    seed = int(torch.randint(2**62, ()).item()) if seed is None else seed
    with evaluating(noise.model), torch.no_grad():
        check_reads(noise, x)
        return Estimate.of(Changes(noise, x, y, each, draws, seed)(draws, antithetic=antithetic))


def remainder(
    noise: Injection,
    x: Any,
    y: Tensor,
    loss: Any = "cross_entropy",
    *,
    draws: int = 1000,
    antithetic: bool = False,
    seed: int | None = None,
) -> Estimate:
    """E[C] = E[Δℓ] − R, with the standard error of E[Δℓ]; R is exact, in eval mode.   Camuto et
    al. 2020, Theorem 1.

    Of order σ², not smaller, unless the residual part of the second order vanishes (see
    `explicit`, curvature="full").
    """
    with evaluating(noise.model), torch.no_grad():
        R = explicit(noise, x, y, loss).R
    return expected(noise, x, y, loss, draws=draws, antithetic=antithetic, seed=seed) - R.item()


class Draws:
    """A model's outputs under fixed draws: a draw has the same ε at every σ.

    Made, and called, in eval mode and without gradients. `z` are the outputs without noise; `most`
    draws are taken by one call.
    """

    def __init__(self, noise: Injection, x: Any, seed: int, most: int) -> None:
        self.noise, self.x, self.seed = noise, x, seed
        quiet, versions = Draw(noise, seed, 0, off=True), [version(t) for t in tensors(x)]
        with reading(noise, Draw(noise, seed, 0, off=True)):
            once = output(noise.model, x)
        if [version(t) for t in tensors(x)] != versions:
            raise refuse_writing(noise.model)
        with reading(noise, quiet):
            self.z = output(noise.model, x)
            check_same(noise.model, self.z, once)
            self.together = _together(noise, x, self.z, quiet, most)

    def outputs(
        self, draws: int, laws: dict[str, Any] | None = None, *, reflect: bool = False
    ) -> Iterator[Tensor]:
        """The outputs of each draw. `laws`: noises in place of the injection's own."""
        done = 0
        while done < draws:
            n = min(self.together, draws - done)
            reader = Draw(self.noise, self.seed, done, reflect=reflect, of=draws, laws=laws)
            with reading(self.noise, reader), showing(reader.parameters()):
                z = output(self.noise.model, _repeated(self.x, n))
            if len(z) != n * len(self.z):  # dimension 0 of x is not the samples after all
                self.together = 1
                continue
            yield from z.chunk(n)
            done += n


class Changes(Draws):
    """mean_batch(ℓ with noise − ℓ without): changes at two σ differ by σ alone. `clean` is the loss
    per sample [B] without noise.
    """

    def __init__(
        self, noise: Injection, x: Any, y: Tensor, loss: Any, draws: int, seed: int
    ) -> None:
        super().__init__(noise, x, seed, draws)
        self.y, self.loss = y, loss
        self.clean: Tensor = loss.per_sample(wide(self.z), y)

    def __call__(
        self, draws: int, *, antithetic: bool, laws: dict[str, Any] | None = None
    ) -> Tensor:
        """One mean change per draw [draws], or per antithetic pair [draws / 2]."""
        if not antithetic:
            return self._draws(draws, laws, reflect=False)
        pairs = [self._draws(draws // 2, laws, reflect=r) for r in (False, True)]
        return (pairs[0] + pairs[1]) / 2

    def _draws(self, draws: int, laws: dict[str, Any] | None, *, reflect: bool) -> Tensor:
        outputs = self.outputs(draws, laws, reflect=reflect)
        each = (self.loss.per_sample(wide(z), self.y) - self.clean for z in outputs)
        return torch.stack([double(change).mean() for change in each])


class Draw:
    """A reader that displaces every site, keyed by (seed, site, draw, call)."""

    def __init__(
        self,
        noise: Injection,
        seed: int,
        index: int,
        *,
        reflect: bool = False,
        of: int = 0,
        off: bool = False,
        laws: dict[str, Any] | None = None,
    ) -> None:
        self.noise, self.seed, self.index = noise, seed, index
        self.reflect, self.of, self.off = reflect, of, off
        self.laws = {n: noise.noise_at(s) for n, s in noise.sites.items()} if laws is None else laws
        self.calls: dict[str, int] = {}
        self.largest = 0  # elements of the largest site
        self.met: list[tuple[Site, torch.Size]] = []  # the sites' tensors, in order

    def source(self, site: Site, call: int) -> Source:
        seeds = self.noise.seeds if self.noise.stack else (0,)
        keys = [key(self.seed, s, site.name, "expected", self.index, call) for s in seeds]
        return Source(keys, reflect=self.reflect)

    def activation(self, site: Site, h: Tensor) -> Tensor | None:
        self.largest = max(self.largest, h.numel())
        self.met.append((site, h.shape))
        real(site, h)
        law = self.laws[site.name]
        if self.off or law.sigma == 0:
            return None
        call = self.calls[site.name] = self.calls.get(site.name, -1) + 1
        return h + law.displace(self.noise.here(site, h), self.source(site, call))

    def parameters(self) -> Iterator[tuple[Site, Tensor]]:
        """(site, W + δ) of each noisy parameter."""
        for site in self.noise.sites.values():
            law, scale = self.laws[site.name], self.scale(site) if site.side == "parameter" else 0.0
            if scale and law.sigma:
                here = self.noise.here(site, site.parameter)
                yield site, site.parameter + scale * law.displace(here, self.source(site, 0))

    def scale(self, site: Site) -> float:
        """As `draw` has it, the one of "cycle" and "random" by lot, or in turn where the turns
        come out even.
        """
        noise, m = self.noise, len(self.noise.groups)
        if noise.draw in ("each", "all"):
            return noise.scale(site, 1)
        chosen = self.index if self.of % m == 0 else key(self.seed, "which", self.index)
        return float(site.name in noise.groups[chosen % m])


def _together(noise: Injection, x: Any, z: Tensor, seen: Draw, most: int) -> int:
    """How many draws one forward can take: more than one only where samples go their own ways.

    That is tried, without noise. Before and after other samples, and in every place of the whole
    stacked batch, x must give what it gives alone; every site's tensor must grow with the samples:
    one that they share (of positions, say) has one draw a forward. A model that refuses other
    batches than its own takes them one at a time. The trial has the rows of n + 6
    draws: a quarter of all at most, unless samples are so few that calls and not rows take time.
    """
    shared = any(s.side == "parameter" for s in noise.sites.values())
    if shared or noise.batch_dim or noise.stack or not _stackable(x, len(z)):
        return 1
    most = most if len(z) < FEW else most // 4 - 6
    n = min(most, ROWS // max(1, len(z)), ELEMENTS // max(1, x.numel(), seen.largest))
    if n < 2:
        return 1
    alone = seen.met
    try:
        others = x.flip(0) * 5 + 1 if x.is_floating_point() else x.flip(0)
        for stacked, first in ((torch.cat([x, others]), True), (torch.cat([others, x]), False)):
            seen.met = []
            both = output(noise.model, stacked)
            grown = len(alone) == len(seen.met) and all(map(_doubled, alone, seen.met))
            if not grown or len(both) != 2 * len(z) or not _same(both.chunk(2)[not first], z):
                return 1
        whole = output(noise.model, _repeated(x, n))
    except Exception:  # the model's own; if it is not of the stacking, the next forward raises it
        return 1
    every = whole.chunk(n) if len(whole) == n * len(z) else ()
    return n if every and all(_same(part, z) for part in every) else 1


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding, which differs with the size of a batch."""
    tolerance = 256 * torch.finfo(b.dtype).eps * b.abs().max()
    return a.shape == b.shape and bool(((a - b).abs() <= tolerance).all())


def _doubled(alone: tuple[Site, torch.Size], both: tuple[Site, torch.Size]) -> bool:
    """Whether twice the samples have twice the draws: elements, or ε of samples in dimension 0."""
    (site, a), (other, b) = alone, both
    node = getattr(site.noise, "per_sample", False)
    return site is other and (b[:1] == (2 * a[0],) if node else b.numel() == 2 * a.numel())


def _stackable(x: Any, batch: int) -> bool:
    return isinstance(x, Tensor) and x.dim() > 0 and len(x) == batch and len(tensors(x)) == 1


def _repeated(x: Any, n: int) -> Any:
    return x if n == 1 else x.repeat(n, *[1] * (x.dim() - 1))
