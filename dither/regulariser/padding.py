"""The padding row of a noisy embedding has a gradient: noise reaches it too."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


class _Padded(TorchFunctionMode):
    """Embeddings whose padding row has a gradient, for the noise reaches it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.embedding:
            args = (*args[:2], None, *args[3:]) if len(args) > 2 else args
            kwargs = {name: value for name, value in kwargs.items() if name != "padding_idx"}
        return func(*args, **kwargs)


def padded(noise: Any) -> Any:
    """The context in which a noisy embedding's padding row has a gradient."""
    owners = (module for site in noise.ordered for module, _ in site.owners)
    at = any(getattr(module, "padding_idx", None) is not None for module in owners)
    return _Padded() if at else nullcontext()
