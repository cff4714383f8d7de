"""Dense, slow and obviously right: what the engine is checked against, in float64.

Nothing here knows how the engine works. Sites are read by hooks of our own, every Jacobian is a
loop of backward passes, one per sample and output, and covariances are built from their axes:
displace() with the k-th draw at √variance and all others at 0 is a vector δ_k, and Cov δ = Σ_k
δ_k δ_kᵀ.
"""

from __future__ import annotations

import itertools
import math
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from dither.attach.inject import put, take
from dither.calling import output
from dither.noise import Here

# --------------------------------------------------------------------------- losses of one sample


def cross_entropy(z, y):
    """z [C] and a class, or z [T, C] and T classes: the mean over positions."""
    return (z.logsumexp(-1) - z.gather(-1, y.unsqueeze(-1)).squeeze(-1)).mean()


def half_square(z, y):
    return (z - y).square().sum(-1).mean() / 2


def logistic(z, y):
    return torch.log1p(torch.exp(-(z.squeeze() * y)))


LOSSES = {"cross_entropy": cross_entropy, "half_square": half_square, "logistic": logistic}

# ------------------------------------------------------------------------------ reading the sites


class Axis:
    """A source whose k-th number is √variance and whose other numbers are 0, over all its calls."""

    def __init__(self, k):
        self.k, self.size = k, 0

    def __call__(self, law, like):
        flat = torch.zeros(like.numel(), dtype=like.dtype)
        if 0 <= self.k - self.size < like.numel():
            flat[self.k - self.size] = math.sqrt(law.variance)
        self.size += like.numel()
        return flat.view(like.shape)


class Pattern(Axis):
    """A source of given numbers, handed out in order."""

    def __init__(self, numbers):
        self.numbers = list(numbers)

    def __call__(self, law, like):
        now = [self.numbers.pop(0) for _ in range(like.numel())]
        return torch.tensor(now, dtype=like.dtype).view(like.shape)


def here(noise, site, h):
    w = noise.nodes.get(site.name.replace(".", "/"), None)
    return Here(h, w, noise.stack, noise.batch_dim)


def factor(noise, site, h):
    """[K, numel]: the axes of δ, so that Cov δ = LᵀL."""
    axis = Axis(0)
    rows = [site.noise.displace(here(noise, site, h), axis).expand_as(h).reshape(-1)]
    for k in range(1, axis.size):
        rows.append(site.noise.displace(here(noise, site, h), Axis(k)).expand_as(h).reshape(-1))
    return torch.stack(rows)


