"""The whole second-order term of E[Δℓ]:  ½ E_batch Σ_sites tr(Σ_site ∇²ℓ)  =  R + ½ Σ_i ∂ℓ/∂z_i
tr(Σ_site ∇²z_i).

R is its Gauss–Newton part. The residual part vanishes where ∂ℓ/∂z = 0 (at interpolation) and,
away from kinks, for weight noise on piecewise multilinear nets. The kinks of ReLU hold an O(σ²)
part that no second derivative sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from dither.attach.hooks import real
from dither.attach.inject import Injection
from dither.attach.reading import leaves
from dither.attach.site import Site
from dither.calling import output, tensors
from dither.engine.batch_axis import Layout
from dither.engine.certificate import fitting
from dither.engine.functions import check_twice
from dither.engine.recording import Graph, Recording
from dither.loss import AnyLoss
from dither.noise.draw import Basis, Signs
from dither.precision import wide
from dither.regulariser.independence import check_repeats, check_seen, refuse_uncalled
from dither.torch_internals import version


class Second:
    """½ E Σ_k δ_kᵀ ∇²ℓ δ_k with Σ_k δ_k δ_kᵀ = Cov δ: exact over the axes of the noise, or
    sampled with random signs.
    """

    def __init__(
        self, noise: Injection, loss: Any, samples: int | None, differentiable: bool
    ) -> None:
        self.noise, self.loss, self.samples = noise, loss, samples
        self.differentiable = differentiable
        self.probes: list[tuple[Site, Tensor, Tensor]] = []  # site, h, probe
        self.recording: Recording | None = None  # None: nothing is tapped
        self.graph = 0  # what tells the graph of the forward from others

    def activation(self, site: Site, h: Tensor) -> Tensor | None:
        """Adds 0 to h, so that there is something to differentiate by."""
        if self.recording is None:
            return None
        real(site, h)
        probe = torch.zeros_like(h, requires_grad=True)
        site.seen = tuple(h.shape)
        value = h if self.differentiable else h.detach()
        self.probes.append((site, value.clone(), probe))  # the model may write to h later
        return self.recording.tap(site.name, h + probe)[1]

    def record(self, x: Any, leaf: dict[str, Tensor]) -> Graph:
        """A forward with every site met. Raises DitherError where one is not seen."""
        device = next((t.device for t in [*self.noise.model.parameters(), *tensors(x)]), None)
        self.recording = Recording(leaf, device, recorded=True)
        versions = [version(t) for t in tensors(x)]
        model = self.noise.wrapper if self.differentiable else self.noise.model
        try:
            graph = self.recording(lambda: output(model, x))
        finally:
            self.recording = None
        self.graph = graph.nodes
        laws = {site.name: self.noise.noise_at(site) for site, *_ in self.probes}
        if not (laws or leaf):
            raise refuse_uncalled(self.noise)
        check_seen(graph, {name: law for name, law in laws.items() if law.sigma != 0})
        check_twice(graph.doubtful, 'curvature="full"')
        if [version(t) for t in tensors(x)] == versions:  # else x is no more what it was
            check_repeats(self.noise.model, graph.z, x)
        return graph

    def run(self, x: Any, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, {site: its share})."""
        with leaves(self.noise) as leaf:
            z = self.record(x, leaf).z
            each = self.loss.per_sample(wide(z), y)
            if isinstance(self.loss, AnyLoss):
                self.loss.check_apart(wide(z), y)
                self.loss.check_kinks(wide(z), y)
            for name, w in leaf.items():
                held = w if self.differentiable else w.detach()
                self.probes.append((self.noise.sites[name], held, w))
            by_site = {name: torch.zeros_like(each.mean()) for name in self.noise.sites}
            if self.probes and each.requires_grad:
                probes = [p for *_, p in self.probes]
                slopes = torch.autograd.grad(
                    each.sum(), probes, create_graph=True, allow_unused=True
                )
                for (site, h, probe), slope in zip(self.probes, slopes, strict=True):
                    if slope is not None and slope.requires_grad:
                        axes = self.leading(site, probe, z)
                        term = self.noise.share(site) * self.trace(site, h, probe, slope, axes)
                        by_site[site.name] = by_site[site.name] + 0.5 / each.shape[0] * term
        return each.mean(), by_site

    def trace(self, site: Site, h: Tensor, probe: Tensor, slope: Tensor, leading: int) -> Tensor:
        """tr(Cov δ · ∇²ℓ), summed over the batch."""
        noise, here = self.noise.noise_at(site), self.noise.here(site, h)
        total = torch.zeros((), device=h.device)
        if noise.sigma == 0:
            return total
        for weight, rng in self.directions(leading):
            delta = noise.displace(here, rng)
            fixed = delta if self.differentiable else delta.detach()
            keep = {"retain_graph": True, "create_graph": self.differentiable, "allow_unused": True}
            (curved,) = torch.autograd.grad(slope, probe, fixed.expand_as(slope), **keep)
            if curved is not None:
                total = total + weight * (wide(curved) * wide(fixed)).sum()
        return total

    def leading(self, site: Site, probe: Tensor, z: Tensor) -> int:
        """How many leading dimensions count samples, which can all take one axis at once.

        0 where dimension 0 does not keep the samples apart, as in sequence-first models: then every
        element of the batch is an axis of its own.
        """
        stack, batch = self.noise.stack, z.shape[0]
        if site.side == "parameter" or stack:
            return stack + (site.side != "parameter")
        if self.samples is not None or self.noise.batch_dim or probe.shape[0] != batch:
            return 0
        (left,), (seen,) = fitting(z, [probe], [[Layout("dim", 0, batch)]])
        return int(bool(left) and seen)

    def directions(self, leading: int) -> Iterator[tuple[float, Callable[[Any, Tensor], Tensor]]]:
        """(weight, source) of each direction: the axes, one by one, or random signs."""
        if self.samples is not None:
            yield from ((1 / self.samples, Signs()) for _ in range(self.samples))
            return
        axis, k = Basis(0, leading), 0
        while k == 0 or k < axis.size:
            axis = Basis(k, leading)
            yield 1.0, axis
            k += 1
