"""Sites: where in a network a noise acts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from dither.errors import DitherError
from dither.noise.noises import describe
from dither.text import grid, html

CONV = nn.modules.conv._ConvNd


@dataclass(eq=False)
class Site:
    """A place for noise: the input or output of a module, or a parameter.

    `module` is the module; for a parameter it is the first owner. `owners` are all (module,
    attribute) pairs of a parameter. `step`, `micro` and `last_hold` are the site's own clock. It
    counts where no forward of the whole model does, and compiled code reads it.
    """

    name: str
    side: str  # "in" | "out" | "parameter"
    noise: Any
    module: nn.Module
    index: int
    owners: tuple[tuple[nn.Module, str], ...] = ()
    which: str | int | None = None  # of the model's arguments; None: the first real tensor
    seen: tuple[int, ...] | None = None  # shape at the last call
    step: int = 0
    micro: int = 0
    last_hold: int = 0
    put: Tensor | None = None  # the shadow of a parameter
    under: list[Any] = field(default_factory=list)
    again: Callable[[], Tensor] | None = None  # computes the shadow's value anew
    made: Any = None  # the function of autograd that gave the shadow
    held: Tensor | None = None  # the parameter itself, while it is displaced or read
    sharded: nn.Module | None = None  # the module under fully_shard that gathers the parameter
    gathered: bool = False  # whether the forward of that module is running

    def __post_init__(self) -> None:
        self.unit = replace(self.noise, sigma=1.0)  # compiled code gets σ together with the draw

    @property
    def parameter(self) -> Tensor:
        """The parameter as the model holds it now (it may have been moved since).

        Raises DitherError if it is no longer there, or if this rank holds only a shard of it.
        """
        parameter = self.raw
        if self.sharded is not None and not self.gathered:
            raise DitherError(
                f"{self.name!r} is sharded over ranks by fully_shard, and this needs all of it at "
                "once: train with the noise, or take explicit(…, samples=n) under torch.no_grad()"
            )
        if type(parameter).__name__ == "DTensor":
            raise DitherError(
                f"weight noise can't reach {self.name!r}: it is a DTensor, sharded over ranks; "
                "shard with fully_shard, before inject, or use DistributedDataParallel"
            )
        return parameter

    @property
    def raw(self) -> Tensor:
        """The same, or the shard of it that this rank holds."""
        module, name = self.owners[0]
        held: Any = module._parameters  # TorchScript has a mapping without `get`
        parameter = held[name] if name in held.keys() else None  # noqa: SIM118
        if parameter is None:
            raise DitherError(
                f"the noisy parameter {self.name!r} is no longer in the model: it was replaced, "
                "pruned or parametrised after inject; call remove() and inject again"
            )
        return parameter

    def let_go(self) -> None:
        """Forget the shadow."""
        self.put, self.under, self.again, self.made, self.held = None, [], None, None, None
        self.gathered = False


class Sites(dict[str, Site]):
    """Site name → Site, in the order of the model. It prints as a table.

    skipped: {module name: why it is no site}.
    """

    def __init__(self, sites: list[Site], skipped: dict[str, str]) -> None:
        super().__init__((s.name, s) for s in sites)
        self.skipped = skipped

    def rows(self) -> list[tuple[str, ...]]:
        """The table's cells, its head first."""
        return [("site", "of", "noise", "shape")] + [
            (site.name, type(site.module).__name__, describe(site.noise), _shape(site))
            for site in self.values()
        ]

    def set(self, sigmas: Mapping[str, Any]) -> None:
        """Give sites other σ, {site: σ}. Raises DitherError for unknown sites and wrong σ, before
        anything is changed.
        """
        if unknown := [name for name in sigmas if name not in self]:
            raise DitherError(
                f"set: there is no site {unknown[0]!r}; there are {', '.join(map(repr, self))}"
            )
        changed = {name: replace(self[name].noise, sigma=s) for name, s in sigmas.items()}
        for name, noise in changed.items():
            site = self[name]
            if getattr(site.module, "placed_noise", None) is site.noise:
                site.module.placed_noise = noise
            site.noise = noise

    def html(self, title: str) -> str:
        """The table for a notebook."""
        head, *rows = self.rows()
        notes = [f"not a site: {name}: {why}" for name, why in self.skipped.items()]
        return html(head, rows, title, notes)

    def __repr__(self) -> str:
        lines = grid(self.rows())
        lines += [f"not a site: {name}: {why}" for name, why in self.skipped.items()]
        return "\n".join(lines)

    __str__ = __repr__


def _shape(site: Site) -> str:
    shape, missing = site.seen, "in compiled code" if site.step else "not called yet"
    if site.side == "parameter":
        module, name = site.owners[0]
        shape, missing = getattr(module._parameters.get(name), "shape", None), "not there any more"
    return missing if shape is None else "×".join(map(str, shape)) or "scalar"


def label(name: str) -> str:
    """The name of a Node's vectors: the site's name without dots, which torch forbids."""
    return name.replace(".", "/")


def groups(sites: Mapping[str, Site], by: str) -> tuple[frozenset[str], ...]:
    """The names of the M tensors, or of the tensors of the M layers, that share σ."""
    names: dict[object, set[str]] = {}
    for name, site in sites.items():
        if site.side == "parameter":
            names.setdefault(name if by == "tensor" else id(site.module), set()).add(name)
    return tuple(map(frozenset, names.values()))
