"""Patterns → sites. The network is read, never changed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from dither.attach.arguments import check_argument
from dither.attach.site import CONV, Site, Sites
from dither.errors import DitherError
from dither.noise.noises import describe, lacks, side_of

UNIT = "FSDPModule"  # fully_shard makes a module's class a subclass of it
SHARDED = ("FullyShardedDataParallel", UNIT)
FLAT = SHARDED[:1]  # it replaces the parameters, so that nothing of the model can be found


SCRIPTED = torch.jit.ScriptModule
_ONE_INPUT = re.compile(r"input(?::(?P<name>[^\W\d]\w*)|\[(?P<number>\d+)\])")
WRAPPERS = {  # → the attribute that holds what is inside
    "DistributedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "_FabricModule": "_forward_module",
}


def wrapped(model: nn.Module) -> list[nn.Module]:
    """The wrappers of a model, the outermost first, and the model itself."""
    found = [model]
    while inside := WRAPPERS.get(type(found[-1]).__name__):
        found.append(getattr(found[-1], inside))
    return found


def unwrapped(whole: nn.Module) -> nn.Module:
    """The model inside the wrappers of DistributedDataParallel, torch.compile and Fabric. Raises
    DitherError for FSDP's first version and for DataParallel on several devices.
    """
    model = wrapped(whole)[-1]
    for name, module in whole.named_modules():
        if isinstance(module, nn.DataParallel) and len(module.device_ids or ()) > 1:
            raise replicas(name or "the model")
        check_whole(name or "the model", module, FLAT)
    return model


def check_whole(name: str, module: nn.Module, kinds: tuple[str, ...] = SHARDED) -> None:
    """Raises DitherError if FSDP shards a module's weights. kinds: names of its classes."""
    if any(kind.__name__ in kinds for kind in type(module).__mro__):
        raise DitherError(
            f"noise can't reach sharded weights: {name!r} is under FSDP's first version, or was "
            "sharded after inject: call fully_shard first, then inject"
        )


def is_unit(module: nn.Module) -> bool:
    """Whether a module was given to fully_shard."""
    return any(kind.__name__ == UNIT for kind in type(module).__mro__)


def units(model: nn.Module) -> dict[int, nn.Module]:
    """{id of a module: what gathers its own parameters} for the modules under fully_shard: the
    nearest one above that was given to it, or the module itself.
    """
    found: dict[int, nn.Module] = {}

    def walk(module: nn.Module, unit: nn.Module | None) -> None:
        unit = module if is_unit(module) else unit
        if unit is not None:
            found[id(module)] = unit
        for child in module.children():
            walk(child, unit)

    walk(model, None)
    return found


def check_passes(model: nn.Module) -> None:
    """Raises DitherError if a part of the model is under fully_shard, which frees the weights after
    the first backward pass of a forward.
    """
    for name, module in model.named_modules():
        if is_unit(module):
            raise DitherError(
                f"the gradient of R, and curvature='full', need a second backward pass, and "
                f"{name or 'the model'!r} is under fully_shard, which frees the weights after one: "
                "ask for the value under torch.no_grad(), and train with the noise itself"
            )


def replicas(name: str) -> DitherError:
    """The error for DataParallel on several devices."""
    return DitherError(
        f"noise can't reach the replicas that DataParallel makes of {name!r} for each forward: use "
        "DistributedDataParallel, or one device"
    )


def placed(model: nn.Module) -> dict[str, Any]:
    """{pattern: noise} of the noises of `dither.nn` in a model. Raises DitherError without."""
    found = {
        f"{name}:out" if name else "output": module.placed_noise
        for name, module in model.named_modules()
        if hasattr(module, "placed_noise")
    }
    if not found:
        raise DitherError(
            f"inject needs a noise such as Additive(0.1): none was given, and "
            f"{type(model).__name__} has no module of dither.nn"
        )
    return found


def find_sites(model: nn.Module, what: Any) -> Sites:
    """The sites of `what`: a noise, a mapping from patterns to noises, or None for the noises of
    `dither.nn` in the model.

    Raises DitherError if a pattern matches nothing (it names near misses), if two patterns claim
    one site, or if something is no noise.
    """
    what = placed(model) if what is None else what
    if isinstance(what, Mapping):
        sites: list[Site] = []
        claimed: dict[str, str] = {}
        for pattern, noise in what.items():
            _check_noise(noise, f"pattern {pattern!r}")
            for site in _matches(model, pattern, noise):
                if site.name in claimed:
                    raise DitherError(
                        f"site {site.name!r} is claimed by both {claimed[site.name]!r} and "
                        f"{pattern!r}: make the patterns disjoint, or call inject twice for both "
                        "noises at one site"
                    )
                claimed[site.name] = pattern
                sites.append(site)
        skipped: dict[str, str] = {}
    else:
        _check_noise(what, "inject")
        sites, skipped = _default(model, what)
    if not sites and isinstance(what, Mapping):
        raise DitherError(
            "inject got an empty mapping: give {pattern: noise}, such as {'*:out': Additive(0.1)}"
        )
    if not sites:
        raise DitherError(
            f"no site for {describe(what)} in {type(model).__name__}: it has no Linear or "
            "convolution that is called; "
            + ("; ".join(f"{name or 'the model'}: {why}" for name, why in skipped.items()))
            + ("" if skipped else "name modules by pattern, for example {'*:out': …}")
        )
    _check_scripted(model, sites)
    for index, site in enumerate(sites):
        site.index = index
    return Sites(sites, skipped)


