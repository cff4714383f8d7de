"""The trace of the loss' Hessian, or of its Gauss–Newton part, in the parameters.

    tr ∇²L = Σ_W tr ∇²_W L,  tr GN = Σ_W E_batch Σ_c ‖∂⟨S_c, z_i⟩/∂W‖²,   S Sᵀ = ∂²ℓ/∂z²

Where the network is linear in each parameter tensor but for kinks (`measures.multilinear`), both
are equal and the trace is exact at the price of `explicit`. Elsewhere it is probed in activation
space: for z_t = W a_t, sample by sample, r and s random signs,

    v_t = s ⟨a_t, r⟩   (s ‖a‖ where there is one position)   ⇒   E vᵀ (∇²_z ℓ) v = tr ∇²_W ℓ

since E v_t v_t'ᵀ = (a_t·a_t') I. Each sample has its own signs, so the spread of a probe is that of
one sample over √B; a probe in parameter space shares its signs. Parameters without such a product
(norms, embeddings, bare ones) are probed as they are, in the same pass. Proof: docs/math.md, §11.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dither import loss as losses
from dither.draw import key
from dither.errors import DitherError
from dither.estimate import Estimate
from dither.explicit import explicit
from dither.forward import check_devices, evaluating, output, tensors, twice
from dither.ghost import Use
from dither.inject import inject
from dither.layout import Layout, belongs, start_at
from dither.measures.multilinear import alone, multilinear
from dither.noise import Weight
from dither.uses import Uses

__all__ = ["Trace", "trace"]

PILOT = 16  # probes that only tell how many there must be; none of them is kept
STEIN = (PILOT - 1) / (PILOT - 3)  # E t² of Student's t at the pilot's PILOT − 1 degrees of freedom


class Trace(NamedTuple):
    """The trace over a data set: `value`, the standard error `sem` its probes left (0 where exact).

    by_parameter: {name: Estimate}; probes: how many of each batch are in the mean (0 where exact).
    """

    value: float
    sem: float
    by_parameter: dict[str, Estimate]
    probes: int

    @property
    def exact(self) -> bool:
        """No probe was needed."""
        return self.probes == 0

    @property
    def by_layer(self) -> dict[str, float]:
        """{module name: trace over its own parameters}."""
        found: dict[str, float] = {}
        for name, part in self.by_parameter.items():
            layer = name.rpartition(".")[0]
            found[layer] = found.get(layer, 0.0) + part.value
        return found


def trace(
    model: nn.Module,
    loss: Any,
    data: Any,
    *,
    of: str = "hessian",
    precision: float | None = None,
    probes: int | None = None,
    limit: int = 4096,
    seed: int = 0,
) -> Trace:
    """Trace of ∇²_W L of the mean loss over a data set, per parameter; in eval mode, without noise.

    loss       as in `explicit`.
    data       (x, y) or [x, y], or an iterable of such batches that can be gone through twice (a
               list, a DataLoader without shuffling).
    of         "hessian" or "gauss_newton" (never negative, always exact).
    precision  the root mean square error to reach, in the trace's own units. Two stages (Stein
               1945): the spread s of a pilot of 16 probes says how many there must be, N = E[t²]
               s²/precision² ≥ 16; value and sem come from N others alone, so that how many there
               are and what they say are independent. One call's sem may be somewhat above or below.
    probes     instead: how many probes a batch gets, ≥ 2 (default 16 where neither is given).

    Cost: exact, C − 1 columns of √H, each a third to a half of a plain step, and one step more for
    finding where the samples are (an `inject(model, Weight(1.0))` that is kept finds it once: twice
    its R is the trace). A probe: about 1.5 steps.
    Raises DitherError where `limit` probes would not reach the precision, the data or a batch is
    empty, or the model was made under torch.inference_mode().
    """
    if of not in ("hessian", "gauss_newton"):
        raise DitherError(f"trace is of 'hessian' or 'gauss_newton': got {of!r}")
    if precision is not None and probes is not None:
        raise DitherError(
            f"trace takes a precision or a number of probes: got {precision!r} and {probes!r}; "
            "give one of them"
        )
    if precision is not None and not (precision > 0 and math.isfinite(precision)):
        raise DitherError(f"precision is a standard error > 0: got {precision!r}")
    if probes is not None and (not isinstance(probes, int) or probes < 2):
        raise DitherError(f"probes is a whole number ≥ 2, one has no spread: got {probes!r}")
    batches = _batches(data)
    each = losses.get(loss)
    with torch.inference_mode(False), evaluating(model), alone(model):
        _check_differentiable(model)
        first = next(_ready(batches), None)
        if first is None:
            raise DitherError("trace needs at least one batch (x, y): got none")
        check_devices(model, *first)
        if of == "gauss_newton" or multilinear(model, first[0]):
            return _exact(model, each, batches)
        drawn = range(probes or 16)
        if precision is not None:
            pilot = _probed(model, each, batches, range(PILOT), seed).sum(0)
            need = max(PILOT, math.ceil(STEIN * pilot.var().item() / precision**2))
            if need > limit:
                raise DitherError(
                    f"a standard error of {precision:g} needs about {need} probes and the limit is "
                    f"{limit}: ask for less, or raise limit"
                )
            drawn = range(PILOT, PILOT + need)
        found = _probed(model, each, batches, drawn, seed)
    names = [name for name, _ in model.named_parameters()]
    parts = {name: Estimate.of(row) for name, row in zip(names, found, strict=True)}
    total = Estimate.of(found.sum(0))
    return Trace(total.value, total.sem, parts, found.shape[1])


def _batches(data: Any) -> Iterable[tuple[Any, Tensor]]:
    if isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[1], Tensor):
        return [(data[0], data[1])]
    if isinstance(data, Iterator):
        raise DitherError(
            "trace goes through the data more than once: got an iterator; pass a list"
        )
    return data


def _ready(batches: Iterable[tuple[Any, Tensor]]) -> Iterator[tuple[Any, Tensor]]:
    """The batches, none of them empty, as autograd can save them."""
    for x, y in batches:
        if len(y) == 0:
            raise DitherError("trace needs at least one sample in a batch: got an empty one")
        yield _savable(x), _savable(y)


def _savable(x: Any) -> Any:
    """What was made in inference mode as a plain copy."""
    if isinstance(x, Tensor):
        return x.clone() if x.is_inference() else x
    if not any(t.is_inference() for t in tensors(x)):
        return x
    if isinstance(x, Mapping):
        return {name: _savable(t) for name, t in x.items()}
    return tuple(map(_savable, x))


def _check_differentiable(model: nn.Module) -> None:
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        if t.is_inference():
            raise DitherError(
                f"trace differentiates, but {name!r} was made under torch.inference_mode(): make "
                "or load the model under torch.no_grad() instead"
            )


def _exact(model: nn.Module, loss: Any, batches: Iterable[tuple[Any, Tensor]]) -> Trace:
    """Twice R of weight noise at σ = 1."""
    sums: dict[str, float] = {}
    count = 0
    with inject(model, Weight(1.0)) as noise, torch.no_grad():
        for x, y in _ready(batches):
            count += len(y)
            for name, part in explicit(noise, x, y, loss).by_site.items():
                sums[name] = sums.get(name, 0.0) + 2 * len(y) * part.item()
    parts = {name: Estimate(s / count, 0.0) for name, s in sums.items()}
    return Trace(sum(p.value for p in parts.values()), 0.0, parts, 0)


def _probed(
    model: nn.Module, loss: Any, batches: Iterable[tuple[Any, Tensor]], probes: range, seed: int
) -> Tensor:
    """[parameters, probes]: the mean over the data of each probe's estimate."""
    total, count = torch.zeros(()), 0
    for number, (x, y) in enumerate(_ready(batches)):
        total = total + len(y) * _batch(model, loss, x, y, probes, (seed, number))
        count += len(y)
    return total / count


