"""Embedding bags as what they are: rows by number, then a sum, a mean or a maximum over each bag.

torch's own has a backward that is not differentiable, and with `scale_grad_by_freq` no gradient of
what it computes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """`F.embedding_bag` [bags, d]; a padded row has no part in it. `max_norm` is not for here."""
    if input.dim() == 2:
        counted = torch.ones_like(input, dtype=torch.bool)
        if padding_idx is not None:
            counted = input != padding_idx % len(weight)
        rows = F.embedding(input, weight)  # [bags, N, d]
        return _reduced(rows, counted, per_sample_weights, mode)
    assert offsets is not None
    starts = offsets[:-1] if include_last_offset else offsets
    ends = torch.cat([starts[1:], starts.new_tensor([len(input)])])
    of = torch.repeat_interleave(torch.arange(len(starts), device=input.device), ends - starts)
    counted = torch.ones_like(input, dtype=torch.bool)
    if padding_idx is not None:
        counted = input != padding_idx % len(weight)
    rows, of = F.embedding(input, weight)[counted], of[counted]  # [N, d]
    out = rows.new_zeros(len(starts), rows.shape[1])
    if per_sample_weights is not None:
        rows = rows * per_sample_weights[counted].unsqueeze(1)
    if mode == "max":
        at = of.unsqueeze(1).expand_as(rows)
        return out.scatter_reduce(0, at, rows, "amax", include_self=False)
    total = out.index_add(0, of, rows)
    if mode == "sum":
        return total
    return total / torch.bincount(of, minlength=len(starts)).clamp(min=1).unsqueeze(1)


def _reduced(rows: Tensor, counted: Tensor, weights: Tensor | None, mode: str) -> Tensor:
    """[bags, N, d] over N."""
    if weights is not None:
        rows = rows * weights.unsqueeze(2)
    if mode == "max":
        most = rows.masked_fill(~counted.unsqueeze(2), -torch.inf).amax(1)
        return most.masked_fill(~counted.any(1, keepdim=True), 0.0)
    total = (rows * counted.unsqueeze(2)).sum(1)
    return total if mode == "sum" else total / counted.sum(1).clamp(min=1).unsqueeze(1)
