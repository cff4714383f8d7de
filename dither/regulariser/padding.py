"""Embeddings whose gradient is that of what they compute.

torch gives a padding row no gradient, divides gradients by how often a row occurs
(`scale_grad_by_freq`), makes them sparse, and has no second derivative of an embedding bag. Noise
reaches every row alike.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from dither.engine.bags import bag


class _Plain(TorchFunctionMode):
    """Embeddings as plain look-ups; those that renormalise their rows stay as they are."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.embedding and not _renormalises(args, kwargs, 3):
            x, w = (*args, *(kwargs[n] for n in ("input", "weight") if n in kwargs))[:2]
            return func(x, w)
        if func is F.embedding_bag and not _renormalises(args, kwargs, 3):
            return bag(*args, **kwargs)
        return func(*args, **kwargs)


def _renormalises(args: tuple, kwargs: dict[str, Any], at: int) -> bool:
    return kwargs.get("max_norm", args[at] if len(args) > at else None) is not None


def padded(noise: Any) -> Any:
    """The context in which noisy embeddings are plain look-ups."""
    owners = (module for site in noise.ordered for module, _ in site.owners)
    there = any(isinstance(module, nn.Embedding | nn.EmbeddingBag) for module in owners)
    return _Plain() if there else nullcontext()