def _batch(
    model: nn.Module, loss: Any, x: Any, y: Tensor, probes: range, seed: tuple[int, int]
) -> Tensor:
    """One forward and backward with probes in place, then one double backward for each probe."""
    parameters = dict(model.named_parameters())
    frozen = [p for p in parameters.values() if not p.requires_grad]
    with torch.enable_grad(), twice(True), _leaves(frozen):
        places = Places({id(p): name for name, p in parameters.items()})
        with places:
            z = output(model, x)
        each = loss.per_sample(z, y)
        places.settle_in(z)
        bare = [parameters[n] for n in parameters if n not in places.covered]
        points = [t.probe for t in places.kept] + bare
        slopes = torch.autograd.grad(each.mean(), points, create_graph=True, allow_unused=True)
        live = [
            (p, s) for p, s in zip(points, slopes, strict=True) if s is not None and s.requires_grad
        ]
        rows = []
        for probe in probes:
            generator = torch.Generator(z.device).manual_seed(key(*seed, probe))
            rows.append(_probe(places, parameters, live, generator))
        return torch.stack(rows, 1)


def _probe(
    places: "Places", parameters: Mapping[str, Tensor], live: list, generator: torch.Generator
) -> Tensor:
    """vᵀ ∇²L v of one draw of v, shared out among the parameters [P]."""
    drawn = {id(t.probe): t.signs(generator) for t in places.kept}
    for name, p in parameters.items():
        if name not in places.covered:
            drawn[id(p)] = {name: _signs(p, generator)}
    if not live:  # nothing is curved
        return torch.zeros(len(parameters), dtype=torch.float64)
    points, slopes = zip(*live, strict=True)
    v = [torch.stack(list(drawn[id(p)].values())).sum(0) for p in points]
    curved = torch.autograd.grad(slopes, points, v, retain_graph=True, allow_unused=True)
    found = dict.fromkeys(parameters, 0.0)
    for p, hv in zip(points, curved, strict=True):
        for name, part in drawn[id(p)].items() if hv is not None else ():
            found[name] += (hv * part).sum().item()
    return torch.tensor([found[n] for n in parameters], dtype=torch.float64)


