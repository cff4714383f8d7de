"""What is compared: a noise, or a baseline, and how to train with it."""

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, fields, replace
from functools import partial
from types import FunctionType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dither.attach.inject import DrawMode, Group
from dither.errors import DitherError, is_number
from dither.lab.training.optimiser import SGD, Adam, RMSprop
from dither.loss.columns import Columns
from dither.loss.losses import HalfSquare
from dither.noise.noises import Additive, is_noise
from dither.schedule import Balanced

Objective = Literal["noise", "explicit", "sampled"]


@dataclass(frozen=True)
class Method:
    """A noise or a baseline, and how to train with it. None stands for the comparison's own.

    noise      None, a noise, or a mapping from patterns to noises (`inject`). The first argument.
    objective  "noise": train with the noise on; "explicit": on loss + exact R, with the noise off;
               "sampled": on loss + R from one random column
    penalty    the loss whose R is added, where it is not the loss itself: `Distance()` gives the
               squared Jacobian of the outputs
    draw, by   how Weight is drawn (`inject`)
    model      () → a new nn.Module
    optimiser, schedule, loss, step   as in `compare`
    weight_decay  λ of the optimiser
    dropout    the rate of all dropout layers of the model
    sam        ρ of sharpness-aware minimisation: the gradient at w + ρ g/‖g‖ (Foret et al. 2021)
    """

    noise: Any = None
    _: KW_ONLY
    objective: Objective = "noise"
    penalty: Any = None
    draw: DrawMode = "each"
    by: Group = "tensor"
    model: Callable[[], nn.Module] | None = None
    optimiser: Any = None
    schedule: Any = None
    loss: Any = None
    step: Any = None
    weight_decay: float | None = None
    dropout: float | None = None
    sam: float = 0.0


def weight_decay(strength: float) -> Method:
    """θ decays by lr · strength in each step, in the optimiser's own way."""
    return Method(weight_decay=_number("weight_decay", strength))


def label_smoothing(share: float) -> Method:
    """The cross-entropy with the targets (1 − share) e_y + share/C.   Szegedy et al. 2016"""
    return Method(loss=nn.CrossEntropyLoss(label_smoothing=_number("label_smoothing", share, 1)))


def dropout(rate: float) -> Method:
    """The model's own dropout layers at this rate."""
    return Method(dropout=_number("dropout", rate, 1))


def sam(rho: float = 0.05) -> Method:
    """Sharpness-aware minimisation: the gradient at w + ρ g/‖g‖, two gradients a step.   Foret et
    al. 2021
    """
    return Method(sam=_number("sam", rho))


def jacobian(strength: float) -> Method:
    """Loss + strength · E‖∂z/∂x‖²_F.   Hoffman et al. 2019, here exact

    It is R of noise on the input under the loss ½‖z‖², ½σ² E‖∂z/∂x‖²_F, with σ² = 2 strength.
    """
    sigma = (2 * _number("jacobian", strength)) ** 0.5
    return Method({"input": Additive(sigma)}, objective="explicit", penalty=Distance())


def _number(name: str, value: Any, most: float = float("inf")) -> float:
    if not is_number(value) or not 0 <= float(value) < most:
        end = f" and below {most:g}" if most < float("inf") else ""
        raise DitherError(f"{name} needs a number ≥ 0{end}: got {value!r}")
    return float(value)


@dataclass(frozen=True)
class Distance:
    """ℓ = ½‖z − z₀‖² at z₀ = z: it is 0, and H = I. Its R is ½ Σ σ² E‖∂z/∂h‖²_F: the Jacobian's."""

    def per_sample(self, z: Tensor, y: Any) -> Tensor:
        return HalfSquare().per_sample(z, z.detach())

    def columns(self, z: Tensor, y: Any) -> Columns:
        return HalfSquare().columns(z, z.detach())


def methods(given: Any, match: float | None, every: int) -> dict[str, Method]:
    """{name: Method} from what a user gives, with balanced σ if methods are matched.

    Raises DitherError for anything else.
    """
    if not isinstance(given, Mapping):
        raise DitherError(f"compare: methods is a mapping, as {{'none': None}}: got {given!r}")
    if not given:
        raise DitherError("compare needs at least one method, such as {'none': None}: got none")
    for name in given:
        if not isinstance(name, str) or not name.strip():
            raise DitherError(f"compare: the name of a method is a string: got {name!r}")
    found = {name: _method(name, method) for name, method in given.items()}
    if match is None:
        return found
    if all(m.noise is None for m in found.values()):
        raise DitherError(
            "compare: match gives all noises the same R, and no method has a noise: leave it out"
        )
    kind = Balanced(match, every=every)
    return {name: replace(m, noise=_balanced(m.noise, kind)) for name, m in found.items()}


