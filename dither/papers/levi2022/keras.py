"""Keras' cross-entropy of a softmax output, whose probabilities it clips: a loss that goes deaf.

    ℓ = −log clip(p_y, ε, 1 − ε),  p = softmax(z), ε = 1e-7;  H = diag p − p pᵀ inside, 0 outside

An example whose p_y has fallen below ε costs 16.1, and has no gradient. (Levi et al. 2022 imply
Keras' defaults; Keras itself takes this form or the one on logits, by version and by how the loss
and the last layer are given.)
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dither.loss.columns import Columns
from dither.loss.losses import CrossEntropy


@dataclass(frozen=True)
class ClippedSoftmax:
    """−log clip(p_y, eps, 1 − eps) for z [B, C] and class numbers y [B]."""

    eps: float = 1e-7

    def log_p(self, z: Tensor, y: Tensor) -> Tensor:
        return torch.log_softmax(z, -1).gather(-1, y.unsqueeze(-1)).squeeze(-1)  # [B]

    def per_sample(self, z: Tensor, y: Tensor) -> Tensor:
        return -self.log_p(z, y).clamp(math.log(self.eps), math.log1p(-self.eps))

    def columns(self, z: Tensor, y: Tensor) -> Columns:
        log_p = self.log_p(z.detach(), y)
        hears = ((log_p >= math.log(self.eps)) & (log_p <= math.log1p(-self.eps))).to(z.dtype)
        exact = CrossEntropy().columns(z, y)
        return Columns(
            exact.count,
            lambda k: hears.unsqueeze(-1) * exact.column(k),
            lambda r: [(sign, hears.unsqueeze(-1) * s) for sign, s in exact.mixed(r)],
        )
