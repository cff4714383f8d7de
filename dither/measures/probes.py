"""Probes of a Hessian's trace in activation space: the mean of vᵀ (∇² ℓ) v is the trace in the
parameters.

For z_t = W a_t take v_t = s∘V(r∘a_t), with random signs r and s for each sample and V for all. With
one position it is s ‖a‖, and for convolutions s ⟨a_t, r⟩. Then E v_t v_t'ᵀ = (a_t·a_t') I. Samples
are uncorrelated, so the spread of a probe is that of one sample over √B. Parameters without such a
product (embeddings, bare parameters) are probed directly, in the same pass. Proof: docs/math.md,
§11.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dither.calling import output, thawed
from dither.engine.batch_axis import Layout
from dither.engine.certificate import fitting
from dither.engine.functions import check_twice, is_doubtful
from dither.engine.ghost import Use
from dither.engine.kinds import Convolution, Kind, Outer, Scale, Sum
from dither.engine.uses import Uses
from dither.loss import AnyLoss
from dither.noise.draw import key
from dither.plain import twice
from dither.signs import signs
from dither.torch_internals import functions_behind

FOLDED = ("major", "minor")  # dimension 0 is (sample, place), or (place, sample)


def probed(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    loss: Any,
    x: Any,
    y: Tensor,
    probes: range,
    seed: tuple[int, int],
) -> Tensor:
    """One forward and backward with probes in place, then one double backward for each probe."""
    with probing("trace", model, parameters, loss, x, y) as curved:
        rows = []
        for probe in probes:
            generator = torch.Generator(curved.device).manual_seed(key(*seed, probe))
            rows.append(_probe(curved, generator))
        return torch.stack(rows, 1)


class Curved(NamedTuple):
    """A recorded batch: the points (probes, then bare parameters) with their slopes of the mean
    loss, those of them that depend on a point.
    """

    places: "Places"
    parameters: Mapping[str, Tensor]
    live: list[tuple[Tensor, Tensor]]
    device: torch.device

    @property
    def bare(self) -> dict[str, Tensor]:
        """The parameters that are probed directly."""
        return {n: p for n, p in self.parameters.items() if n not in self.places.covered}

    def times(self, v: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """∇²L v by the identity of the point; points without a curvature are left out."""
        if not self.live:  # L is linear here
            return {}
        points, slopes = zip(*self.live, strict=True)
        vs = [v[id(p)] for p in points]
        found = torch.autograd.grad(slopes, points, vs, retain_graph=True, allow_unused=True)
        return {id(p): hv for p, hv in zip(points, found, strict=True) if hv is not None}


@contextmanager
def probing(
    what: str, model: nn.Module, parameters: Mapping[str, Tensor], loss: Any, x: Any, y: Tensor
) -> Iterator[Curved]:
    """One forward and backward with probes in place, ready to be differentiated again."""
    frozen = [p for p in parameters.values() if not p.requires_grad]
    with torch.enable_grad(), twice(True), thawed(frozen):
        places = Places(parameters)
        with places:
            z = output(model, x)
        check_twice(filter(is_doubtful, functions_behind(z)), what)
        each = loss.per_sample(z, y)
        if isinstance(loss, AnyLoss):
            loss.check_apart(z, y)
            loss.check_kinks(z, y)
        places.settle_in(z)
        bare = [parameters[n] for n in parameters if n not in places.covered]
        points = [t.probe for t in places.kept] + bare
        slopes = torch.autograd.grad(each.mean(), points, create_graph=True, allow_unused=True)
        live = [
            (p, s) for p, s in zip(points, slopes, strict=True) if s is not None and s.requires_grad
        ]
        yield Curved(places, parameters, live, z.device)


def _probe(curved: Curved, generator: torch.Generator) -> Tensor:
    """The part of each parameter in vᵀ ∇²L v for one draw of v, [P]."""
    drawn = {id(t.probe): t.vectors(generator) for t in curved.places.kept}
    for name, p in curved.bare.items():
        drawn[id(p)] = {name: signs(p, generator)}
    vs = {at: torch.stack(list(parts.values())).sum(0) for at, parts in drawn.items()}
    sums = dict.fromkeys(curved.parameters, 0.0)
    for at, hv in curved.times(vs).items():
        for name, part in drawn[at].items():
            sums[name] += (hv * part).sum().item()
    return torch.tensor([sums[n] for n in curved.parameters], dtype=torch.float64)


class Places(Uses):
    """Puts a zero probe behind each product with a parameter, in one forward."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__(parameters, lambda out, uses: out)
        self.probe_points: list[ProbePoint] = []
        self.kept: list[ProbePoint] = []
        self.covered: set[str] = set()
        self.recording, self.differentiates = True, False

    def meet(self, out: Tensor, *used: tuple[Any, Kind], features: int = 1) -> Tensor:
        if out.is_complex():
            return super().meet(out, *used, features=features)
        point = ProbePoint(torch.zeros_like(out, requires_grad=True), features)
        for w, kind in used:
            name = self.name_of(w)
            if name:
                kind.a = kind.a.detach() if isinstance(kind.a, Tensor) else kind.a
                region = (w.storage_offset(), tuple(w.shape), tuple(w.stride()))
                point.uses.append(
                    Use(name, kind, w.shape, region, out.shape, out.dtype, features, [])
                )
        self.uses += point.uses
        self.probe_points.append(point)
        probed = out + point.probe
        if probed.requires_grad:
            probed.register_hook(self._told)
        return probed

    def _told(self, g: Tensor) -> None:
        """A gradient arrived during the forward: the model differentiates inside."""
        self.differentiates |= self.recording

    def settle_in(self, z: Tensor) -> None:
        """Keep the probes whose parameters are used there alone, and whose batch dimension is
        known.
        """
        self.recording = False
        if self.differentiates:  # then the operand of a product is no constant
            return
        count = Counter(use.name for use in self.uses)
        self.settle(z.shape[0])
        stray = self.walk(z).stray
        fit = [
            point
            for point in self.probe_points
            if point.uses
            and point.product
            and all(count[u.name] == 1 and u.name not in stray for u in point.uses)
        ]
        if len(z) > 1 and fit:
            layouts, seen = fitting(
                z, [point.probe for point in fit], [point.layouts for point in fit]
            )
            for point, left in zip(fit, layouts, strict=True):
                point.layouts = left
        else:
            seen = [True] * len(fit)
        self.kept = [point for point, s in zip(fit, seen, strict=True) if point.layouts and s]
        self.covered = {use.name for point in self.kept for use in point.uses}


