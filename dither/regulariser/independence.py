"""What is said where R or the second order can't be had: samples meet, a way to the output is not
seen, a model gives another output each time.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dither.attach.injection import Injection
from dither.calling import output
from dither.engine.recording import Graph
from dither.errors import DitherError
from dither.noise.here import Here
from dither.noise.noises import Additive, Node
from dither.regulariser.one_by_one import near


def rows(here: Here, law: Any) -> int | None:
    """The dimension whose rows a sample must have for itself: a Node draws one ε for each. None:
    every element is drawn by itself.
    """
    shared = getattr(law, "per_sample", False)
    return here.samples if shared and not here.stack else None


def refuse_meeting(graph: Graph, name: str) -> DitherError:
    """Two samples reach one element of a site, or one ε of a Node."""
    tapped = next(t for t in graph.activations.values() if t.name == name)
    if tapped.rows is None:
        return DitherError(
            "exact R needs independent samples in dimension 0 of the output, but two of them "
            f"depend on the same elements at {name!r}: the model mixes the batch, or shares that "
            "tensor; pass samples=1, or put the samples first"
        )
    return DitherError(
        f"the noise at {name!r} draws an ε for each index of dimension {tapped.rows} of its tensor"
        f", {list(tapped.shape)}, and two samples of the output depend on the same: say with "
        "batch_dim= of inject which dimension counts the samples, or pass samples=1"
    )


def refuse_uncalled(noise: Injection) -> DitherError:
    """No site was met in a forward."""
    return DitherError(
        f"none of the sites ({', '.join(noise.sites)}) was called in this forward: was a module "
        "replaced after inject? Inject again"
    )


def refuse_writing(model: nn.Module) -> DitherError:
    """A forward that must be run again has written to its input."""
    return DitherError(
        f"the forward of {type(model).__name__} writes to its input in place, and must be run more "
        "than once here: let it work on a copy, x = x.clone()"
    )


def check_seen(graph: Graph, laws: dict[str, Any]) -> None:
    """Raises DitherError where R can't see the way from a site to the output."""
    for name in sorted(graph.unseen):
        raise DitherError(
            f"R can't be taken at {name!r}: the model's forward uses it with gradients off "
            "(torch.no_grad or torch.func inside); let gradients through, or use "
            "dither.expected"
        )
    if graph.differentiates:
        for name, law in laws.items():
            if not isinstance(law, Additive | Node):
                raise DitherError(
                    f"R can't be taken at {name!r}: the model's forward differentiates (its "
                    f"output holds a gradient), and {type(law).__name__} noise depends on what is "
                    "differentiated; use dither.expected"
                )


def check_repeats(model: nn.Module, z: Tensor, x: Any) -> None:
    """Raises DitherError where a model in eval mode gives another output at a second call."""
    if not any(module.training for module in model.modules()):  # else its own dropout is meant
        check_same(model, z, output(model, x))  # with gradients on: its hooks may want them


def check_same(model: nn.Module, z: Tensor, again: Tensor) -> None:
    """Raises DitherError where two outputs for one x, in eval mode, differ."""
    if again.shape != z.shape or not near(again, z, *model.parameters()):
        raise DitherError(
            f"{type(model).__name__} gives another output when it is called again in eval mode: it "
            "draws by itself (F.dropout without training=?) or keeps a state; R and "
            "E[Δℓ] are of a function of x"
        )