@contextmanager
def hooked(noise, change):
    """h → change(site, h) at every call of every activation site, by hooks of our own."""
    handles = []
    for site in noise.sites.values():
        if site.side == "in":

            def before(module, args, site=site):
                return (change(site, args[0]), *args[1:])

            handles.append(site.module.register_forward_pre_hook(before))
        elif site.side == "out":

            def after(module, args, out, site=site):
                if isinstance(out, tuple):
                    return (change(site, out[0]), *out[1:])
                return change(site, out)

            handles.append(site.module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def share(noise, site):
    """The part of σ² that `draw` leaves to a parameter, in the mean over steps."""
    if site.side != "parameter" or noise.draw == "each":
        return 1.0
    parameters = [s for s in noise.sites.values() if s.side == "parameter"]
    groups = {s.name if noise.by == "tensor" else id(s.module) for s in parameters}
    return 1 / len(groups)


class PlainWeightNorm(TorchFunctionMode):
    """W = g v/‖v‖ of each row: the second derivative of torch's own function is wrong."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch._weight_norm:
            v, g, dim = args
            rest = [d for d in range(v.dim()) if d != dim]
            return g * v / v.square().sum(rest, keepdim=True).sqrt()
        return func(*args, **(kwargs or {}))


def probed(noise, x):
    """(z, [(site, h, probe)]): the output, and every tensor a noise acts on; h + probe is what
    the net saw.
    """
    found = []

    def change(site, h):
        probe = torch.zeros_like(h, requires_grad=True)
        found.append((site, h, probe))
        return h + probe

    with (
        hooked(noise, change),
        sdpa_kernel(SDPBackend.MATH),  # the fused kernels differentiate once
        PlainWeightNorm(),
    ):
        z = output(noise.model, x)
    found += [(s, s.parameter, s.parameter) for s in noise.sites.values() if s.side == "parameter"]
    return z, found


# --------------------------------------------------------------------------------------- ★, dense


def hessian(loss, z, y):
    """∂²ℓ/∂z² of one sample, [D, D], by autograd twice."""
    (slope,) = torch.autograd.grad(loss(z, y), z, create_graph=True)
    rows = [
        torch.autograd.grad(s, z, create_graph=True, allow_unused=True)[0]
        if s.requires_grad
        else None
        for s in slope.reshape(-1)
    ]
    zero = torch.zeros_like(z)
    return torch.stack([(zero if r is None else r).reshape(-1) for r in rows])


def regulariser(noise, x, y, loss):
    """{site: ½ mean_i tr(L J_iᵀ H_i J_i Lᵀ)}, differentiable. `loss(z_i, y_i)` is that of one
    sample.
    """
    z, found = probed(noise, x)
    factors = [factor(noise, site, h) for site, h, _ in found]
    shares = {name: torch.zeros((), dtype=z.dtype) for name in noise.sites}
    for i in range(z.shape[0]):
        h_z = hessian(loss, z[i], y[i])
        rows = []
        for out in z[i].reshape(-1):
            keep = {"create_graph": True, "allow_unused": True}
            gs = torch.autograd.grad(out, [p for *_, p in found], **keep)
            rows.append(
                [
                    torch.zeros_like(p) if g is None else g
                    for g, (*_, p) in zip(gs, found, strict=True)
                ]
            )
        for s, (site, _, _) in enumerate(found):
            jacobian = torch.stack([row[s].reshape(-1) for row in rows])  # [D, numel]
            jl = jacobian @ factors[s].T  # [D, K]
            trace = (h_z @ jl * jl).sum()
            shares[site.name] = shares[site.name] + trace / (2 * z.shape[0]) * share(noise, site)
    return shares


def second_order(noise, x, y, loss):
    """{site: ½ mean tr(L ∇²ℓ Lᵀ)}: the Hessian of the loss itself with respect to each site."""
    z, found = probed(noise, x)
    value = torch.stack([loss(z[i], y[i]) for i in range(z.shape[0])]).mean()
    slopes = torch.autograd.grad(
        value, [p for *_, p in found], create_graph=True, allow_unused=True
    )
    shares = {name: torch.zeros((), dtype=z.dtype) for name in noise.sites}
    for (site, h, probe), slope in zip(found, slopes, strict=True):
        if slope is None:
            continue
        axes = factor(noise, site, h)
        rows = []
        for entry in slope.reshape(-1):
            g = None
            if entry.requires_grad:
                (g,) = torch.autograd.grad(entry, probe, create_graph=True, allow_unused=True)
            rows.append(torch.zeros(probe.numel(), dtype=z.dtype) if g is None else g.reshape(-1))
        term = ((axes @ torch.stack(rows)) * axes).sum() / 2 * share(noise, site)
        shares[site.name] = shares[site.name] + term
    return shares


def curvature(model, x, y, loss, matrix="hessian"):
    """[n, n] in all parameters together: ∇² of the mean loss, or mean_i J_iᵀ H_i J_i, a backward
    pass for each row. `loss(z_i, y_i)` is that of one sample.
    """
    parameters = list(model.parameters())

    def row(of, keep=False):
        how = {"retain_graph": True, "create_graph": keep, "allow_unused": True}
        found = torch.autograd.grad(of, parameters, **how) if of.requires_grad else parameters
        flat = [torch.zeros_like(p) if g is None else g
                for p, g in zip(parameters, found, strict=True)]  # fmt: skip
        found = torch.cat([g.reshape(-1) for g in flat])
        return found if of.requires_grad else torch.zeros_like(found).detach()

    with sdpa_kernel(SDPBackend.MATH), PlainWeightNorm():
        z = output(model, x)
    if matrix == "hessian":
        value = torch.stack([loss(z[i], y[i]) for i in range(len(z))]).mean()
        return torch.stack([row(slope) for slope in row(value, keep=True)])
    total = 0.0
    for i in range(len(z)):
        J = torch.stack([row(out) for out in z[i].reshape(-1)])
        total = total + J.T @ hessian(loss, z[i], y[i]).detach() @ J / len(z)
    return total


def mean_change(noise, x, y, loss, numbers):
    """E[Δℓ] exactly: the mean over all ± patterns of the draws of a two-point law.

    `numbers` {site: draws}; all samples of a batch may share a pattern, the loss being a mean
    over them.
    """
    sites = list(noise.sites.values())
    z, _ = probed(noise, x)
    clean = torch.stack([loss(z[i], y[i]) for i in range(z.shape[0])]).mean()
    total, count = 0.0, 0
    with torch.no_grad():
        for signs in itertools.product((-1.0, 1.0), repeat=sum(numbers.values())):
            rest, at = list(signs), {}
            for site in sites:
                at[site.name], rest = rest[: numbers[site.name]], rest[numbers[site.name] :]

            def change(site, h, at=at):
                repeated = at[site.name] * h.shape[noise.batch_dim]
                return h + site.noise.displace(here(noise, site, h), Pattern(repeated))

            for site in sites:
                if site.side == "parameter":
                    w = site.parameter
                    put(site, w + site.noise.displace(here(noise, site, w), Pattern(at[site.name])))
            with hooked(noise, change):
                z = output(noise.model, x)
            for site in sites:
                if site.side == "parameter":
                    take(site)
            each = torch.stack([loss(z[i], y[i]) for i in range(z.shape[0])])
            total, count = total + each.mean() - clean.detach(), count + 1
    return total / count


# ------------------------------------------------------------------------------------- statistics


def two_sided(alarm):
    """The z that a standard normal exceeds in size with chance `alarm`."""
    from statistics import NormalDist

    return NormalDist().inv_cdf(1 - alarm / 2)


def z_scores(draws, truth):
    """(mean − truth)/sem of independent draws [N, …]; 0 where nothing varies and nothing is off."""
    mean, sem = draws.mean(0), draws.std(0) / draws.shape[0] ** 0.5
    off = (mean - truth).abs()
    exact = sem <= 1e-12 * truth.abs().max().clamp(min=1e-300)
    return torch.where(exact & (off <= 1e-9 * truth.abs().max()), torch.zeros_like(off), off / sem)


def close(a, b, rtol=1e-10):
    """Agreement relative to the largest entry."""
    scale = torch.as_tensor(b).abs().max().clamp(min=1e-300)
    worst = (torch.as_tensor(a) - torch.as_tensor(b)).abs().max() / scale
    assert worst < rtol, f"relative error {worst:.2e}"


def gradients(value, noise):
    """The gradient of a scalar by every parameter of the model and every Node vector, in one
    vector.
    """
    live = [p for p in [*noise.model.parameters(), *noise.parameters()] if p.requires_grad]
    gs = torch.autograd.grad(value, live, allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).reshape(-1)
            for g, p in zip(gs, live, strict=True)
        ]
    )


def half(module: nn.Module) -> nn.Module:
    """In float64 and eval mode, with every norm's statistics and affine parameters off their
    defaults.
    """
    rng = torch.Generator().manual_seed(7)
    for m in module.modules():
        if getattr(m, "running_mean", None) is not None:
            m.running_mean.normal_(generator=rng)
            m.running_var.uniform_(0.5, 2, generator=rng)
        if "Norm" in type(m).__name__:
            for p in m.parameters(recurse=False):
                p.data.normal_(1, 0.5, generator=rng)
    return module.double().eval()
