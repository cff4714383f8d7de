"""Reliability diagrams and the expected calibration error.

    ECE = Σ_m (n_m/n) |accuracy_m − confidence_m|

over M equal bins (m/M, (m + 1)/M] of the confidence max_c p_c, with n_m examples in bin m. Guo et
al. 2017, eq. 3; Camuto et al. 2020, Fig. F.7. With finitely many examples it is above 0 for a
perfect model too; `Reliability.chance` is that bias. torchmetrics gives the error and no bins: so
it is computed here and tested against torchmetrics.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dither.calling import check_class_numbers
from dither.errors import DitherError, check_whole
from dither.picture import BLUE, SOFT, panel

__all__ = ["Reliability", "error", "reliability"]


class Reliability(NamedTuple):
    """Per bin [M]: the number of examples, their mean confidence, their accuracy (nan in an empty
    bin), and the variance Σ conf(1 − conf) of the number of right answers of a calibrated model.
    """

    count: Tensor
    confidence: Tensor
    accuracy: Tensor
    variance: Tensor

    @property
    def gap(self) -> Tensor:
        """Accuracy − confidence, [M]; 0 in an empty bin."""
        return (self.accuracy - self.confidence).nan_to_num(0.0)

    @property
    def share(self) -> Tensor:
        """n_m/n, [M]."""
        return self.count / self.count.sum()

    @property
    def error(self) -> Tensor:
        """The expected calibration error Σ_m (n_m/n) |accuracy_m − confidence_m|."""
        return (self.share * self.gap.abs()).sum()

    @property
    def worst(self) -> Tensor:
        """The maximum calibration error max_m |accuracy_m − confidence_m|.   Guo et al., eq. 5"""
        return self.gap.abs().max()

    @property
    def overconfidence(self) -> Tensor:
        """Mean confidence − accuracy. Below 0 the model is underconfident."""
        return -(self.share * self.gap).sum()

    @property
    def chance(self) -> Tensor:
        """The expected error of a perfectly calibrated model with these confidences:
        Σ_m √(2 v_m/π)/n, as the mean of |N(0, v)| is √(2v/π).
        """
        return (2 / math.pi * self.variance).sqrt().sum() / self.count.sum()

    def plot(self, ax: Any = None) -> Any:
        """Accuracy against confidence, bin by bin, with bars of ± 2 standard deviations √v_m/n_m
        of a calibrated model about the accuracy: a bar that reaches the diagonal says nothing.
        Below, as grey columns, each bin's share of the examples. As a figure of pyplot; or drawn
        into the axes `ax`. Raises DitherError if matplotlib is missing.
        """
        figure, ax = panel(ax, width=4.2, height=4.0)
        count, confidence, accuracy, variance = (t[self.count > 0].cpu() for t in self)
        bars, bins = 2 * variance.sqrt() / count, len(self.count)
        edges = [m / bins for m in range(bins)]
        ax.bar(edges, self.share.tolist(), 1 / bins, align="edge", color=SOFT, alpha=0.3)
        ax.plot([0, 1], [0, 1], color=SOFT, lw=1)
        ax.errorbar(confidence, accuracy, bars, fmt="none", ecolor=BLUE, elinewidth=1.5)
        ax.plot(confidence, accuracy, "o", color=BLUE, ms=4, clip_on=False, zorder=3)
        ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy; share of examples")
        ax.set_title(f"error {self.error:.3g}, by chance {self.chance:.3g}", fontsize="medium")
        return figure


def reliability(p: Tensor, y: Tensor, *, bins: int = 15) -> Reliability:
    """The reliability diagram of probabilities p [n, C] with classes y [n], in float64.

    DeGroot & Fienberg 1983; Guo et al. 2017, Fig. 1. Raises DitherError unless each row of p
    is a distribution (logits are not), y holds class numbers 0 … C − 1, and bins is a whole number
    ≥ 1.
    """
    if not (isinstance(p, Tensor) and isinstance(y, Tensor)):
        raise DitherError(
            "calibration needs tensors of probabilities [n, C] and class numbers [n]: got "
            f"{type(p).__name__} and {type(y).__name__}"
        )
    if p.dim() != 2 or y.shape != p.shape[:1] or not len(y):
        raise DitherError(
            "calibration needs probabilities [n, C] and class numbers [n]: got "
            f"{list(p.shape)} and {list(y.shape)} of {y.dtype}"
        )
    check_class_numbers("calibration", y, p.shape[1])
    check_whole("calibration: bins", bins)
    p = p.detach().double()
    if not bool(((p >= 0).all() & ((p.sum(1) - 1).abs() < 1e-3).all()).item()):
        raise DitherError(
            "calibration needs probabilities that are ≥ 0 and sum to 1 over the classes: pass "
            "z.softmax(-1) for logits z"
        )
    confidence, answer = p.max(1)
    confidence = confidence.clamp(max=1.0)
    at = (confidence * bins).ceil().long().clamp(1, bins) - 1  # (m/M, (m + 1)/M]

    def total(values: Tensor) -> Tensor:
        return torch.zeros(bins, dtype=p.dtype, device=p.device).index_add_(0, at, values.to(p))

    count = total(torch.ones_like(confidence))
    return Reliability(
        count=count,
        confidence=total(confidence) / count,
        accuracy=total(answer == y) / count,
        variance=total(confidence * (1 - confidence)),
    )


def error(p: Tensor, y: Tensor, *, bins: int = 15) -> float:
    """The expected calibration error of probabilities p [n, C] with classes y [n].

    >>> p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    >>> round(error(p, torch.tensor([0, 1, 1])), 4)      # ⅔ |½ − 0.9| + ⅓ |1 − 0.6|
    0.4
    """
    return float(reliability(p, y, bins=bins).error)
