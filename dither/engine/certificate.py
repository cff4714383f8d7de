"""Whether the samples are where they are taken to be, and apart: asked of the gradients themselves.

A column u is pulled back as it is, and again with half of the samples silenced, u∘m with m_i ∈ {0,
1}. Where every element belongs to one sample, its second gradient is 0 or the first one again;
where row i belongs to sample i, it is m_i times the first. An element that two samples reach shows
if their m differ: a random m, drawn anew at each call, misses a pair with chance ½, k calls with
chance 2^−k. The masks of the bits of the samples' numbers miss no pair.

What is let pass has ‖violation‖ ≤ √ε ‖g‖ (ε of the coarsest type in the graph), which moves R by
2√ε of that column's share at most. Derived in docs/math.md, §19.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dither.engine.batch_axis import Layout
from dither.engine.ghost import Gradient, Use
from dither.halves import halves, random_half, silence
from dither.torch_internals import functions_behind, types_of

EPS = 0.5  # the power of ε that is let pass
ROUNDING = 64  # times the difference of autograd from itself, where a column cancels


class Violations(NamedTuple):
    """Activations in which samples meet, and parameters whose samples are not where they were
    taken to be.
    """

    activations: list[str]
    parameters: set[str]

    def __bool__(self) -> bool:
        return bool(self.activations or self.parameters)


class Compared:
    """A mixture of columns compared at every tap with itself, a random half silenced."""

    def __init__(
        self, activations: Mapping[int, Any], used: Mapping[int, list[Use]], eps: float
    ) -> None:
        self.activations, self.used, self.eps = activations, used, eps
        self.half: Tensor | None = None  # m [B]
        self.rng = torch.Generator().manual_seed(secrets.randbits(62))
        self.weights = torch.empty(0)  # r [K] of the columns under way
        self.column: Tensor | None = None  # u, so far
        self.kept: dict[int, Tensor] = {}
        self.found = Violations([], set())

    def add(self, columns: Tensor) -> None:
        """Columns [K, *z.shape] are about to be pulled back: they enter the mixture
        u = Σ_k r_k columns[k], r ~ N(0, 1).
        """
        self.weights = torch.randn(len(columns), generator=self.rng).to(columns)
        self.column = _added(self.column, torch.tensordot(self.weights, columns.detach(), 1))

    def first(self, n: int, g: Any) -> None:
        """Their gradients [K, …] at tap n enter its mixture."""
        g = plain(g).detach()
        part = torch.tensordot(self.weights.to(g.dtype), g, 1)
        self.kept[n] = _added(self.kept.get(n), part)

    def silenced(self) -> Tensor:
        """u∘m [1, *z.shape]."""
        assert self.column is not None
        self.half = random_half(len(self.column)).to(self.column.device)
        return silence(self.column, self.half).unsqueeze(0)

    def second(self, n: int, g: Any) -> None:
        """The gradient [1, …] of the silenced mixture."""
        rows = None if isinstance(g, Tensor) else 0  # of a product: W mixes the rest of a row
        u, v, half = self.kept.pop(n, None), plain(g).detach()[0], self.half
        if u is None or half is None:
            return
        if n in self.activations:
            tapped = self.activations[n]
            if not partitioned(u, v, half, tapped.rows if rows is None else rows, self.eps):
                self.found.activations.append(tapped.name)
        for use in self.used.get(n, ()):
            if use.candidates and not in_layout(u, v, half, use.layout, self.eps):
                self.found.parameters.add(use.name)


def _added(before: Tensor | None, part: Tensor) -> Tensor:
    return part if before is None else before.add_(part)


def plain(g: Any) -> Tensor:
    """The tensor that stands for a gradient whose norm alone is asked."""
    return g if isinstance(g, Tensor) else g.g


def partitioned(u: Tensor, v: Tensor, half: Tensor, rows: int | None, eps: float) -> bool:
    """Whether each element (of a row of dimension `rows`: all its elements) of v is 0 or u's."""
    front = rows is None and u.dim() > 0 and len(u) == len(half)
    if front and small(v - silence(u, half), u, eps):  # the usual: samples in front
        return True
    if rows is not None:
        u, v = (t.movedim(rows, 0).flatten(1) for t in (u, v))
        off = torch.minimum(norms(v, 1), norms(v - u, 1))
    else:
        off = torch.minimum(v.abs(), (v - u).abs())
    return small(off, u, eps)