def _check_scripted(model: nn.Module, sites: list[Site]) -> None:
    """Raises DitherError for a site inside TorchScript: it runs no hooks and reads no shadows."""
    compiled = {  # module inside → name of the outermost compiled one
        id(inner): name or "the model"
        for name, outer in reversed(list(model.named_modules()))
        if isinstance(outer, SCRIPTED)
        for inner in outer.modules()
    }
    for site in sites:
        modules = [site.module, *(owner for owner, _ in site.owners)]
        name = next((compiled[id(m)] for m in modules if id(m) in compiled), None)
        if name is not None:
            raise DitherError(
                f"noise can't reach {site.name!r}: {name!r} is compiled by TorchScript (traced or "
                "scripted); inject into the module it was made from, or name sites outside it"
            )


def _check_noise(noise: Any, where: str) -> None:
    missing = lacks(noise)
    if missing is None:
        if not is_dataclass(noise):
            raise DitherError(
                f"{where} got {type(noise).__name__}, which must be a dataclass, so that its sigma "
                "can be replaced: put @dataclass(frozen=True) on the class"
            )
        return
    if isinstance(noise, type):
        said = f"needs a noise such as Additive(0.1): got the class {noise.__name__}; add its σ"
    elif hasattr(noise, "displace") or hasattr(noise, "variance"):
        said = f"got {type(noise).__name__}, which is no noise: add {missing} to the class"
    else:
        said = f"needs a noise such as Additive(0.1): got {noise!r}"
    raise DitherError(f"{where} {said}")


def _default(model: nn.Module, noise: Any) -> tuple[list[Site], dict[str, str]]:
    """The default sites, and {name: why it is no site}. For Weight every parameter; for other
    noises every Linear and convolution that its parent calls.
    """
    if noise_on_parameters(noise):
        return _matches(model, "*", noise), {
            name: f"its numbers are complex ({p.dtype}), and noise needs real ones"
            for name, p in model.named_parameters()
            if p.is_complex()
        }
    skipped = {}
    sites = []
    inside = {
        id(m.out_proj): n for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)
    }
    for name, module in _modules(model).items():
        if not (isinstance(module, nn.Linear | CONV) or getattr(module, "stacked_linear", False)):
            if why := _like_a_layer(name, module):
                skipped[name] = why
            continue
        if id(module) in inside:
            skipped[name] = (
                f"{inside[id(module)]!r} (MultiheadAttention) uses its weight and never calls it"
            )
            continue
        sites.append(_site(name, side_of(noise, module), noise, module))
    return sites, skipped


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    """Name → module. An injection that is an attribute of the model is no part of it."""
    modules = dict(model.named_modules())
    beside = tuple(f"{n}." for n, m in modules.items() if n and hasattr(m, "beside_its_model"))
    return {n: m for n, m in modules.items() if not f"{n}.".startswith(beside)}


def _like_a_layer(name: str, module: nn.Module) -> str:
    """Why a module that owns a weight matrix is no default site; "" for other modules."""
    if isinstance(module, nn.MultiheadAttention):
        kind = "its in-projection is no module"
    elif (
        any(module.children())
        or isinstance(module, nn.Embedding | nn.EmbeddingBag)
        or type(module).__name__.endswith("Norm")
        or not any(p.dim() > 1 for p in module.parameters(recurse=False))
    ):
        return ""
    else:
        kind = "it has weights, but is no Linear or convolution"
    where = f"{name}:in" if name else "input"
    there = "on its query alone" if isinstance(module, nn.MultiheadAttention) else "there"
    return f"{kind} ({type(module).__name__}); the pattern {where!r} puts noise {there}"


def noise_on_parameters(noise: Any) -> bool:
    """Whether the sites of a noise are parameters."""
    return noise.side == "parameter"


def _site(name: str, side: str, noise: Any, module: nn.Module) -> Site:
    label = ("input" if side == "in" else "output") if not name else f"{name}:{side}"
    return Site(label, side, noise, module, -1)


