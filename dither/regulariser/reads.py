"""Whether a forward reads its noisy parameters where weight noise can reach them.

W + δ stands at the attribute of the module, `self.weight`. What the forward takes from
`parameters()`, `named_parameters()`, `state_dict()` or a list of its own is W itself: the noise is
absent there, and R would be of a noise that does nothing.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

from dither.attach.inject import Injection
from dither.attach.reading import Idle, reading
from dither.attach.shadow import showing
from dither.attach.weights import READ, read_past
from dither.calling import evaluating, ordinary, output, tensors, thawed
from dither.errors import DitherError
from dither.torch_internals import without_checkpoints


def check_reads(noise: Injection, x: Any) -> None:
    """Raises DitherError where the forward reads a noisy parameter past its attribute; once for
    inputs of as many dimensions. It takes one forward, of which nothing is saved.
    """
    mark = ("reads", tuple((t.dim(), t.dtype) for t in tensors(x)))
    if not noise.shadowed or mark in noise.layouts or any(s.sharded for s in noise.shadowed):
        return
    for hooks in (saved_tensors_hooks(lambda t: None, lambda kept: kept), nullcontext()):
        try:
            with hooks:
                past = _past(noise, x)
            break
        except (RuntimeError, TypeError):  # a forward that differentiates needs what it saved
            continue
    else:
        return  # the model's own error, which its next forward raises
    if past is None:
        return
    if past:
        raise DitherError(f"weight noise can't reach {past[0]!r}: {READ}, or use another noise")
    noise.layouts[mark] = True


def _past(noise: Injection, x: Any) -> list[str] | None:
    """The sites that are read past; None where the output has no graph that tells."""
    frozen = [s.parameter for s in noise.shadowed if not s.parameter.requires_grad]
    with (
        torch.inference_mode(False),
        evaluating(noise.model),
        torch.enable_grad(),
        reading(noise, Idle()),
        without_checkpoints(),
        thawed(frozen),
        showing((s, s.parameter.detach().requires_grad_()) for s in noise.shadowed),
    ):
        z = output(noise.model, ordinary(x))
        return None if z.grad_fn is None else read_past(noise.shadowed, [z])