class Places(Uses):
    """Puts a zero probe behind each product with a parameter, in one forward."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__(names, torch.empty(0), differentiable=True)
        self.taps: list[Tap] = []
        self.kept: list[Tap] = []
        self.covered: set[str] = set()

    def meet(
        self, out: Tensor, *uses: tuple[Any, str, Any, dict[str, Any]], features: int = 1
    ) -> Tensor:
        tap = Tap(torch.zeros_like(out, requires_grad=True), features)
        for w, kind, a, options in uses:
            name = self.name_of(w)
            if name:
                a = a.detach() if isinstance(a, Tensor) else a
                tap.uses.append(Use(name, kind, a, w.shape, (), out.shape, features, options))
        self.uses += tap.uses
        self.taps.append(tap)
        return out + tap.probe

    def settle_in(self, z: Tensor) -> None:
        """Keep the probes whose parameters are used there only, in a layout that is known."""
        count = Counter(use.name for use in self.uses)
        self.settle(z.shape[0])
        stray = self.stray(z)
        fit = [
            tap
            for tap in self.taps
            if tap.uses
            and tap.product
            and all(count[u.name] == 1 and u.name not in stray for u in tap.uses)
        ]
        silent = set(map(id, fit))
        for i in (
            dict.fromkeys((0, z.shape[0] - 1)) if fit else ()
        ):  # whose gradients must stay with them
            start = start_at(z, i)
            probes = [tap.probe for tap in fit]
            found = torch.autograd.grad(z, probes, start, retain_graph=True, allow_unused=True)
            for tap, g in zip(fit, found, strict=True):
                if g is not None:
                    tap.layouts = [c for c in tap.layouts if belongs(g, c, tap.features, i)]
                    silent -= {id(tap)} if g.any() else set()
        self.kept = [tap for tap in fit if tap.layouts and id(tap) not in silent]
        self.covered = {use.name for tap in self.kept for use in tap.uses}


class Tap:
    """A zero probe behind z_t = W a_t (+ b), and how to draw v there."""

    def __init__(self, probe: Tensor, features: int) -> None:
        self.probe, self.features = probe, features
        self.uses: list[Use] = []
        self._layouts: list[Layout] | None = None

    @property
    def layouts(self) -> list[Layout]:
        """Those still possible, of the plain ones: a dimension of its own counts the samples."""
        if self._layouts is None:
            plain = self.uses[0].candidates
            self._layouts = [
                c for c in plain if c.way == "dim" and (c.at == 0 or self.features == 1)
            ]
        return self._layouts

    @layouts.setter
    def layouts(self, left: list[Layout]) -> None:
        self._layouts = left

    @property
    def product(self) -> bool:
        """Whether all that enters is a matrix product, a convolution, or a bias."""
        kinds = {u.kind for u in self.uses}
        plain = all(not u.options.get("is_transposed") for u in self.uses)
        return plain and kinds <= {"outer", "conv", "sum"}

    def signs(self, generator: torch.Generator) -> dict[str, Tensor]:
        """{parameter: its v in the probe's shape}."""
        return {use.name: self._v(use, generator) for use in self.uses}

    def _v(self, use: Use, generator: torch.Generator) -> Tensor:
        probe, at, batch = self.probe, self.layouts[0].at, self.layouts[0].batch
        one = [1] * probe.dim()
        one[at] = batch
        channel = probe.dim() - self.features if self.features > 1 else -1
        one[channel] = probe.shape[channel]
        s = _signs(probe.new_empty(one), generator)  # per sample and output, one for all positions
        if use.kind == "sum":
            return s.expand_as(probe)
        if use.kind == "conv":
            return s * _patch_products(use, generator).repeat_interleave(
                probe.shape[1] // use.options["groups"], 1
            )
        a = use.a  # [.., I] with the samples at dimension `at`
        if a.numel() == batch * a.shape[-1]:
            return s * a.norm(dim=-1, keepdim=True)
        one[-1] = a.shape[-1]
        r = _signs(a.new_empty(one), generator)
        return s * (a * r).sum(-1, keepdim=True)


def _patch_products(use: Use, generator: torch.Generator) -> Tensor:
    """⟨patch_t, r⟩ for signs r of each sample and group: [N, groups, *positions]."""
    x, o = use.a, use.options
    n, groups = x.shape[0], o["groups"]
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[x.dim() - 2]
    r = _signs(x.new_empty(n * groups, use.shape[1], *use.shape[2:]), generator)
    out = convolve(
        x.reshape(1, -1, *x.shape[2:]),
        r,
        None,
        o["stride"],
        o["padding"],
        o["dilation"],
        n * groups,
    )
    return out.view(n, groups, *out.shape[2:])


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    return (
        torch.empty_like(like, requires_grad=False)
        .random_(0, 2, generator=generator)
        .mul_(2)
        .sub_(1)
    )


class _leaves:
    """Frozen parameters take gradients inside, and are frozen again afterwards."""

    def __init__(self, frozen: Sequence[Tensor]) -> None:
        self.frozen = frozen

    def __enter__(self) -> None:
        for p in self.frozen:
            p.requires_grad_(True)

    def __exit__(self, *_: object) -> None:
        for p in self.frozen:
            p.requires_grad_(False)
