"""Whether gradients tell what a displacement of the sites does to the output.

A forward may cut a way behind a site: `h.detach()`, a part under `no_grad`, a straight-through
estimator. The noise goes that way, and no gradient does. With small displacements δ_s of all sites
and random columns u_k of the output,

    ⟨u_k, z(δ) − z(−δ)⟩/2  =  Σ_s ⟨g_s(u_k), δ_s⟩  +  O(δ³),     g_s(u) = J_sᵀ u

is asked at the first call with inputs of so many dimensions, and again where the graph of the
forward has other functions or other ways between them: a flag, an argument or a value may cut. It
is asked of sites in up to eight groups, and of each site by itself in a group where it fails; in
eval mode, and in train mode too where the model is in it, with the same draws each time. Train mode
is left out where batch norm uses the batch's own statistics, as many layers of it magnify a
displacement beyond what single precision can tell, and where a forward writes to parameters.

It is asked near the sites' tensors and not at them, as a net may lie at a kink (the ReLU of a unit
that is 0), and where it fails three times anew. A net may be astray there, its output further from
that at the sites' own tensors than that is large: a few units of a dead net come to life, and all
that moves the output lies close to their kinks. Then it must fail nine times. A way that carries
less than a twentieth of what its site does is not found, in single precision not always one of a
fifth, or of a half in a net astray.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from dither.attach.inject import Injection
from dither.attach.reading import reading
from dither.attach.shadow import showing
from dither.attach.site import Site
from dither.calling import evaluating, mixing, output, tensors
from dither.engine.recording import Recording
from dither.errors import DitherError
from dither.precision import double
from dither.regulariser.one_by_one import near
from dither.torch_internals import version, without_checkpoints

COLUMNS = 4  # u
ROUNDS = 3  # of draws, all of which must find a site cut: a kink beside the point is no cut
ASTRAY = 9  # the same of rounds in which the net may be astray
GROUPS = 8  # of sites, that are asked one after another
SHARE = 0.05  # of the change, that may go unexplained: kinks and the third order
NEAR = 4.0  # η · rms: how far from the sites' tensors
SIZES = (1 / 4, 1 / 32)  # η · rms: of δ; a jump that the first meets the second leaves out
COARSE = 1e-4  # ε of a type in which differences say nothing
MOST = 16  # graphs that are asked, of a model whose forward takes another way each time


class Nudged:
    """A reader that taps the sites, and then displaces them: by NEAR · η · `base`, and by
    size · `unit`, both random and of the size of the tensor.
    """

    def __init__(self, noise: Injection, sites: Mapping[str, Site], own: bool) -> None:
        self.noise, self.sites, self.eta = noise, sites, 0.0
        self.own = own  # whether the model is in its own mode, where it may draw and write
        self.seed = secrets.randbits(62)
        self.recording: Recording | None = None
        self.still = False  # displaces nothing, and asks nothing of the calls
        self.rng = torch.Generator().manual_seed(secrets.randbits(62))
        self.only: Sequence[str]
        self.met: list[tuple[str, Tensor, Tensor]] = []  # name, base, unit of each call, in order
        self.weights: dict[str, tuple[Tensor, Tensor]] = {}  # the same of each parameter
        self.size, self.only, self.calls = 0.0, (), 0

    def activation(self, site: Site, h: Tensor) -> Tensor | None:
        if self.still or site.name not in self.sites or not h.is_floating_point():
            return None
        if self.recording is not None:
            base, unit = self.drawn(h)
            self.met.append((site.name, base, unit))
            return self.recording.tap(site.name, h + NEAR * self.eta * base)[1]
        name, base, unit = self.met[self.calls] if self.calls < len(self.met) else ("", h, h)
        self.calls += 1
        if name != site.name or unit.shape != h.shape:
            raise _Otherwise
        return h + NEAR * self.eta * base + self.shift(name) * unit

    def forward(self, x: Any) -> Tensor:
        """The output, with the same draws and the same buffers each time."""
        with alike(self.noise.model, self.seed) if self.own else nullcontext():
            return output(self.noise.model, x)

    def shift(self, name: str) -> float:
        return self.size if name in self.only else 0.0

    def drawn(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(base, unit) times the rms of t (1 where t is 0): base ±U(½, 3/2), away from where t
        lies, unit N(0, 1).
        """
        t = t.detach()
        size = float(double(t).square().mean().sqrt()) if t.numel() else 0.0
        base = 0.5 + torch.rand(t.shape, generator=self.rng, dtype=torch.float64)
        signs = torch.randint(2, t.shape, generator=self.rng) * 2 - 1
        unit = torch.randn(t.shape, generator=self.rng, dtype=torch.float64)
        return (base * signs * (size or 1.0)).to(t), (unit * (size or 1.0)).to(t)

    @contextmanager
    def moved(self, size: float = 0.0, only: Sequence[str] = ()) -> Iterator[dict[str, Tensor]]:
        """The sites displaced, `only` some of them by `size` too; {parameter: what is read}."""
        self.size, self.only, self.calls = size, only, 0
        shown = {}
        for name, (base, unit) in self.weights.items():
            held = self.sites[name].parameter.detach()
            value = held + NEAR * self.eta * base + self.shift(name) * unit
            shown[name] = value.requires_grad_(torch.is_grad_enabled())
        with showing((self.sites[name], value) for name, value in shown.items()):
            yield {name: getattr(*self.sites[name].owners[0]) for name in shown}


