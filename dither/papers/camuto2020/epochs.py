"""How long the paper trains its classifiers: 250 epochs in batches of 512 at a rate of 10⁻³."""

EPOCHS, BATCH, RATE = 250, 512, 1e-3
IMAGES = {"fashion-mnist": 60_000, "svhn": 73_257, "cifar-10": 50_000}


def steps(data: str, rate: float = RATE) -> int:
    """The number of steps with the paper's rate × steps: 29.3, 35.8, 24.4."""
    return round(EPOCHS * IMAGES[data] / BATCH * RATE / rate)