def in_layout(u: Tensor, v: Tensor, half: Tensor, layout: Layout, eps: float) -> bool:
    """Whether row i of v, in a layout, is m_i times row i of u."""
    u = layout.first(u)
    return small(layout.first(v) - silence(u, half), u, eps)


def small(off: Tensor, g: Tensor, eps: float) -> bool:
    """‖off‖ ≤ √ε ‖g‖; gradients that are not finite say nothing."""
    size, wrong = float(norms(g)), float(norms(off))
    return not wrong > eps**EPS * size


def norms(t: Tensor, dim: int | None = None) -> Tensor:
    """‖t‖, in single precision or better."""
    t = t.float() if t.dtype in (torch.float16, torch.bfloat16) else t
    return torch.linalg.vector_norm(t, dim=dim)


class Learnt(NamedTuple):
    """What a graph of these shapes was found to be: the layouts of its uses, by number, and
    whether a replay may stand for autograd.
    """

    layouts: list[list[Layout]]
    replay: bool
    lasts: bool = True  # no gradient was 0, which says nothing, and no data decide the layouts


def examine(graph: Any) -> tuple[Learnt, Violations]:
    """Everything that can be asked of a graph: no pair of samples is missed.

    A random column is pulled back whole and with each of `halves` silenced; layouts that do not fit
    are struck out. A random sample's column is pulled back by autograd to the taps and to the
    parameters: a replay must tell the same at the taps, and the rules the norm that autograd's own
    gradient has.
    """
    z, replay = graph.z, graph.replay
    u = random_column(z)
    i = secrets.randbelow(len(z))
    alone = _of_one(u, i)
    if replay is not None and not _replays(graph, replay, alone, i):
        replay = graph.replay = None
    whole: dict[int, Tensor] = {}
    graph.tell(
        u.unsqueeze(0),
        lambda n, g: whole.__setitem__(n, plain(g)[0].detach().clone()),
        replay=replay,
    )
    meet: dict[str, None] = {}
    for half in halves(len(z)):
        half = half.to(z.device)

        def compare(n: int, g: Any, half: Tensor = half) -> None:
            v, tapped = plain(g)[0].detach(), graph.activations.get(n)
            rows = 0 if tapped is None or not isinstance(g, Tensor) else tapped.rows
            if tapped is not None and not partitioned(whole[n], v, half, rows, graph.eps):
                meet[tapped.name] = None
            for use in graph.used.get(n, ()):
                fits = partial(in_layout, whole[n], v, half, eps=graph.eps)
                use.candidates = [c for c in use.candidates if fits(layout=c)]

        graph.tell(silence(u, half).unsqueeze(0), compare, replay=replay)
    lost = {use.name for use in graph.uses if not use.candidates}
    lost |= _off(graph, alone, i, lost)
    graph.forget_operands()
    spoke = all(0 < float(norms(g)) < torch.inf for g in whole.values())
    folded = any(u.candidates and u.layout.way in ("major", "minor") for u in graph.uses)
    learnt = Learnt([u.candidates for u in graph.uses], replay is not None, spoke and not folded)
    return learnt, Violations(list(meet), lost)


def random_column(z: Tensor) -> Tensor:
    """N(0, 1) in the shape of z, from a seed of its own."""
    rng = torch.Generator().manual_seed(secrets.randbits(62))
    return torch.randn(z.shape, generator=rng).to(z)


def _of_one(column: Tensor, i: int) -> Tensor:
    """The column of sample i alone."""
    alone = torch.zeros_like(column)
    alone[i] = column[i]
    return alone


def _replays(graph: Any, replay: Any, column: Tensor, i: int) -> bool:
    """Whether a replay gives every tap what autograd gives it, for a column of sample i.

    Behind a large W a column may cancel by chance, up to rounding, which is another in a replay. So
    where they differ by no more than autograd from itself, another column is asked.
    """
    told = _told(graph, column)
    off = _differences(graph, replay, column, told)
    if not off:
        return True
    again = _told(graph, column * 3)  # rounds otherwise
    if any(d > ROUNDING * float(norms(again[n] / 3 - told[n])) for n, d in off.items()):
        return False
    other = _of_one(random_column(graph.z), i)
    return not _differences(graph, replay, other, _told(graph, other))


