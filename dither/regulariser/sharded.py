"""Sampled R of weights that fully_shard spreads over ranks.

Each rank pulls back one column of √H, mixed with random signs over its own batch, and the backward
of fully_shard leaves the mean of the ranks' gradients, in shards. With independent signs on each
rank the square of that mean is, in expectation, the sum over all samples of all ranks:

    E ‖(1/N) Σ_r g_r‖² = (1/N²) Σ_r Σ_i Σ_c ‖g_{r,i,c}‖²
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dither.attach.injection import Injection
from dither.attach.ranks import rank
from dither.attach.reading import Idle, reading
from dither.calling import mixing, output
from dither.errors import DitherError
from dither.loss.columns import of_type
from dither.noise.draw import Source, key
from dither.noise.noises import Weight
from dither.precision import wide
from dither.regulariser.padding import padded
from dither.torch_internals import gradients_in_shards, without_checkpoints


def sharded(
    noise: Injection, x: Any, y: Tensor, loss: Any, samples: int | None, full: bool, *, unit: bool
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(loss, R, {site: its share}) of the batches of all ranks together, the same on each rank.

    Raises DitherError unless R is sampled and its gradient is not asked for, all sites are sharded
    parameters that require a gradient, and no gradient of a training step waits for the others.
    """
    if samples is None or full or torch.is_grad_enabled():
        raise DitherError(
            "explicit: of weights under fully_shard R is sampled and has no gradient: ask under "
            "torch.no_grad(), with samples=n, and train with the noise itself"
        )
    _check(noise)
    laws = {name: s.unit if unit else noise.noise_at(s) for name, s in noise.sites.items()}
    totals: dict[str, Tensor] = {}
    start = int(torch.randint(2**62, ()))
    parameters = list(noise.model.parameters())
    before = [p.grad for p in parameters]
    value = count = torch.zeros(())
    try:
        for k in range(samples):
            for p in parameters:
                p.grad = None
            with torch.enable_grad(), reading(noise, Idle()), padded(noise), without_checkpoints():
                z = output(noise.model, x)
                there = wide(z.detach())
                columns = of_type(loss.columns(there, y), z.dtype)
                signs = Source([key(start, "signs", k, rank())]).sign(there)
                sign, column = _one(columns.mixed(signs))
                z.backward(column)
            if k == 0:
                each = _per_sample(loss, there, y)
                value, count = _sum(each.sum(), there) / _sum(each.numel(), there), _sum(len(z), z)
            for name, law in laws.items():
                part = sign * _variance(noise, name, law) / samples
                totals[name] = totals.get(name, torch.zeros_like(part)) + part
    finally:
        for p, g in zip(parameters, before, strict=True):
            p.grad = g
    n = dist.get_world_size()
    parts = {m: n**2 / (2 * count) * noise.share(noise.sites[m]) * v for m, v in totals.items()}
    return value, sum(parts.values(), torch.zeros_like(value)), parts


def _one(mixed: list[tuple[int, Tensor]]) -> tuple[int, Tensor]:
    if len(mixed) > 1:
        raise DitherError(
            "explicit: R of sharded weights is for losses that are convex in the outputs"
        )
    return mixed[0]


def _per_sample(loss: Any, z: Tensor, y: Tensor) -> Tensor:
    """The loss of each sample. Raises DitherError if it depends on the others: each rank has only
    its own.
    """
    each = loss.per_sample(z, y)
    alone = loss.per_sample(z[:1], y[:1])
    if _sum(float(not torch.allclose(each[:1], alone, rtol=1e-4, atol=1e-6)), z):  # all ranks raise
        raise DitherError(
            "explicit: R of sharded weights is for losses that are the plain mean over samples: "
            "this one divides by what it counts (weights of classes, ignored targets), and no rank "
            "has all of it"
        )
    return each


def _variance(noise: Injection, name: str, law: Any) -> Tensor:
    """Var⟨g, δ⟩ of the ranks' mean gradient g, one parameter at a time."""
    site = noise.sites[name]
    held: Any = site.raw
    if held.grad is None:
        raise DitherError(f"explicit: the loss does not depend on {name!r}, or it is frozen")
    g = wide(held.grad.full_tensor())
    w = held.detach() if type(law) is Weight else held.detach().full_tensor()
    return law.variance(g[None, None], noise.here(site, w)).sum()


def _sum(value: Any, like: Tensor) -> Tensor:
    """The sum of a number over ranks."""
    total = torch.as_tensor(value, dtype=wide(like).dtype, device=like.device).clone()
    dist.all_reduce(total)
    return total


def _check(noise: Injection) -> None:
    if others := [site.name for site in noise.ordered if site.sharded is None]:
        raise DitherError(
            f"explicit: {others[0]!r} is not sharded, and other sites are: inject the two apart"
        )
    if coupled := mixing(noise.model):
        raise DitherError(
            f"explicit: {coupled[0]!r} ({coupled[1]}) mixes each rank's batch in train mode: call "
            "model.eval() for R of sharded weights"
        )
    for unit in noise.units.values():
        if why := gradients_in_shards(unit):
            raise DitherError(f"explicit: R of sharded weights {why}")
        unit.reshard()  # pyright: ignore[reportCallIssue]
    mesh: Any = getattr(noise.ordered[0].raw, "device_mesh")  # noqa: B009
    if mesh.size() != dist.get_world_size():
        raise DitherError(
            f"explicit: the weights are sharded over {mesh.size()} of {dist.get_world_size()} "
            "ranks; R is for fully_shard over all of them"
        )
