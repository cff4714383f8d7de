"""Noise on the parameters themselves, after each step of an optimiser: the relatives of weight
noise.

    langevin    w_{t+1} = w_t − η∇L(w_t) + ξ_{t+1}             perturbed gradient descent: a walk
    anti_pgd    w_{t+1} = w_t − η∇L(w_t) + ξ_{t+1} − ξ_t       the increments are anti-correlated

with ξ_t = σ_t ε_t, ξ_0 = 0. Orvieto et al. 2022a, Anticorrelated Noise Injection, eq. 2 and 3. For
z = w − ξ the second is z_{t+1} = z_t − η∇L(z_t + ξ_t): exactly the descent with `Weight` noise, so
z, not w, is what `inject` trains. They have no R of their own and hang on the optimiser, since
`inject` promises never to write to a parameter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dither.attach.seeds import seeds
from dither.errors import DitherError
from dither.noise.draw import Source, key
from dither.noise.laws import Law, gaussian
from dither.noise.noises import Sigma, Weight, at


class After:
    """What `langevin` or `anti_pgd` hung on an optimiser: its clock, and the way to take it off.

    `state_dict()` holds seed and clock: a resumed run goes on as if it had never stopped.
    """

    def __init__(
        self, optimiser: Optimizer, sigma: Sigma, seed: int | Sequence[int] | None, law: Law
    ) -> None:
        while isinstance(inner := getattr(optimiser, "optimizer", None), Optimizer):
            optimiser = inner  # as accelerate wraps it: the inner one takes the steps
        if not hasattr(optimiser, "register_step_post_hook"):
            raise DitherError(
                "noise after the step hangs on an optimiser of torch's: got "
                f"{type(optimiser).__name__}"
            )
        self.optimiser, self.noise = optimiser, Weight(sigma, law)  # Weight checks both
        self.seeds, self.step = seeds(seed), 0
        self._handle = optimiser.register_step_post_hook(self._moved)

    def remove(self) -> None:
        """No more noise after the steps; harmless when called twice."""
        self._handle.remove()

    def state_dict(self) -> dict[str, Any]:
        return {"seeds": self.seeds, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; the parameters come with the model's own state."""
        self.seeds, self.step = tuple(state["seeds"]), state["step"]

    def xi(self, index: int, like: Tensor, step: int) -> Tensor:
        """ξ_t of the optimiser's parameter number `index`; ξ_0 = 0."""
        noise = at(self.noise, step - 1)
        if step == 0 or noise.sigma == 0:
            return torch.zeros_like(like)
        if len(self.seeds) > 1 and (like.dim() == 0 or len(like) != len(self.seeds)):
            raise DitherError(
                f"{len(self.seeds)} seeds are for a stack of as many replicas: parameter {index} "
                f"of the optimiser is {list(like.shape)}; give one seed"
            )
        source = Source([key(s, "after", index, step - 1) for s in self.seeds])
        return noise.sigma * source(noise.law, like)

    @torch.no_grad()
    def _moved(self, *_: object) -> None:
        overflow = getattr(self.optimiser, "found_inf", None)
        if overflow is not None and bool(overflow):  # a fused step that GradScaler has skipped
            return
        self.step += 1
        for index, w in enumerate(self._parameters()):
            if w.requires_grad:  # frozen ones are no part of the descent
                self._displace(index, w)

    def _displace(self, index: int, w: Tensor) -> None:
        w += self.xi(index, w, self.step)

    def _parameters(self) -> list[Tensor]:
        return [w for group in self.optimiser.param_groups for w in group["params"]]


class AntiCorrelated(After):
    """The weights carry ξ_t, which `remove` takes away and `without` for a while."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.carried: dict[int, int] = {}  # parameter → the t of the ξ_t on it; none: 0

    def remove(self) -> None:
        """The weights become z = w − ξ, and stay without noise."""
        self._carry({})
        self.step = 0
        super().remove()

    @contextmanager
    def without(self) -> Iterator[None]:
        """Inside, the weights are z = w − ξ: to be evaluated, not to be trained."""
        before = dict(self.carried)
        self._carry({})
        try:
            yield
        finally:
            self._carry(before if self.step else {})  # removed inside: stays off

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"carried": dict(self.carried)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.carried = dict(state["carried"])

    @torch.no_grad()
    def _carry(self, wanted: dict[int, int]) -> None:
        """Put on each parameter the ξ_t of the t that is wanted, in place of its own."""
        for index, w in enumerate(self._parameters()):
            now, then = self.carried.get(index, 0), wanted.get(index, 0)
            if now != then:
                w += self.xi(index, w, then) - self.xi(index, w, now)
        self.carried = dict(wanted)

    def _displace(self, index: int, w: Tensor) -> None:
        w += self.xi(index, w, self.step) - self.xi(index, w, self.carried.get(index, 0))
        self.carried[index] = self.step


def langevin(
    optimiser: Optimizer,
    sigma: Sigma,
    *,
    seed: int | Sequence[int] | None = None,
    law: Law = gaussian,
) -> After:
    """Noise after each step, w_{t+1} = w_t − η∇L(w_t) + σ ε: perturbed (Langevin-like) descent.

    Nothing takes the noise back but the gradient: along directions where L is flat the weights
    walk, their variance grows by σ² a step. Jin et al. 2021; Orvieto et al. 2022a, eq. 2.

    sigma  a number or a schedule, in the units of the parameters; √(2ηT) is the temperature T.
    seed   as in `inject`; a list for a stacked model. Every parameter of the optimiser that is
           not frozen is moved, by its number in the optimiser: two optimisers with one seed move
           alike.

    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> optimiser = torch.optim.SGD([w], 0.1)
    >>> walk = langevin(optimiser, 0.5, seed=0)
    >>> w.sum().backward(); optimiser.step()
    >>> bool((w == -0.1 + walk.xi(0, w, 1)).all())
    True
    """
    return After(optimiser, sigma, seed, law)


def anti_pgd(
    optimiser: Optimizer,
    sigma: Sigma,
    *,
    seed: int | Sequence[int] | None = None,
    law: Law = gaussian,
) -> AntiCorrelated:
    """Anti-PGD: the increments ξ_{t+1} − ξ_t are anti-correlated, so that the variance stays σ².

    w_t − ξ_t is what descent with `Weight(sigma)` noise would have, at the same draws; w_t has one
    draw on it. A schedule that ends at 0 (`schedule.Until`) or `remove` takes that off, `without`
    for a look. Orvieto et al. 2022a, eq. 3. Arguments as in `langevin`. Rounding adds up over the
    steps: train in float32 or wider.
    """
    return AntiCorrelated(optimiser, sigma, seed, law)
