"""The naive ways, as one writes them without a library."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.clock import Call
from benchmarks.methods import ACTIVATION, WEIGHT, Method, returning
from benchmarks.workloads import Job


def inputs(model: nn.Module) -> tuple[list[nn.Module], Callable[[], list[Tensor]]]:
    """(layers, what went into them in the last forward): Linear and convolution, in order."""
    layers: list[nn.Module] = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    seen: list[Tensor] = []

    def before(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        h = args[0]  # a view: what else reads the tensor (a shortcut) is not the layer's input
        h = h.view_as(h) if h.requires_grad else h.detach().requires_grad_()
        seen.append(h)
        return (h,)

    def taken() -> list[Tensor]:
        found = seen.copy()
        seen.clear()
        return found

    for layer in layers:
        layer.register_forward_pre_hook(before)
    return layers, taken


def _fisher(z: Tensor, jacobian: Tensor) -> float:
    """½ mean_B tr(Jᵀ(diag p − p pᵀ)J), J [C, B, …]."""
    p, J = z.detach().softmax(-1).mT.unsqueeze(-1), jacobian.flatten(2)  # [C, B, 1], [C, B, d]
    trace = (p * J.square()).sum((0, 2)) - (p * J).sum(0).square().sum(1)
    return 0.5 * trace.mean().item()


def _jacobians(per_layer: bool) -> Callable[[Job], Call]:
    """R from Jacobians of the outputs: a forward and C pull-backs for each layer, or C pull-backs
    to all, kept.
    """

    def build(job: Job) -> Call:
        layers, taken = inputs(job.model)

        def rows(which: list[int]) -> float:
            z = job.model(job.x)
            at = taken()
            h = [at[i] for i in which]
            found = [torch.autograd.grad(c.sum(), h, retain_graph=True) for c in z.unbind(1)]
            return sum(_fisher(z, torch.stack(J)) for J in zip(*found, strict=True))

        def call() -> float:
            if per_layer:
                return sum(rows([i]) for i in range(len(layers)))
            return rows(list(range(len(layers))))

        return call

    return build


def _vmapped(job: Job) -> Call:
    """The trace from per-sample gradients, one column √p_c (e_c − p) after another."""
    parameters = {name: p.detach() for name, p in job.model.named_parameters()}

    def one(parameters: dict[str, Tensor], x: Tensor, s: Tensor) -> Tensor:
        return (torch.func.functional_call(job.model, parameters, x.unsqueeze(0))[0] * s).sum()

    gradient = torch.func.vmap(torch.func.grad(one), (None, 0, 0))

    def call() -> float:
        with torch.no_grad():
            p = job.model(job.x).softmax(-1)
        total = 0.0
        for c in range(p.shape[1]):
            e = F.one_hot(torch.tensor(c), p.shape[1])
            g = gradient(parameters, job.x, p[:, c : c + 1].sqrt() * (e - p))
            total += sum(t.square().sum().item() for t in g.values())
        return total / len(p)

    return call


def restored(change: Callable[[Tensor], Tensor], one: bool = False) -> Callable[[Job], Call]:
    """Clone, change, step, copy back: all parameters, or one a step."""

    def build(job: Job) -> Call:
        step, parameters, turn = returning(job), list(job.model.parameters()), 0

        def call() -> float | None:
            nonlocal turn
            chosen = [parameters[turn % len(parameters)]] if one else parameters
            turn += 1
            kept = [p.detach().clone() for p in chosen]
            with torch.no_grad():
                for p in chosen:
                    p.copy_(change(p))
            loss = step()
            with torch.no_grad():
                for p, w in zip(chosen, kept, strict=True):
                    p.copy_(w)
            return loss

        return call

    return build


def _perturbed(w: Tensor) -> Tensor:
    return w.add_(torch.randn_like(w), alpha=WEIGHT)


def _hooked(job: Job) -> Call:
    """A forward pre-hook per layer that adds σ randn."""
    for layer in job.model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_pre_hook(
                lambda _, args: (args[0] + ACTIVATION * torch.randn_like(args[0]),)
            )
    return returning(job)


SMALL = ("mlp256_b32", "mlp256", "cnn", "transformer")
NAIVE = (
    Method(
        "R",
        "naive",
        "a Jacobian per layer",
        _jacobians(True),
        only=(*SMALL, "mlp1024", "resnet18_b8"),
    ),
    Method(
        "R",
        "naive",
        "C pull-backs, kept",
        _jacobians(False),
        only=(*SMALL, "mlp1024", "mlp5000", "resnet18_b8", "resnet18"),
    ),
    Method("GN trace", "naive", "vmap over per-sample gradients", _vmapped, only=SMALL),
    Method("weights", "naive", "clone, perturb, restore", restored(_perturbed), exact=False),
    Method(
        "weights cycle",
        "naive",
        "clone, perturb, restore",
        restored(_perturbed, one=True),
        exact=False,
    ),
    Method("activations", "naive", "hooks with randn_like", _hooked, exact=False),
)