class ProbePoint:
    """A zero probe behind z_t = W a_t (+ b), and how to draw v there."""

    def __init__(self, probe: Tensor, features: int) -> None:
        self.probe, self.features = probe, features
        self.uses: list[Use] = []
        self._layouts: list[Layout] | None = None

    @property
    def layouts(self) -> list[Layout]:
        """The layouts that are left: a dimension counts the samples, or they are folded into the
        first.
        """
        if self._layouts is None:
            self._layouts = [
                c for c in self.uses[0].candidates
                if c.way in ("dim", *FOLDED) and (self.features == 1 or (c.way, c.at) == ("dim", 0))
            ]  # fmt: skip
        return self._layouts

    @layouts.setter
    def layouts(self, left: list[Layout]) -> None:
        self._layouts = left

    @property
    def product(self) -> bool:
        """Whether all uses are a matrix product, a convolution, a bias or a norm's scale, the last
        two along the dimension of the features or of the channels.
        """
        kinds = [use.kind for use in self.uses]
        plain = all(isinstance(k, Outer | Convolution | Sum) for k in kinds)
        plain = plain and not any(
            isinstance(k, Convolution) and k.options["is_transposed"] for k in kinds
        )
        return plain and (
            self.features == 1
            or all(isinstance(k, Convolution) or getattr(k, "channels", False) for k in kinds)
        )

    def vectors(self, generator: torch.Generator) -> dict[str, Tensor]:
        """{parameter: its v in the probe's shape}."""
        return {use.name: self._v(use, generator) for use in self.uses}

    def _v(self, use: Use, generator: torch.Generator) -> Tensor:
        layout, probe, a = self.layouts[0], self.probe, use.kind.a
        at, batch = layout.at, layout.batch
        if folded := layout.way in FOLDED:
            at = FOLDED.index(layout.way)
            sizes = (batch, -1) if at == 0 else (-1, batch)
            probe, a = (t.unflatten(0, sizes) if isinstance(t, Tensor) else t for t in (probe, a))
        v = self._drawn(use, probe, a, at, batch, generator)
        return v.flatten(0, 1) if folded else v

    def _drawn(
        self, use: Use, probe: Tensor, a: Any, at: int, batch: int, generator: torch.Generator
    ) -> Tensor:
        """A draw of v in the shape of the probe. `at`: the dimension of it and of a that counts
        samples.
        """
        one = [1] * probe.dim()
        one[at] = batch
        channel = probe.dim() - self.features if self.features > 1 else -1
        one[channel] = probe.shape[channel]
        s = signs(probe.new_empty(one), generator)  # per sample and output, one for all positions
        if isinstance(use.kind, Scale):
            return s * a
        if isinstance(use.kind, Sum):
            return s.expand_as(probe)
        if isinstance(use.kind, Convolution):
            groups = use.kind.options["groups"]
            products = patch_products(use.kind, patch_signs(use, generator))
            return s * products.repeat_interleave(probe.shape[1] // groups, 1)
        if a.numel() == batch * a.shape[-1]:
            return s * a.norm(dim=-1, keepdim=True)
        one[-1] = a.shape[-1]
        v = signs(a.new_empty(probe.shape[-1], a.shape[-1]), generator)
        return s * F.linear(a * signs(a.new_empty(one), generator), v)


def patch_signs(use: Use, generator: torch.Generator) -> Tensor:
    """Signs r for the patches of each sample and group, [N·groups, I/groups, *kernel]."""
    x, groups = use.kind.a, use.kind.options["groups"]  # pyright: ignore
    return signs(x.new_empty(len(x) * groups, use.shape[1], *use.shape[2:]), generator)


def patch_products(kind: Convolution, r: Tensor) -> Tensor:
    """⟨patch_t, r⟩ of each sample and group: [N, groups, *positions]."""
    x, o = kind.a, kind.options
    n, groups = x.shape[0], o["groups"]
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[x.dim() - 2]
    how = (o["stride"], o["padding"], o["dilation"])
    out = convolve(x.reshape(1, -1, *x.shape[2:]), r, None, *how, n * groups)
    return out.view(n, groups, *out.shape[2:])