def _told(graph: Any, column: Tensor) -> dict[int, Tensor]:
    """What autograd gives every tap."""
    told: dict[int, Tensor] = {}
    keep = column.unsqueeze(0)
    graph.tell(keep, lambda n, g: told.__setitem__(n, plain(g).detach().clone()), replay=None)
    return told


def _differences(
    graph: Any, replay: Any, column: Tensor, told: Mapping[int, Tensor]
) -> dict[int, float]:
    """By tap: how far a replay is from what autograd told, where that is more than √ε allows."""
    found: dict[int, float] = {}

    def compare(n: int, g: Any) -> None:
        b = told[n]
        if isinstance(g, Tensor):
            a = g.detach()
            off = norms(a - b) if a.shape == b.shape else torch.tensor(torch.inf)
            size, root = norms(b), graph.eps**EPS
        else:  # norms without the gradient, [1, B]
            size, root = norms(b.flatten(2), 2), graph.eps**EPS / 2
            off = (g.norm2().detach().sqrt() - size).abs()
        beyond = ~(off <= root * size) & size.isfinite()
        if bool(beyond.any()):
            found[n] = float(off[beyond].max())

    graph.tell(column.unsqueeze(0), compare, replay=replay)
    return found


def _off(graph: Any, column: Tensor, i: int, lost: set[str]) -> set[str]:
    """Parameters whose gradient by the rules, of sample i alone, has another norm than autograd's
    own.
    """
    names = [n for n in graph.parameters if n not in lost | graph.stray]
    with torch.no_grad():
        by_rules = {
            name: (_norm2(gradient), _noise(gradient.uses))
            for name, gradient in graph.pull(column.unsqueeze(0), lambda n, g: None).items()
            if name in names
        }
        graph.let_go()
    types = {u.name: (u.type, u.kind.a) for u in graph.uses}
    own = graph.own(column, {n: graph.parameters[n] for n in names})
    found = set()
    for name in names:
        true = float(norms(own[name].detach())) if name in own else 0.0
        norm2, noise = by_rules.get(name, (None, 0.0))
        rest = 0.0 if norm2 is None else float(norm2.sum() - norm2[i])
        mine = 0.0 if norm2 is None else float(norm2[i])
        eps = max(graph.eps, coarsest(column, graph.parameters[name], *types.get(name, ())))
        off = abs(mine - true**2) + abs(rest)
        if off > 2 * eps**EPS * max(mine, true**2) + noise:
            found.add(name)
    return found


def coarsest(*of: Any) -> float:
    """The largest ε of the types of some tensors, and of autocast where it is on."""
    found = [t.dtype if isinstance(t, Tensor) else t for t in of]
    found += [torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda") if _autocast(kind)]
    types = [t for t in found if isinstance(t, torch.dtype)]
    return max(torch.finfo(t).eps for t in types if t.is_floating_point or t.is_complex)


def _autocast(kind: str) -> bool:
    return torch.is_autocast_enabled(kind)


def _norm2(gradient: Gradient) -> Tensor:
    return gradient.norm2()[0].detach()


def _noise(uses: list[Use]) -> float:
    """What rounding may leave of ‖Σ g aᵀ‖² where all of it cancels: (64 ε ‖g‖ ‖a‖)²."""
    total = 0.0
    for use in uses:
        a, eps = use.kind.a, torch.finfo(use.g.dtype).eps
        size = float(norms(a.detach())) if isinstance(a, Tensor) and a.is_floating_point() else 1.0
        total += (64 * eps * float(norms(use.g.detach())) * max(size, 1.0)) ** 2
    return total


def fitting(
    z: Tensor, points: list[Tensor], candidates: list[list[Layout]]
) -> tuple[list[list[Layout]], list[bool]]:
    """For tensors that z depends on: those of their layouts in which samples keep apart, and
    whether any gradient arrives. Every pair of samples is asked.
    """
    u = random_column(z)
    keep = {"retain_graph": True, "allow_unused": True}
    whole = torch.autograd.grad(z, points, u, **keep)
    eps = coarsest(z, *(t for node in functions_behind(z) for t in types_of(node)))
    left = list(candidates)
    for half in halves(len(z)):
        half = half.to(z.device)
        parts = torch.autograd.grad(z, points, silence(u, half), **keep)
        for k, (a, b) in enumerate(zip(whole, parts, strict=True)):
            if a is not None and b is not None:
                left[k] = [c for c in left[k] if in_layout(a, b, half, c, eps)]
    return left, [g is not None and bool(g.any()) for g in whole]
