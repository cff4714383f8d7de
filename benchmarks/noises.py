"""What the noises people use cost in a step, and what measures under noise cost: dither's way, and
by hand or in the library that has it.
"""

from __future__ import annotations

from typing import Any

import torch
from scipy import stats
from torch import Tensor, nn

from benchmarks.clock import Call
from benchmarks.methods import ACTIVATION, WEIGHT, Method, noisy, returning
from benchmarks.naive import restored
from benchmarks.workloads import Job
from dither import Additive, DropConnect, DropPath, Locked, Masked, Neftune, Relative, inject
from dither.measures.predictions import predictive
from dither.measures.smoothing import certificate
from dither.noise import dropout

ALPHA, RATE = 5.0, 0.1  # of NEFTune; of every dropout
DRAWS, SMOOTHING = 20, (20, 200)  # draws of a prediction, and of a certificate: class, then bound
RADIUS = 0.25  # σ of the smoothed classifier
BRANCHES = ("blocks.*.attention", "blocks.*.down")


def _predicted(job: Job) -> Call:
    sites = inject(job.model, Additive(ACTIVATION), seed=0)

    def call() -> float:
        return predictive(sites, job.x, draws=DRAWS).spread.mean().item()

    return call


def _certified(job: Job) -> Call:
    def call() -> float:
        found = certificate(job.model, job.x, sigma=RADIUS, draws=SMOOTHING, seed=_seed())
        return found.lower.mean().item()

    return call


def _seed() -> int:
    return int(torch.randint(2**31, ()))


# ---------------------------------------------------------------------------------------- by hand


def _relative(w: Tensor) -> Tensor:
    return w + WEIGHT * w.abs().max() * torch.randn_like(w)


def _dropped(w: Tensor) -> Tensor:
    return w * _kept(w.shape)


def _kept(shape: Any) -> Tensor:
    """1/(1 − rate) with chance 1 − rate, else 0."""
    return torch.empty(shape).bernoulli_(1 - RATE).div_(1 - RATE)


def _modules(model: nn.Module, *endings: str) -> list[nn.Module]:
    return [m for name, m in model.named_modules() if name.endswith(endings)]


def _zeroed(_: nn.Module, args: tuple[Any, ...], z: Tensor) -> Tensor:
    return z * _kept((len(z), 1, 1))


def _branches(job: Job) -> Call:
    """A hook on each residual branch that zeroes it for a sample."""
    for branch in _modules(job.model, ".attention", ".down"):
        branch.register_forward_hook(_zeroed)
    return returning(job)


def _tokens(job: Job) -> Call:
    """A hook that draws one mask for all positions of a sample."""
    for layer in _modules(job.model, ".up"):
        layer.register_forward_pre_hook(
            lambda _, args: (args[0] * _kept((len(args[0]), 1, args[0].shape[-1])),)
        )
    return returning(job)


def _maps(job: Job) -> Call:
    """Dropout2d of torch in front of each convolution."""
    for layer in job.model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_pre_hook(
                lambda _, args: (nn.functional.dropout2d(args[0], RATE),)
            )
    return returning(job)


def _positions(job: Job) -> Call:
    """Hooks that add noise where the model's input is not 0."""
    mask: list[Tensor] = []

    def before(_: nn.Module, args: tuple[Tensor]) -> None:
        mask.append((args[0] != 0).unsqueeze(-1))

    job.model.register_forward_pre_hook(before)
    job.model.register_forward_hook(lambda *_: mask.clear())
    for layer in _modules(job.model, ".up"):
        layer.register_forward_pre_hook(
            lambda _, args: (args[0] + ACTIVATION * mask[-1] * torch.randn_like(args[0]),)
        )
    return returning(job)


def _neftune(job: Job) -> Call:
    from transformers.integrations.neftune import neftune_post_forward_hook

    embedding: Any = job.model.get_submodule("embed").train()
    embedding.neftune_noise_alpha = ALPHA
    embedding.register_forward_hook(neftune_post_forward_hook)
    return returning(job)


def _spread(job: Job) -> Call:
    """As many forwards with noise, their probabilities kept."""
    for layer in job.model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_pre_hook(
                lambda _, args: (args[0] + ACTIVATION * torch.randn_like(args[0]),)
            )

    def call() -> float:
        with torch.no_grad():
            p = torch.stack([job.model(job.x).softmax(-1) for _ in range(DRAWS)])
        return p.std(0).mean().item()

    return call


def _smoothed(job: Job) -> Call:
    """CERTIFY of Cohen et al. 2019, an input at a time."""

    def counts(x: Tensor, n: int) -> Tensor:
        with torch.no_grad():
            noisy = x + RADIUS * torch.randn(n, *x.shape)
            return job.model(noisy).argmax(-1).bincount(minlength=10)

    def call() -> float:
        lower = []
        for x in job.x:
            chosen = counts(x, SMOOTHING[0]).argmax()
            k = int(counts(x, SMOOTHING[1])[chosen])
            lower.append(float(stats.beta.ppf(0.001, k, SMOOTHING[1] - k + 1)) if k else 0.0)
        return sum(lower) / len(lower)

    return call


RELATIVE, DROPPED, NEFTUNE = "relative weights", "DropConnect", "NEFTune"
PATHS, LOCKED, MAPS = "drop path", "locked dropout", "spatial dropout"
MASKED, SPREAD, CERTIFIED = "masked", "prediction spread", "certificate"
PER_BRANCH = {f"{branch}:out": DropPath(law=dropout(RATE)) for branch in BRANCHES}
POPULAR = (
    Method(RELATIVE, "dither", "Relative", noisy(Relative(WEIGHT)), exact=False),
    Method(DROPPED, "dither", "DropConnect", noisy(DropConnect(1.0, dropout(RATE))), exact=False),
    Method(NEFTUNE, "dither", "Neftune", noisy({"embed": Neftune(ALPHA)}), exact=False),
    Method(PATHS, "dither", "DropPath", noisy(PER_BRANCH), exact=False),
    Method(
        LOCKED,
        "dither",
        "Locked",
        noisy({"blocks.*.up": Locked(law=dropout(RATE))}),
        exact=False,
    ),
    Method(
        MAPS,
        "dither",
        "Locked, features=1",
        noisy(dict.fromkeys("0369", Locked(law=dropout(RATE), features=1))),
        exact=False,
    ),
    Method(
        MASKED,
        "dither",
        "Masked",
        noisy({"blocks.*.up": Masked(Additive(ACTIVATION), lambda x: x != 0)}),
        exact=False,
    ),
    Method(SPREAD, "dither", f"predictive, {DRAWS} draws", _predicted, exact=False),
    Method(CERTIFIED, "dither", "certificate", _certified, exact=False),
)
BY_HAND = (
    Method(RELATIVE, "naive", "clone, perturb, restore", restored(_relative), exact=False),
    Method(DROPPED, "naive", "clone, perturb, restore", restored(_dropped), exact=False),
    Method(NEFTUNE, "transformers", "neftune_post_forward_hook", _neftune, exact=False),
    Method(PATHS, "naive", "hooks with bernoulli_", _branches, exact=False),
    Method(LOCKED, "naive", "hooks with bernoulli_", _tokens, exact=False),
    Method(MAPS, "torch", "dropout2d in hooks", _maps, exact=False),
    Method(MASKED, "naive", "hooks with randn_like", _positions, exact=False),
    Method(SPREAD, "naive", "as many forwards", _spread, exact=False),
    Method(CERTIFIED, "naive", "CERTIFY, an input at a time", _smoothed, exact=False),
)
