"""The dense oracle: R = ½ tr(Jᵀ H J) and the whole second order ½ tr(∇²L), J and ∇² by the white ε
that a site's noise is a function of, from Jacobians and Hessians of the whole batch.

It shares nothing with the library: its own probes, its own Hessians of the losses, loops.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def run(model, x):
    with sdpa_kernel(SDPBackend.MATH):  # the fused forms can't be differentiated twice
        return model(*x) if isinstance(x, tuple) else model(x)


LOSSES = {
    "cross_entropy": lambda z, y: F.cross_entropy(z, y),
    "half_square": lambda z, y: (z - y).square().sum() / 2 / len(z),
    "logistic": lambda z, y: F.binary_cross_entropy_with_logits(z, y, reduction="sum") / len(z),
}


def targets(loss, z):
    if loss == "cross_entropy":
        return torch.randint(z.shape[1], (len(z),))
    return torch.randn_like(z) if loss == "half_square" else torch.randint(2, z.shape).to(z)


def hessian(loss, z):
    """∂²L/∂z² [BC, BC] of the batch mean, by the formula."""
    batch, classes = z.shape
    if loss == "half_square":
        return torch.eye(batch * classes, dtype=z.dtype) / batch
    p = z.sigmoid() if loss == "logistic" else z.softmax(1)
    if loss == "logistic":
        return torch.diag((p * (1 - p)).flatten()) / batch
    return torch.block_diag(*[torch.diag(q) - torch.outer(q, q) for q in p]) / batch


def scale(noise):
    return noise.sigma * noise.law.variance**0.5


def displaced(noise, h, w=None):
    """(h + δ, ε): an activation with its noise as a function of a white ε, here 0. `w` [n,
    features]: the vectors of noise nodes, whose ε all positions of a sample share.
    """
    if w is not None:
        each = w.T.repeat(h[0].numel() // w.shape[1], 1)  # [elements of a sample, nodes]
        eps = torch.zeros(len(h), len(w), dtype=h.dtype, requires_grad=True)
        return h + scale(noise) * (eps @ each.T).reshape(h.shape), eps
    eps = torch.zeros_like(h, requires_grad=True)
    size = h if type(noise).__name__ == "Multiplicative" else 1.0
    return h + scale(noise) * size * eps, eps


def root(noise, p):
    """D [elements, directions] at a parameter: δ = D ε."""
    if type(noise).__name__ == "DropConnect":
        return scale(noise) * torch.diag(p.detach().flatten())
    return scale(noise) * torch.eye(p.numel(), dtype=p.dtype)


def rows(outputs, at, graph):
    """∂outputs/∂at as a matrix; zeros where there is no path."""
    found = []
    for value in outputs.flatten():
        g = None
        if value.requires_grad:
            (g,) = torch.autograd.grad(
                value, at, retain_graph=True, create_graph=graph, allow_unused=True
            )
        found.append((torch.zeros_like(at) if g is None else g).flatten())
    return torch.stack(found)


def oracle(model: nn.Module, x, y, loss, noises, nodes=None):
    """{site: (R, full)} for {site: noise}; a site is a parameter's name, or "module:in|out"."""
    met, handles = [], []

    def probe(name, h):
        h, eps = displaced(noises[name], h, (nodes or {}).get(name))
        met.append((name, eps, 1.0))
        return h

    for name in noises:
        module, _, side = name.rpartition(":")
        if side == "in" and module:
            handles.append(
                model.get_submodule(module).register_forward_pre_hook(
                    lambda m, a, name=name: (probe(name, a[0]), *a[1:])
                )
            )
        elif side == "out" and module:
            handles.append(
                model.get_submodule(module).register_forward_hook(
                    lambda m, a, out, name=name: probe(name, out)
                )
            )
    z = run(model, x)
    for handle in handles:
        handle.remove()
    named = dict(model.named_parameters())
    met += [(n, named[n], root(noises[n], named[n])) for n in noises if n in named]
    value, H = LOSSES[loss](z, y), hessian(loss, z)
    found = {name: (0.0, 0.0) for name in noises}
    for name, at, D in met:
        J = rows(z, at, graph=True)
        (slope,) = torch.autograd.grad(value, at, create_graph=True, allow_unused=True)
        curved = torch.zeros(at.numel(), at.numel()) if slope is None else rows(slope, at, False)
        if name in named:
            J, curved = J @ D, D.T @ curved.to(D) @ D
        (R, full), term = found[name], 0.5 * curved.diagonal().sum()
        found[name] = (R + 0.5 * (J * (H @ J)).sum(), full + float(term.detach()))
    return value, found
