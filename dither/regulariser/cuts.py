"""Whether gradients tell what a displacement of the sites does to the output.

A forward may cut a way behind a site: `h.detach()`, a part under `no_grad`, a straight-through
estimator. The noise goes that way, and no gradient does. With small displacements δ_s of all sites
and random columns u_k of the output,

    ⟨u_k, z(δ) − z(−δ)⟩/2  =  Σ_s ⟨g_s(u_k), δ_s⟩  +  O(δ³),     g_s(u) = J_sᵀ u

is asked at the first call with inputs of so many dimensions, and of each site by itself where it
fails for all. What moves less than a fifth of the whole is not found.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dither.attach.inject import Injection, put, take
from dither.attach.reading import leaves, reading
from dither.attach.site import Site
from dither.calling import evaluating, output, tensors
from dither.engine.recording import Recording
from dither.errors import DitherError
from dither.precision import double
from dither.regulariser.one_by_one import near
from dither.torch_internals import version, without_checkpoints

COLUMNS = 4  # u
SHARE = 0.2  # of the change, that may go unexplained: kinks and the third order
FINER = 16  # a jump of the output on the way is left out by displacements so many times smaller
COARSE = 1e-4  # ε of a type in which differences say nothing


class Nudged:
    """A reader that taps the sites, and then displaces them by s·δ, δ as large as η · rms."""

    def __init__(self, noise: Injection, sites: Mapping[str, Site]) -> None:
        self.noise, self.sites = noise, sites
        self.recording: Recording | None = None
        self.rng = torch.Generator().manual_seed(secrets.randbits(62))
        self.unit: list[tuple[str, Tensor]] = []  # δ/η of each call of an activation, in order
        self.weights: dict[str, Tensor] = {}  # δ/η of each parameter
        self.size, self.only, self.calls = 0.0, "", 0

    def activation(self, site: Site, h: Tensor) -> Tensor | None:
        if site.name not in self.sites or not h.is_floating_point():
            return None
        if self.recording is not None:
            self.unit.append((site.name, self.drawn(h)))
            return self.recording.tap(site.name, h)[1]
        if not self.size:
            return None
        name, unit = self.unit[self.calls] if self.calls < len(self.unit) else ("", h)
        self.calls += 1
        if name != site.name or unit.shape != h.shape:
            raise _Otherwise
        return h + self.size * unit if self.only in ("", name) else None

    def drawn(self, t: Tensor) -> Tensor:
        """N(0, 1) times the rms of t; 1 where t is 0."""
        t = t.detach()
        size = float(double(t).square().mean().sqrt()) if t.numel() else 0.0
        draw = torch.randn(t.shape, generator=self.rng, dtype=torch.float64)
        return draw.to(t) * (size or 1.0)

    @contextmanager
    def moved(self, size: float, only: str) -> Iterator[None]:
        """The sites displaced by size · δ/η; `only`: one of them."""
        self.size, self.only, self.calls = size, only, 0
        shown = [self.sites[n] for n in self.weights if only in ("", n)]
        try:
            for site in shown:
                put(site, site.parameter + size * self.weights[site.name])
            yield
        finally:
            self.size = 0.0
            for site in shown:
                take(site)


class _Otherwise(Exception):
    """A forward has called other sites than the one before."""


def check_cuts(noise: Injection, x: Any, *, unit: bool) -> None:
    """Raises DitherError where gradients do not tell what the sites do to the output. What was
    asked once is not asked again for inputs of as many dimensions. `unit`: all sites, whatever σ
    is.
    """
    inputs = tuple((t.dim(), t.dtype) for t in tensors(x))
    sites = {n: s for n, s in noise.sites.items() if unit or noise.noise_at(s).sigma != 0}
    mark = ("cuts", inputs, tuple(sites))
    if mark in noise.layouts or not sites or noise.stack:
        return
    reader, versions = Nudged(noise, sites), [version(t) for t in tensors(x)]
    with evaluating(noise.model), reading(noise, reader), without_checkpoints():
        try:
            cut = _cut(reader, x, versions)
        except _Otherwise:
            cut = None
    if cut is not None:
        raise DitherError(
            f"R can't be taken at {cut!r}: displaced a little, it moves the output otherwise than "
            "its gradients say. The forward cuts a way behind it (detach, torch.no_grad, a "
            "straight-through estimator); let gradients through, or use dither.expected"
        )
    noise.layouts[mark] = True


def _cut(reader: Nudged, x: Any, versions: list[int]) -> str | None:
    """The first site that moves the output otherwise than its gradients say."""
    noise = reader.noise
    device = next((t.device for t in [*noise.model.parameters(), *tensors(x)]), None)
    with torch.enable_grad(), leaves(noise) as leaf:
        leaf = {n: p for n, p in leaf.items() if n in reader.sites and p.is_floating_point()}
        reader.recording = recording = Recording({}, device, recorded=False)
        graph = recording(lambda: output(noise.model, x))
        reader.recording = None
        z = graph.z.detach()
        if graph.eps > COARSE or not z.numel() or not bool(z.isfinite().all()):
            return None
        if [version(t) for t in tensors(x)] != versions:
            return None  # x is no more what it was
        reader.weights = {n: reader.drawn(p) for n, p in leaf.items()}
        u = torch.randn(COLUMNS, *z.shape, generator=reader.rng, dtype=torch.float64).to(z)
        said = {name: u.new_zeros(COLUMNS, dtype=torch.float64) for name in reader.sites}

        def add(k: int, name: str, g: Tensor, delta: Tensor) -> None:
            said[name][k] += (double(g) * double(delta)).sum()

        if graph.z.requires_grad:
            for k, column in enumerate(u):
                graph.tell(
                    column.unsqueeze(0),
                    lambda n, g, k=k: add(k, *reader.unit[n][:1], g[0], reader.unit[n][1]),
                    replay=None,
                )
                for name, g in graph.own(column, leaf).items():
                    add(k, name, g, reader.weights[name])
    with torch.no_grad():
        if not near(output(noise.model, x), z):
            return None  # another refusal's
        eta = torch.finfo(z.dtype).eps ** (1 / 3)
        sizes = (eta, eta / FINER)
        if all(_differs(reader, x, z, u, said, e, "") for e in sizes):
            for name in said:
                if all(_differs(reader, x, z, u, said, e, name) for e in sizes):
                    return name
    return None


def _differs(
    reader: Nudged, x: Any, z: Tensor, u: Tensor, said: Mapping[str, Tensor], eta: float, only: str
) -> bool:
    """Whether half the change between +δ and −δ is another than the gradients say; their sign may
    be turned (gradient reversal), as R is of squares.
    """
    ends = []
    for sign in (1.0, -1.0):
        with reader.moved(sign * eta, only):
            ends.append(double(output(reader.noise.model, x)))
    found = (double(u) * (ends[0] - ends[1]) / 2).flatten(1).sum(1)
    told = eta * torch.stack([t for n, t in said.items() if only in ("", n)]).sum(0)
    floor = 64 * torch.finfo(z.dtype).eps * double(z).norm() * COLUMNS**0.5
    most = torch.maximum(found.norm(), told.norm())
    off = torch.minimum((found - told).norm(), (found + told).norm())
    return bool(off > SHARE * most + floor)
