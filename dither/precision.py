"""Precision: half types in single for sums of squares, all types in double for exact means."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def wide(t: Any) -> Any:
    """A tensor of half precision in single; others as they are. Sums of squares need the digits and
    the range.
    """
    half = isinstance(t, Tensor) and t.dtype in (torch.bfloat16, torch.float16)
    return t.float() if half else t


def double(t: Tensor) -> Tensor:
    """A tensor in double precision. A device without it (MPS) gives a tensor on the CPU."""
    return (t.cpu() if t.is_mps else t).double()
