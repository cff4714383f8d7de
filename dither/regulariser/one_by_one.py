"""Exact gradients of parameters that no rule has met: every sample's columns by themselves.

B·C backward passes: of batch 1 where the model gives for a sample alone what it gives in the batch,
value and gradient, else of batch B with all other samples silenced.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from dither.calling import output
from dither.engine.certificate import coarsest, norms
from dither.engine.recording import Graph
from dither.loss.columns import Columns
from dither.plain import twice

MANY = 2000  # backward passes from which a warning is given first


def one_by_one(
    pull: Any, graph: Graph, x: Any, columns: Columns, leaf: Mapping[str, Tensor]
) -> Iterator[tuple[str, list[float], Tensor]]:
    """(parameter, signs [K], its gradients [K, 1, *shape]) of each sample, K columns at a time.

    Replicas of a stacked model share no parameter: the i-th samples of all go together.
    """
    noise, z = pull.noise, graph.z
    batch = z.shape[0] // (len(noise.seeds) if noise.stack else 1)
    if batch * columns.count >= MANY:
        warnings.warn(
            f"exact R of {', '.join(map(repr, leaf))} takes {batch} × {columns.count} backward "
            "passes, as no rule meets how they are used: samples=8 takes 8",
            RuntimeWarning,
            stacklevel=6,
        )
    every = [(float(sign), column) for sign, column in columns]
    sign = [s for s, _ in every]
    alone = Alone(pull, x, z, leaf)
    for i in range(batch):
        z_i = alone(i)
        if z_i is None:
            for s, column in every:
                start = torch.zeros_like(column)
                start[i::batch] = column[i::batch]
                for name, g in _back(z, start, leaf, pull.differentiable).items():
                    yield name, [s], g[None, None]
            continue
        rows = torch.stack([column[i : i + 1] for _, column in every])
        for name, g in _together(z_i, rows, leaf, pull.differentiable).items():
            yield name, sign, g.unsqueeze(1)


class Alone:
    """The output of sample i by itself, where that is the sample's output and gradient in the
    batch; else None.
    """

    def __init__(self, pull: Any, x: Any, z: Tensor, leaf: Mapping[str, Tensor]) -> None:
        noise = pull.noise
        self.noise, self.x, self.z, self.leaf = noise, x, z, leaf
        self.differentiable: bool = pull.differentiable
        one = isinstance(x, Tensor) and x.dim() > 0 and x.shape[0] == z.shape[0]
        self.possible = one and not noise.stack and not pull.wrote
        self.asked = False

    def __call__(self, i: int) -> Tensor | None:
        if not self.possible:
            return None
        try:
            with twice(self.differentiable):
                z_i = output(self.noise.model, self.x[i : i + 1])
        except (RuntimeError, ValueError, IndexError):  # some models refuse a batch of one
            self.possible = False
            return None
        here = self.z[i : i + 1]
        if z_i.shape != here.shape or not near(z_i, here, *self.leaf.values()):
            return None
        if not self.asked:
            self.asked = True
            self.possible = self._same_slope(z_i, i)
        return z_i if self.possible else None

    def _same_slope(self, z_i: Tensor, i: int) -> bool:
        """Whether a random column gives the same gradients both ways."""
        start = torch.zeros_like(self.z)
        start[i] = torch.randn(self.z.shape[1:], generator=torch.Generator().manual_seed(i)).to(
            self.z
        )
        a = _back(z_i, start[i : i + 1], self.leaf, False)
        b = _back(self.z, start, self.leaf, False)
        return a.keys() == b.keys() and all(near(a[n], b[n], *self.leaf.values()) for n in a)


def near(a: Tensor, b: Tensor, *of: Tensor) -> bool:
    """‖a − b‖ ≤ √ε ‖b‖, ε of the coarsest type at work (`of`: the parameters); what is not finite
    must be the same.
    """
    a, b = a.detach(), b.detach()
    fine = a.isfinite() & b.isfinite()
    if not torch.equal(a.masked_fill(fine, 0).nan_to_num(), b.masked_fill(fine, 0).nan_to_num()):
        return False
    a, b = a.masked_fill(~fine, 0), b.masked_fill(~fine, 0)
    return bool(norms(a - b) <= coarsest(b, *of) ** 0.5 * norms(b))


def _back(
    z: Tensor, column: Tensor, leaf: Mapping[str, Tensor], recorded: bool
) -> dict[str, Tensor]:
    """{parameter: gradient of one column}."""
    if not z.requires_grad:
        return {}
    keep = {"retain_graph": True, "create_graph": recorded, "allow_unused": True}
    found = torch.autograd.grad(z, list(leaf.values()), column, **keep)
    return {name: g for name, g in zip(leaf, found, strict=True) if g is not None}


def _together(
    z: Tensor, columns: Tensor, leaf: Mapping[str, Tensor], recorded: bool
) -> dict[str, Tensor]:
    """{parameter: gradients [K, *shape]} of K columns."""
    rows = [_back(z, column, leaf, recorded) for column in columns]
    return {name: torch.stack([row[name] for row in rows]) for name in (rows[0] if rows else ())}
