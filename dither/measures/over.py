"""What a curvature is taken over: a model's parameters and a data set, ready to be differentiated.

The mean loss over a data set is L = Σ_batches (B/N) L_batch. The weight of a batch is its number of
samples B, also if the loss divides by another count (ignored positions, class weights).
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dither import loss as losses
from dither.attach.inject import Injection
from dither.calling import check_devices, evaluating, tensors
from dither.errors import DitherError
from dither.measures.multilinear import alone


@dataclass
class Over:
    """A model in eval mode without noise, its parameters by name, the loss, and a data set.

    what    who asks
    noise   the Injection that named the parameters; None: all of them
    first   the first batch
    """

    what: str
    noise: Injection | None
    model: nn.Module
    parameters: dict[str, Tensor]
    loss: Any
    data: Iterable[tuple[Any, Tensor]]
    first: tuple[Any, Tensor]

    @property
    def batches(self) -> Iterator[tuple[Any, Tensor]]:
        """The batches, read anew, as autograd can save them."""
        return _ready(self.what, self.data)


@contextmanager
def over(what: str, model: nn.Module | Injection, loss: Any, data: Any) -> Iterator[Over]:
    """The model in eval mode and without noise inside, and out of inference mode.

    `what` is who asks. Raises DitherError for a data set or batch that is empty or can be read only
    once, for several devices, for an injection with noise on activations, and for parameters that
    can't be differentiated.
    """
    data, each = _batches(what, data), losses.get(loss)
    noise = model if isinstance(model, Injection) else None
    model = model if noise is None else _parameters_only(what, noise).model
    if not isinstance(model, nn.Module):
        raise DitherError(f"{what} takes a model, or an injection of noise: got {model!r}")
    parameters: dict[str, Tensor] = {
        n: p for n, p in model.named_parameters() if noise is None or n in noise.sites
    }
    with torch.inference_mode(False), evaluating(model), alone(model):
        _check_differentiable(what, model)
        _check_real(what, parameters)
        first = next(_ready(what, data), None)
        if first is None:
            raise DitherError(f"{what} needs at least one batch (x, y): got none")
        check_devices(model, *first)
        yield Over(what, noise, model, parameters, each, data, first)


def _parameters_only(what: str, noise: Injection) -> Injection:
    """The injection. Raises DitherError if one of its sites is no parameter."""
    others = [name for name, site in noise.sites.items() if site.side != "parameter"]
    if others:
        raise DitherError(
            f"{what} takes a model, or an injection of noise on parameters: {others[0]!r} is an "
            "activation; pass the model, or inject Weight"
        )
    return noise


def _batches(what: str, data: Any) -> Iterable[tuple[Any, Tensor]]:
    if isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[1], Tensor):
        return [(data[0], data[1])]
    if isinstance(data, Iterator):
        raise DitherError(
            f"{what} reads the data more than once: got an iterator; pass a list of batches"
        )
    return data


def _ready(what: str, batches: Iterable[tuple[Any, Tensor]]) -> Iterator[tuple[Any, Tensor]]:
    """The batches as autograd can save them. Raises DitherError for an empty one."""
    for batch in batches:
        if isinstance(batch, Mapping) or len(batch) != 2:
            got = type(batch).__name__
            got += f" of {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else ""
            raise DitherError(f"{what} takes batches (x, y): got a {got}; give pairs")
        x, y = batch
        if isinstance(y, Tensor) and y.dim() == 0:
            raise DitherError(
                f"{what} takes batches (x, y): got single samples of {type(batches).__name__}; "
                "pass DataLoader(dataset, batch_size=…)"
            )
        if len(y) == 0:
            raise DitherError(f"{what} needs at least one sample in a batch: got an empty one")
        yield _savable(x), _savable(y)


def _savable(x: Any) -> Any:
    """Inference tensors as plain copies, others as they are."""
    if isinstance(x, Tensor):
        return x.clone() if x.is_inference() else x
    if not any(t.is_inference() for t in tensors(x)):
        return x
    if isinstance(x, Mapping):
        return {name: _savable(t) for name, t in x.items()}
    return tuple(map(_savable, x))


def _check_differentiable(what: str, model: nn.Module) -> None:
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        if t.is_inference():
            raise DitherError(
                f"{what} differentiates, but {name!r} was made under torch.inference_mode(): make "
                "or load the model under torch.no_grad() instead"
            )


def _check_real(what: str, parameters: Mapping[str, Tensor]) -> None:
    for name, p in parameters.items():
        if p.is_complex():
            raise DitherError(
                f"{what} is of real parameters, but {name!r} holds {p.dtype} numbers: keep its "
                "real and imaginary parts as one real parameter (torch.view_as_complex in the "
                "forward)"
            )
