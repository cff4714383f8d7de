"""What a model predicts under noise: mean, spread, and how much of the doubt is the noise's.

    p̄ = E p(noise),    H(p̄) = E H(p) + I,    I = E KL(p ‖ p̄)

H(p̄) is the predictive entropy, E H(p) what each draw leaves open by itself, I the mutual
information of the class and the noise: how far the draws disagree (Houlsby et al. 2011; Gal, Islam
& Ghahramani 2017, where the noise is dropout). In nats.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dither import loss as losses
from dither.attach.inject import Injection
from dither.calling import check_devices, evaluating
from dither.errors import DitherError, NotFinite, check_whole
from dither.estimate import Estimates
from dither.loss.columns import check_outputs
from dither.loss.losses import CrossEntropy, HalfSquare, Logistic
from dither.precision import double, wide
from dither.regulariser.expected import Draws
from dither.regulariser.usable import check_there

__all__ = ["Predictive", "predictive"]


class Predictive(NamedTuple):
    """Predictions of a batch under noise.

    mean      p̄ [B, …, C], with its standard error
    spread    the standard deviation of one draw's prediction [B, …, C]
    entropy   H(p̄) [B, …], or [B, …, C] of independent labels; None for numbers
    information   I, in the same shape; None for numbers
    """

    mean: Estimates
    spread: Tensor
    entropy: Estimates | None
    information: Estimates | None


def predictive(
    noise: Injection,
    x: Any,
    *,
    draws: int = 100,
    loss: Any = "cross_entropy",
    seed: int | None = None,
) -> Predictive:
    """Mean, spread, entropy and mutual information of the predictions under noise; in eval mode,
    without gradients.

    noise     an Injection; whether its noise is on plays no part, and σ is that of its present
              step.
    draws     independent draws at every site, ≥ 2; the noise's own clock stands still.
    loss      how outputs are read. "cross_entropy": softmax over the last dimension;
              "logistic": a probability for each output; "half_square": the numbers themselves.
    seed      None takes one from torch's default generator.

    Each number comes with its standard error over the draws, and is in float64. Entropies of a mean
    of N draws are too small by Σ_c Var p_c/(2N p̄_c) + O(1/N²); the first term, from the draws' own
    variance, is put back (docs/math.md, §23). Cost: a forward for each draw. Memory: all draws'
    predictions. Raises DitherError for fewer than two draws, a loss of one's own, and outputs that
    are not finite.

    >>> import dither
    >>> net = torch.nn.Linear(2, 2, bias=False)
    >>> with dither.inject(net, {"input": dither.Additive(0.5)}, seed=0) as noise:
    ...     found = predictive(noise, torch.zeros(1, 2), draws=400, seed=0)
    >>> found.mean.value.shape, bool(found.information.value < found.entropy.value)
    (torch.Size([1, 2]), True)
    """
    read = _reading(losses.get(loss), loss)
    check_whole("predictive: draws", draws, 2)
    check_there(noise)
    check_devices(noise.model, x)
    seed = int(torch.randint(2**62, ()).item()) if seed is None else seed
    with torch.no_grad(), evaluating(noise.model):
        outputs = Draws(noise, x, seed, draws).outputs(draws)
        p = torch.stack([read(double(wide(z))) for z in outputs])  # [N, B, …, C]
    if not bool(p.isfinite().all()):
        raise NotFinite("predictive: the model's outputs under noise are not finite")
    mean, spread = Estimates.of(p), p.std(0)
    if read is _numbers:
        return Predictive(mean, spread, None, None)
    if read is torch.sigmoid:
        p = torch.stack([p, 1 - p], -1)
    cross = -torch.special.xlogy(p, p.mean(0)).sum(-1)  # its mean is H(p̄)
    own = torch.special.entr(p).sum(-1)
    lost = (p.var(0) / (2 * draws * p.mean(0))).nan_to_num(0).sum(-1)  # 0/0: a class without chance
    entropy, information = Estimates.of(cross), Estimates.of(cross - own)
    return Predictive(
        mean,
        spread,
        Estimates(entropy.value + lost, entropy.sem),
        Estimates(information.value + lost, information.sem),
    )


def _reading(kind: Any, given: Any) -> Any:
    """Outputs → predictions."""
    for law, read in ((CrossEntropy, _classes), (Logistic, torch.sigmoid), (HalfSquare, _numbers)):
        if isinstance(kind, law):
            return read
    raise DitherError(
        "predictive: loss says how outputs are read, 'cross_entropy', 'logistic' or "
        f"'half_square': got {given!r}"
    )


def _classes(z: Tensor) -> Tensor:
    check_outputs(z)
    return z.softmax(-1)


def _numbers(z: Tensor) -> Tensor:
    return z
