"""Levi et al. 2022, App. B, M = σ_x = 1: the loss and a step of f(x) = w₁(w₀x + w_NI ε).

Numbers, arrays or tensors; eq. 13 is the gradient step on eq. 10.
"""

ETA = 0.01  # as in Fig. 3; the appendix names none


def eq13(w1, w0, wn, k, learning: float = 1.0, xe: float = 0.0):
    """One step of eq. 13, k = ησ². learning = 0 is eq. 15; xe = ⟨xε⟩ keeps R₁ of eq. 12."""
    error, kick = learning * ETA * (w1 * w0 - 1), ETA * xe
    return (
        w1 * (1 - k * wn**2) - error * w0 - kick * wn * (2 * w1 * w0 - 1),
        w0 - error * w1 - kick * wn * w1**2,
        wn * (1 - k * w1**2) - kick * w1 * (w1 * w0 - 1),
    )


def loss10(w1, w0, wn, sigma2: float, xe: float = 0.0):
    """Eq. 10 with ⟨xε⟩ for σ_xσ_εΦ/√|B|."""
    error = w1 * w0 - 1
    return w1 * wn * error * xe + (error**2 + sigma2 * (w1 * wn) ** 2) / 2