def _balanced(noise: Any, kind: Balanced) -> Any:
    """The same noises with σ that keeps R at a share of the loss."""
    if noise is None:
        return None
    if isinstance(noise, Mapping):
        return {pattern: _balanced(one, kind) for pattern, one in noise.items()}
    return replace(noise, sigma=kind)


def _method(name: str, method: Any) -> Method:
    if method is None or is_noise(method) or isinstance(method, Mapping):
        return Method(method)
    if not isinstance(method, Method):
        raise DitherError(
            f"method {name!r} must be None, a noise, a mapping from patterns to noises, or a "
            f"Method: got {method!r}"
        )
    if method.objective not in ("noise", "explicit", "sampled"):
        raise DitherError(
            f"method {name!r}: objective is 'noise', 'explicit' or 'sampled': got "
            f"{method.objective!r}"
        )
    if method.objective != "noise" and method.noise is None:
        raise DitherError(
            f"method {name!r}: objective {method.objective!r} penalises a noise: give one"
        )
    if method.step is not None and (method.objective != "noise" or method.sam):
        raise DitherError(
            f"method {name!r} has a training step of its own, which decides what is minimised: "
            "leave out objective and sam"
        )
    return method


@dataclass(frozen=True, eq=False)
class Made:
    """A user's model, in place of a network's specification. dropout: the rate of its layers."""

    make: Callable[[], nn.Module]
    dropout: float | None = None

    def build(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.make()
        if not isinstance(model, nn.Module):
            raise DitherError(f"make_model is a function that gives a new nn.Module: got {model!r}")
        layers = [m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
        if self.dropout is not None:
            if not layers:
                raise DitherError("dropout: the model has no dropout layer; leave this method out")
            for layer in layers:
                layer.p = self.dropout
        return model


@dataclass(frozen=True, eq=False)
class Own:
    """A user's optimiser: parameters → an Optimizer, or (Optimizer, a scheduler of torch)."""

    make: Callable[..., Any]
    weight_decay: float | None = None

    def build(self, model: Any, nodes: Any = ()) -> Optimizer:
        return self.both([*model, *nodes])[0]

    def both(self, parameters: list[Tensor]) -> tuple[Optimizer, Any]:
        made = self.make(parameters)
        optimiser, scheduler = made if isinstance(made, tuple | list) else (made, None)
        if not isinstance(optimiser, Optimizer):
            raise DitherError(
                "the optimiser is a function of the parameters that gives a torch.optim.Optimizer, "
                f"or one with its scheduler: it gave {type(optimiser).__name__}"
            )
        if self.weight_decay is not None:
            for group in optimiser.param_groups:
                if "weight_decay" not in group:
                    raise DitherError(f"{type(optimiser).__name__} has no weight decay")
                group["weight_decay"] = self.weight_decay
        return optimiser, scheduler


def optimiser(given: Any, decay: float | None) -> Any:
    """A specification of dither.lab, or a user's function, with the method's weight decay."""
    if isinstance(given, Optimizer):
        raise DitherError(
            "compare: the optimiser is built anew for each run: give a function of the "
            f"parameters, lambda p: torch.optim.{type(given).__name__}(p, lr=…), or a "
            "specification of dither.lab such as SGD(0.05)"
        )
    if hasattr(given, "build") and hasattr(given, "lr"):
        return given if decay is None else replace(given, weight_decay=decay)
    if callable(given):
        return Own(given, decay)
    raise DitherError(
        "compare: the optimiser is a function of the parameters, such as lambda p: "
        f"torch.optim.AdamW(p, lr=1e-3), or one of dither.lab, such as SGD(0.05): got {given!r}"
    )


def called(value: Any) -> str:
    """What a user gave, as a word: a name, or the name of its function or kind."""
    if isinstance(value, str):
        return value
    if isinstance(value, SGD | Adam | RMSprop):
        own = [f.name for f in fields(value) if getattr(value, f.name) != f.default]
        inside = ", ".join(f"{name}={getattr(value, name)!r}" for name in own)
        return f"{type(value).__name__}({inside})"
    while isinstance(value, partial):
        value = value.func
    name = str(getattr(value, "__name__", type(value).__name__))
    if name == "<lambda>":
        return "of its own"
    return f"{name}()" if isinstance(value, FunctionType) else name
