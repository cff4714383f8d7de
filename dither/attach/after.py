"""Noise on the parameters themselves, after each step of an optimiser. These are baselines of
weight noise.

    langevin    w_{t+1} = w_t − η∇L(w_t) + ξ_{t+1}             perturbed gradient descent: a walk
    anti_pgd    w_{t+1} = w_t − η∇L(w_t) + ξ_{t+1} − ξ_t       the increments are anti-correlated

with ξ_t = σ_t ε_t, ξ_0 = 0. Orvieto et al. 2022a, Anticorrelated Noise Injection, eq. 2 and 3. For
z = w − ξ the second is z_{t+1} = z_t − η∇L(z_t + ξ_t). That is descent with `Weight` noise, so the
weights that `inject` trains are z, not w. Both have no R. They are hooks of the optimiser, because
`inject` never writes to a parameter.
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
    """The noise that `langevin` or `anti_pgd` adds after the steps of an optimiser.

    `state_dict()` holds seed and clock: a resumed run continues as if it had never stopped.
    `remove` takes the noise off.
    """

    def __init__(
        self, optimiser: Optimizer, sigma: Sigma, seed: int | Sequence[int] | None, law: Law
    ) -> None:
        while isinstance(inner := getattr(optimiser, "optimizer", None), Optimizer):
            optimiser = inner  # accelerate wraps optimisers: the inner one takes the steps
        if not hasattr(optimiser, "register_step_post_hook"):
            raise DitherError(
                "noise after the step needs an optimiser of torch.optim: got "
                f"{type(optimiser).__name__}"
            )
        self.optimiser, self.noise = optimiser, Weight(sigma, law)  # Weight checks both
        self.seeds, self.step = seeds(seed), 0
        self._handle = optimiser.register_step_post_hook(self._moved)

    def remove(self) -> None:
        """Add no more noise after the steps. A second call does nothing."""
        self._handle.remove()

    def state_dict(self) -> dict[str, Any]:
        return {"seeds": self.seeds, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`. The parameters are in the state of the model."""
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
            if w.requires_grad:  # frozen parameters are not moved
                self._displace(index, w)

    def _displace(self, index: int, w: Tensor) -> None:
        w += self.xi(index, w, self.step)

    def _parameters(self) -> list[Tensor]:
        return [w for group in self.optimiser.param_groups for w in group["params"]]


class AntiCorrelated(After):
    """The weights carry ξ_t. `remove` takes it away; `without` takes it away inside a block."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.carried: dict[int, int] = {}  # parameter → t of the ξ_t that it carries; missing: 0

    def remove(self) -> None:
        """Set the weights to z = w − ξ, and add no more noise."""
        self._carry({})
        self.step = 0
        super().remove()

    @contextmanager
    def without(self) -> Iterator[None]:
        """Inside, the weights are z = w − ξ: evaluate them there, do not train them."""
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
        """Replace the ξ_t that each parameter carries by that of the given t."""
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

    Only the gradient takes the noise back. Along directions in which L is flat the weights walk:
    their variance grows by σ² per step. Jin et al. 2021; Orvieto et al. 2022a, eq. 2.

    sigma  a number or a schedule, in the units of the parameters; √(2ηT) is the temperature T.
    seed   as in `inject`; a list for a stacked model. The draws depend on the seed and on the
           parameter's number in the optimiser: two optimisers with one seed get equal draws.
           Frozen parameters are not moved.

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

    w_t carries one draw ξ_t. w_t − ξ_t is the iterate of descent with `Weight(sigma)` noise with
    the same draws. A schedule that ends at 0 (`schedule.Until`) or `remove` takes ξ_t off;
    `without` takes it off inside a block. Orvieto et al. 2022a, eq. 3. Arguments as in `langevin`.
    Rounding adds up over the steps: train in float32 or wider.
    """
    return AntiCorrelated(optimiser, sigma, seed, law)
