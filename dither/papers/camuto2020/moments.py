"""The second-order term of E[Δℓ] of a chain of layers, exactly, in one forward pass.

Noise of variance v_k, independent between elements and sites, is added after some layers of h ↦ φ(W
h + b). To second order the outputs have mean z + ½ L and covariance S, which come forward with h:

    affine        S ← W S Wᵀ               L ← W L
    elementwise   S ← diag(φ') S diag(φ')  L ← φ' L + φ'' diag S
    site          S ← S + diag(v)

    R = ½ E_batch tr(H S),     residual = ½ E_batch ⟨∂ℓ/∂z, L⟩,     H = ∂²ℓ/∂z²

E[Δℓ] = R + residual + O(v²); both are those of `dither.explicit` (curvature="full" for the sum),
which takes a double backward for each element of a site.
"""

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from dither import loss as losses
from dither.errors import DitherError

Variance = Callable[[Tensor], Tensor]  # of the noise on each element of h [B, d]


def additive(sigma2: float) -> Variance:
    """Camuto et al. 2020, eq. 5."""
    return lambda h: torch.full_like(h, sigma2)


def multiplicative(sigma2: float) -> Variance:
    """Camuto et al. 2020, eq. 6: σ² h²."""
    return lambda h: sigma2 * h.square()


@torch.no_grad()
def second_order(
    model: nn.Sequential,
    x: Tensor,
    y: Tensor,
    loss: str,
    variance: Variance,
    after: Collection[str] = (),
    *,
    on_input: bool = False,
) -> tuple[float, float]:
    """(R, residual) of noise after the named layers (none: after every activation).

    x [B, d]. Costs B d³ per layer; raises DitherError for what is neither a Linear nor elementwise.
    """
    names = [name for name, _ in model.named_children()]
    after = set(after) or {name for name in names if name.startswith("act")}
    h, S, L = x, torch.zeros(*x.shape, x.shape[1], dtype=x.dtype), torch.zeros_like(x)
    clean = True  # S = 0 until the first site: the widest layer is then free
    if on_input:
        S.diagonal(dim1=1, dim2=2).add_(variance(h))
        clean = False
    for name, layer in model.named_children():
        if isinstance(layer, nn.Linear):
            W, h = layer.weight, layer(h)
            S = S.new_zeros(*h.shape, h.shape[1]) if clean else W @ S @ W.mT
            L = L @ W.mT
        else:
            h, slope, bend = _elementwise(name, layer, h)
            L = slope * L + bend * S.diagonal(dim1=1, dim2=2)
            S = slope.unsqueeze(2) * S * slope.unsqueeze(1)
        if name in after:
            S.diagonal(dim1=1, dim2=2).add_(variance(h))
            clean = False
    g, H = _derivatives(h, y, loss)
    R, residual = 0.5 * (H * S).sum((1, 2)).mean(), 0.5 * (g * L).sum(1).mean()
    return R.item(), residual.item()


def _derivatives(z: Tensor, y: Tensor, loss: str) -> tuple[Tensor, Tensor]:
    """∂ℓ/∂z [B, C] and H [B, C, C], sample by sample."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        (g,) = torch.autograd.grad(losses.get(loss).per_sample(z, y).sum(), z, create_graph=True)
        rows = [torch.autograd.grad(c.sum(), z, retain_graph=True)[0] for c in g.unbind(1)]
    return g.detach(), torch.stack(rows, 1)


def _elementwise(name: str, layer: nn.Module, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """φ(a), φ'(a), φ''(a)."""
    with torch.enable_grad():
        a = a.detach().requires_grad_()
        h = layer(a)
        if h.shape != a.shape:
            raise DitherError(
                f"second_order goes through Linear and elementwise layers, and {name!r} "
                f"({type(layer).__name__}) is neither: use explicit(…, curvature='full')"
            )
        (slope,) = torch.autograd.grad(h.sum(), a, create_graph=True)
        if not slope.requires_grad:
            return h.detach(), slope, torch.zeros_like(a)
        (bend,) = torch.autograd.grad(slope.sum(), a, allow_unused=True)
    return h.detach(), slope.detach(), torch.zeros_like(a) if bend is None else bend