def _matches(model: nn.Module, pattern: str, noise: Any) -> list[Site]:
    if noise_on_parameters(noise):
        return _parameters(model, pattern, noise)
    modules = _modules(model)
    if pattern in ("input", "output") and pattern not in modules:
        return [_site("", "in" if pattern == "input" else "out", noise, model)]
    if (one := _ONE_INPUT.fullmatch(pattern)) and "input" not in modules:
        which = one["name"] if one["name"] else int(one["number"])
        check_argument(model, which)
        return [Site(pattern, "in", noise, model, -1, which=which)]
    glob, _, side = (
        pattern.rpartition(":") if pattern.endswith((":in", ":out")) else (pattern, "", "")
    )
    sites = [
        _site(name, side or side_of(noise, module), noise, module)
        for name, module in modules.items()
        if (name and fnmatchcase(name, glob)) or (not name and not glob)
    ]
    if not sites:
        names = [n for n in modules if n]
        kind = type(noise).__name__
        if any(fnmatchcase(n, pattern) for n, _ in model.named_parameters()):
            raise DitherError(
                f"pattern {pattern!r} names a parameter, and {kind} acts on a module's input or "
                f"output: name the module ({pattern.rpartition('.')[0]!r}), or use Weight"
            )
        head, colon, tail = pattern.rpartition(":")
        if colon and any(fnmatchcase(n, head) for n in names):
            raise DitherError(
                f"pattern {pattern!r}: the side after the colon is 'in' or 'out': got {tail!r}"
            )
        raise _nothing(pattern, glob, names, "module", model)
    return sites


def _parameters(model: nn.Module, pattern: str, noise: Any) -> list[Site]:
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    names: dict[int, list[str]] = {}
    for prefix, module in _modules(model).items():
        for attribute, parameter in module._parameters.items():
            if parameter is not None and parameter.is_floating_point():
                owners.setdefault(id(parameter), []).append((module, attribute))
                names.setdefault(id(parameter), []).append(f"{prefix}.{attribute}".lstrip("."))
    sites = [
        Site(names[i][0], "parameter", noise, owners[i][0][0], -1, owners=tuple(owners[i]))
        for i in owners
        if any(fnmatchcase(n, pattern) for n in names[i])
    ]
    unreal = [n for n, p in model.named_parameters() if p.is_complex() and fnmatchcase(n, pattern)]
    if unreal and pattern != "*":
        raise DitherError(
            f"weight noise at {unreal[0]!r} needs real numbers: got "
            f"{model.get_parameter(unreal[0]).dtype}; keep the parameter as real and imaginary "
            "parts (torch.view_as_complex in the forward)"
        )
    if not sites:
        every = [n for alike in names.values() for n in alike]
        head = pattern.removesuffix(":in").removesuffix(":out")
        own = [n for n in every if fnmatchcase(n.rpartition(".")[0], head)]
        if own and head not in ("", "*"):
            raise DitherError(
                f"pattern {pattern!r} names a module, and {type(noise).__name__} acts on "
                f"parameters: name those, {', '.join(map(repr, own[:3]))} or {head + '.*'!r}"
            )
        raise _nothing(pattern, pattern, every, "parameter", model)
    gather = units(model)
    for site in sites:
        if type(site.raw).__name__ == "DTensor":
            site.sharded = gather.get(id(site.module))
            if len({id(gather.get(id(owner))) for owner, _ in site.owners}) > 1:
                raise DitherError(
                    f"weight noise can't reach {site.name!r}: modules share it that fully_shard "
                    "gathers apart: call fully_shard on a module that holds them all"
                )
        if site.sharded is None:
            _ = site.parameter  # raises if it is sharded in another way
    return sites


def _nothing(pattern: str, glob: str, names: list[str], kind: str, model: nn.Module) -> DitherError:
    near = difflib.get_close_matches(glob, names, n=3, cutoff=0.4)
    near += [n for n in names if glob.strip("*.") and glob.strip("*.") in n and n not in near][:3]
    hint = (
        f"near: {', '.join(map(repr, near))}"
        if near
        else f"it has {', '.join(map(repr, names[:6])) or 'none'}"
    )
    if (twin := _twin(model, glob)) is not None:
        hint = f"{twin[0]!r} is another name of {twin[1]!r}: use that one"
    return DitherError(f"pattern {pattern!r} matches no {kind} of {type(model).__name__}; {hint}")


def _twin(model: nn.Module, glob: str) -> tuple[str, str] | None:
    """A name that a pattern means and the one under which torch lists the same module or parameter,
    where a model has it twice.
    """
    for named in (model.named_modules, model.named_parameters):
        first = {id(part): name for name, part in named()}
        for name, part in named(remove_duplicate=False):
            if first[id(part)] != name and fnmatchcase(name, glob):
                return name, first[id(part)]
    return None