@contextmanager
def alike(model: torch.nn.Module, seed: int) -> Iterator[None]:
    """Inside, torch draws from `seed`, and what is written to buffers is thrown away."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    held = {module: dict(module._buffers) for module in model.modules()}
    with torch.random.fork_rng(devices=[d.index for d in devices]):
        torch.default_generator.manual_seed(seed)
        for device in devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        try:
            for module, buffers in held.items():
                for name, b in buffers.items():
                    module._buffers[name] = None if b is None else b.clone()
            yield
        finally:
            for module, buffers in held.items():
                module._buffers.update(buffers)


class _Otherwise(Exception):
    """A forward has called other sites than the one before."""


def check_gradients(
    noise: Injection, x: Any, *, unit: bool, graph: Any, writes: bool = False
) -> None:
    """Raises DitherError where gradients do not tell what the sites do to the output. What was
    asked once is not asked again for inputs of as many dimensions, the same mode and the same
    `graph` (what tells the graph of the forward from others). `unit`: all sites, whatever σ is.
    `writes`: a forward in the model's own mode writes to parameters, and is not repeated.
    """
    inputs = tuple((t.dim(), t.dtype) for t in tensors(x))
    sites = {n: s for n, s in noise.sites.items() if unit or noise.noise_at(s).sigma != 0}
    if not sites or noise.stack:
        return
    model, mark = noise.model, ("gradients", inputs, tuple(sites))
    training = any(module.training for module in model.modules())
    asks_own = training and not writes and not mixing(model)
    still: set[Any] = noise.layouts.setdefault((*mark, "eval"), set())
    if not still if asks_own else graph not in still and len(still) < MOST:
        with evaluating(model):
            _check(noise, x, sites, own=False)
        still.add(graph)
    if not asks_own:
        return
    own: set[Any] = noise.layouts.setdefault((*mark, "train"), set())
    if graph not in own and len(own) < MOST:
        _check(noise, x, sites, own=True)
        own.add(graph)


def _check(noise: Injection, x: Any, sites: Mapping[str, Site], own: bool) -> None:
    versions = [version(t) for t in tensors(x)]
    cut, rounds, straight = list(sites), 0, 0
    while cut:
        reader = Nudged(noise, sites, own)
        with reading(noise, reader), without_checkpoints():
            try:
                found, astray = _cut(reader, x, versions, cut)
            except _Otherwise:
                break
        cut, rounds, straight = found, rounds + 1, straight + (not astray)
        if cut and (straight == ROUNDS or rounds == ASTRAY):
            raise DitherError(
                f"R can't be taken at {cut[0]!r}: displaced a little, it moves the output "
                "otherwise than its gradients say. The forward cuts a way behind it (detach, "
                "torch.no_grad, a straight-through estimator); let gradients through, or use "
                "dither.expected"
            )


def _cut(
    reader: Nudged, x: Any, versions: list[int], asked: Sequence[str]
) -> tuple[list[str], bool]:
    """Those of the asked sites that move the output otherwise than their gradients say, and whether
    the net is astray.
    """
    noise = reader.noise
    device = next((t.device for t in [*noise.model.parameters(), *tensors(x)]), None)
    held = {n: s.parameter for n, s in reader.sites.items() if s.side == "parameter"}
    held = {n: p for n, p in held.items() if p.is_floating_point()}
    types = [t.dtype for t in (*held.values(), *tensors(x), *noise.model.parameters())]
    types = [t for t in types if t.is_floating_point]
    if not types:
        return [], False
    reader.eta = max(torch.finfo(t).eps for t in types) ** (1 / 3)
    reader.weights = {n: reader.drawn(p) for n, p in held.items()}
    with torch.enable_grad(), reader.moved() as leaf:
        reader.recording = recording = Recording({}, device, recorded=False)
        graph = recording(lambda: reader.forward(x))
        reader.recording = None
        z = graph.z.detach()
        if graph.eps > COARSE or not z.numel() or not bool(z.isfinite().all()):
            return [], False
        if [version(t) for t in tensors(x)] != versions:
            return [], False  # x is no more what it was
        u = torch.randn(COLUMNS, *z.shape, generator=reader.rng, dtype=torch.float64).to(z)
        said = {name: u.new_zeros(COLUMNS, dtype=torch.float64) for name in reader.sites}

        def add(k: int, name: str, g: Tensor, unit: Tensor) -> None:
            said[name][k] += (double(g) * double(unit)).sum()

        for k, column in enumerate(u if graph.z.requires_grad else ()):
            graph.tell(
                column.unsqueeze(0),
                lambda n, g, k=k: add(k, reader.met[n][0], g[0], reader.met[n][2]),
                replay=None,
            )
            for name, g in graph.own(column, leaf).items():
                add(k, name, g, reader.weights[name][1])
    with torch.no_grad():
        with reader.moved():
            if not near(reader.forward(x), z):
                return [], False  # another refusal's
        found: set[str] = set()
        for first in range(min(GROUPS, len(asked))):
            group = asked[first::GROUPS]
            if _differs(reader, x, z, u, said, SIZES[0], group):
                for name in group:
                    if all(_differs(reader, x, z, u, said, s, [name]) for s in SIZES):
                        found.add(name)
        reader.still = True
        plain = double(reader.forward(x)) if found else double(z)
    astray = bool((double(z) - plain).norm() > plain.norm() > 0)
    return [name for name in asked if name in found], astray


def _differs(
    reader: Nudged,
    x: Any,
    z: Tensor,
    u: Tensor,
    said: Mapping[str, Tensor],
    size: float,
    only: Sequence[str],
) -> bool:
    """Whether half the change between +δ and −δ is another than the gradients say; their sign may
    be turned (gradient reversal), as R is of squares.
    """
    eps, size = torch.finfo(z.dtype).eps, size * reader.eta
    found = _moved(reader, x, u, size, only)
    told = size * torch.stack([t for n, t in said.items() if n in only]).sum(0)
    most = torch.maximum(found.norm(), told.norm())
    off = torch.minimum((found - told).norm(), (found + told).norm())
    floor = 64 * eps * double(z).norm() * COLUMNS**0.5
    if not bool(off > SHARE * most + floor):
        return False
    rounding = _moved(reader, x, u, eps, only)  # where much cancels, it is more than z's own
    return bool(off > SHARE * most + floor + 16 * rounding.norm())


def _moved(reader: Nudged, x: Any, u: Tensor, size: float, only: Sequence[str]) -> Tensor:
    """⟨u_k, z(δ) − z(−δ)⟩/2 [K]."""
    ends = []
    for sign in (1.0, -1.0):
        with reader.moved(sign * size, only):
            ends.append(double(reader.forward(x)))
    return (double(u) * (ends[0] - ends[1]) / 2).flatten(1).sum(1)
