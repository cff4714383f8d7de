"""`inject`: add noise to any module without editing it, and take it away again without a trace."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from dither.attach import sharded
from dither.attach.find import find_sites, unwrapped, wrapped
from dither.attach.hooks import DisplaceInput, DisplaceOutput, Enter, Leave, ShapeReader
from dither.attach.injection import Injection
from dither.attach.masks import masked
from dither.attach.ranks import averaged
from dither.attach.shadow import Statistics, put, take
from dither.attach.site import CONV, Site, label
from dither.calling import call, evaluating, unfused
from dither.errors import DitherError, check_whole
from dither.noise.draw import Source
from dither.noise.here import Here
from dither.noise.noises import Node, Noise, describe
from dither.torch_internals import forget_compiled

__all__ = ["Injection", "inject", "put", "take"]

DrawMode = Literal["each", "all", "cycle", "random"]
Group = Literal["tensor", "layer"]
When = Literal["training", "always"]
Keep = Literal["update", "keep"]


def inject(
    model: nn.Module,
    what: Noise | Mapping[str, Noise] | None = None,
    *,
    seed: int | Sequence[int] | None = None,
    draw: DrawMode = "each",
    by: Group = "tensor",
    when: When = "training",
    statistics: Keep = "update",
    example: Any = None,
    batch_dim: int = 0,
    mask: Any = None,
) -> Injection:
    """Add noise to a model without editing it.

    `what` is a noise, put at its default sites (activations: the input of every Linear and
    convolution; Node: a Linear's output, a convolution's input; Weight: every parameter), or a
    mapping from patterns to noises. A pattern is a glob over module names, with ":in" or ":out" to
    name the side; "input" and "output" are those of the whole model, "input:name" and "input[1]"
    one of its arguments. For Weight a pattern is a glob over parameter names. If a module takes or
    gives several tensors, the first real one gets noise.
    Without `what` the noises of `dither.nn` in the model are taken over, with their vectors.

    seed      the seed of the draws; None takes one from torch's default generator. A list gives
              one per replica of a stacked model.
    draw      how Weight spends σ in a step. "each" gives σ to every tensor. "all" gives σ/√M to
              each of the M tensors; "cycle" and "random" give σ to one of them, in turn or at
              random. These three have the same R = σ²/2M Σ.
    by        what counts as one of the M: "tensor", or "layer" (all parameters of a module).
    when      "training": on in train(), off in eval(), like dropout; "always": on in both.
    statistics  what a noisy forward does to BatchNorm's running mean and variance. "update" changes
              them, as any forward in train mode does. "keep" leaves them; the batch is normalised
              by its own statistics all the same. A forward without noise updates them:
              with noise.off(): model(x).
              In compiled code they are kept until `pause`, also while a schedule of σ is at 0.
    example   a batch for the model. It is needed if the shape of a Node can't be read from its
              module (a convolution's input).
    batch_dim the dimension of the sites' tensors that counts the samples (Node draws one ε per
              sample).
    mask      which positions get noise, [B, T]: the name of an argument of the model, such as
              "attention_mask", or a function of its arguments. Each noise on an activation is put
              under it (`Masked`).

    One forward of `model` in train mode is one step (see `Injection.hold`). Raises DitherError for
    patterns that match nothing, sharded weights, and unknown shapes. Warns if an equal noise is at
    a site already; different noises at one site add up in silence.
    """
    options = (("draw", draw, DrawMode), ("by", by, Group), ("when", when, When))
    for name, got, kind in (*options, ("statistics", statistics, Keep)):
        if got not in (allowed := get_args(kind)):
            raise DitherError(f"inject: {name} is one of {', '.join(allowed)}: got {got!r}")
    check_whole("inject: batch_dim", batch_dim, 0)
    _check(model, what)
    root = unwrapped(model)
    sites = find_sites(root, what if mask is None else masked(root, what, mask))
    if (draw, by) != ("each", "tensor") and not any(s.side == "parameter" for s in sites.values()):
        raise DitherError(
            f"inject: draw={draw!r} and by={by!r} say how weight noise is drawn; there is none here"
        )
    noise = Injection(root, sites, seed, draw, by, when, batch_dim)
    with ExitStack() as undo:  # after an error the model is as it was
        undo.callback(noise.remove)
        if statistics == "keep":
            noise.statistics = Statistics(root)
        parallel = (m for m in wrapped(model) if isinstance(m, DistributedDataParallel))
        noise.__dict__["wrapper"] = next(parallel, root)
        _check_stack(noise)
        shapes = _shapes(noise, example) if example is not None else {}
        _check_lazy(noise)
        for site in noise.sites.values():
            if isinstance(site.noise, Node):
                w = _vectors(noise, site, shapes.get(site.name))
                if not hasattr(site.module, "placed_noise"):  # else it is the model's parameter
                    w.register_post_accumulate_grad_hook(averaged)  # DDP does not know of them
                noise.nodes[label(site.name)] = w
        _warn_of_twins(noise)
        _attach(noise)
        undo.pop_all()
    return noise


def _check(model: Any, what: Any) -> None:
    """Raises DitherError unless the first two arguments have the right types."""
    if not isinstance(model, nn.Module):
        raise DitherError(f"inject needs a model, an nn.Module: got {model!r}")
    for pattern in what if isinstance(what, Mapping) else ():
        if not isinstance(pattern, str):
            raise DitherError(
                f"inject: a pattern is a string, a glob over names such as '0' or '*:out': got "
                f"{pattern!r}"
            )


def _check_stack(noise: Injection) -> None:
    """Raises DitherError unless a list of seeds has one for each replica of a stacked model."""
    if not noise.stack:
        return
    replicas = getattr(noise.model, "replicas", None)
    stacked = any(getattr(m, "stacked_linear", False) for m in noise.model.modules())
    if replicas is None and not stacked:
        raise DitherError(
            f"inject: a list of seeds is for a stacked model, one per replica, and "
            f"{type(noise.model).__name__} has no `replicas`: got seed={list(noise.seeds)}; "
            "pass one number"
        )
    if replicas is not None and replicas != len(noise.seeds):
        raise DitherError(
            f"inject: a stack of {replicas} replicas needs {replicas} seeds: got {len(noise.seeds)}"
        )


def _check_lazy(noise: Injection) -> None:
    """Raises DitherError for Weight or Node on a lazy module, which has no shape yet."""
    for site in noise.sites.values():
        weight = site.side == "parameter"
        own = [site.raw] if weight else site.module.parameters(recurse=False)
        if (weight or isinstance(site.noise, Node)) and any(map(is_lazy, own)):
            raise DitherError(
                f"{type(site.noise).__name__} at {site.name!r}: {type(site.module).__name__} has "
                "no shape yet: run a batch through the model before inject, or pass inject(…, "
                "example=x)"
            )


def _warn_of_twins(noise: Injection) -> None:
    """Warn if an earlier injection has an equal noise at a site and both act: their variances add.
    A notebook's cell that ran twice does so.
    """
    twins = [
        name
        for name, site in noise.sites.items()
        for other in noise.beside
        if name in other.sites and not other.paused and other.reader is None
        if other.when == noise.when or site.module.training
        if (other.draw, other.by) == (noise.draw, noise.by)  # else it is another weight noise
        if _equal(other.sites[name].noise, site.noise)
    ]
    if twins:
        first, others = twins[0], len({*twins}) - 1
        more = f" and {others} more" if others else ""
        warnings.warn(
            f"inject: {describe(noise.sites[first].noise)} is at {first!r}{more} already, from an "
            "earlier inject, and the variances add: remove the earlier one, noise.remove(); if "
            "its name was used again, it is among noise.beside of the new one",
            stacklevel=3,
        )


def _equal(one: Any, other: Any) -> bool:
    """Whether two noises are of one kind with equal σ ≠ 0, law and the rest."""
    try:
        return type(one) is type(other) and bool(one == other) and bool(one.sigma != 0)
    except (RuntimeError, ValueError):  # fields that are tensors have no one truth
        return False


def _attach(noise: Injection) -> None:
    """Register the hooks. `Enter` runs before all other hooks, `Leave` after those of the sites. A
    module of TorchScript takes no hooks, and no site is inside one.
    """
    weights = any(s.side == "parameter" for s in noise.sites.values())
    whole = weights or noise.statistics is not None
    below = [m for m in noise.model.modules() if not isinstance(m, torch.jit.ScriptModule)]
    watched = below if whole else [noise.model]
    handles = noise._handles
    for module in watched:
        handles.append(
            module.register_forward_pre_hook(Enter(noise), prepend=True, with_kwargs=True)
        )
    for unit, (gathered, freed) in sharded.hooks(noise).items():
        handles.append(unit.register_forward_pre_hook(gathered, with_kwargs=True))
        handles.append(unit.register_forward_hook(freed, prepend=True, always_call=True))
    for site in noise.sites.values():
        if site.side == "in":
            handles.append(
                site.module.register_forward_pre_hook(DisplaceInput(noise, site), with_kwargs=True)
            )
        elif site.side == "out":
            handles.append(site.module.register_forward_hook(DisplaceOutput(noise, site)))
    for module in watched:
        handles.append(module.register_forward_hook(Leave(noise), always_call=True))
    forget_compiled()


def _vectors(noise: Injection, site: Site, shape: tuple[int, ...] | None) -> nn.Parameter:
    """A Node's w [*S, n, *features] ~ N(0, 1/fan_in), drawn from the seed and the site's name."""
    module: Any = site.module
    node = site.noise
    if getattr(module, "placed_noise", None) is node:
        return module.w
    linear = hasattr(module, "in_features") and hasattr(module, "out_features")
    if linear:
        features = (module.in_features if site.side == "in" else module.out_features,)
    elif shape is None:
        raise DitherError(
            f"the shape of Node at {site.name!r} can't be read from a {type(module).__name__}: "
            "pass a batch, inject(…, example=x)"
        )
    else:
        at = Here(torch.empty(shape, device="meta"), None, noise.stack, noise.batch_dim, site.name)
        rest = list(shape)
        del rest[at.samples]
        features = tuple(rest[noise.stack :])
    if node.std is not None:
        std = node.std
    elif isinstance(module, CONV):
        std = (module.in_channels // module.groups * torch.Size(module.kernel_size).numel()) ** -0.5
    else:
        std = (
            (module.in_features if linear else torch.Size(features).numel()) + node.nodes
        ) ** -0.5
    owner = next(iter(module.parameters()), None)
    owner = next(noise.model.parameters(), torch.empty(0)) if owner is None else owner
    like = owner.new_empty(*([len(noise.seeds)] if noise.stack else []), node.nodes, *features)
    w = std * Source(noise.draws.keys(site.name, "w")).normal(like)
    return nn.Parameter(w)


def _shapes(noise: Injection, example: Any) -> dict[str, tuple[int, ...]]:
    """{site: shape}, from one forward of the example in eval mode."""
    reader = ShapeReader()
    noise.reader = reader
    try:
        _attach(noise)
        with evaluating(noise.model), unfused(), torch.no_grad():
            call(noise.model, example)
    finally:
        noise.reader = None
        noise.unhook()
    for name, shape in reader.shapes.items():
        noise.sites[name].seen = shape
    return reader.shapes
