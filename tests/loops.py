"""A training by hand, which every library's loop with noise in it has to equal."""

import torch
from torch import nn

import dither

X = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(24) % 3
LR, BATCH, SEED = 0.1, 4, 7


def plain() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def by_hand(model: nn.Module, what, epochs: int, accumulate: int, **how) -> int:
    """The same training in plain code; how many steps it had."""
    model.train()
    with dither.inject(model, what, seed=SEED, **how) as noise:
        sgd = torch.optim.SGD([*model.parameters(), *noise.parameters()], LR)
        for _ in range(epochs):
            for xs, ys in zip(
                X.split(BATCH * accumulate), Y.split(BATCH * accumulate), strict=True
            ):
                sgd.zero_grad()
                with noise.hold():
                    for x, y in zip(xs.split(BATCH), ys.split(BATCH), strict=True):
                        (loss(model, x, y) / accumulate).backward()
                sgd.step()
        return noise.step


def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if isinstance(model, Named):
        return model(x, y)["loss"]
    return nn.functional.cross_entropy(model(x), y)


class Named(nn.Module):
    """A model as transformers' Trainer wants it: arguments by name, a loss among what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.net = plain()

    def forward(self, x, labels=None):
        z = self.net(x)
        return {"loss": nn.functional.cross_entropy(z, labels), "logits": z}


def same(a: nn.Module, b: nn.Module) -> None:
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


WHATS = {
    "weights in turn": (dither.Weight(0.3), {"draw": "cycle"}),
    "activations": (dither.Additive(0.5), {}),
    "nodes": ({"0": dither.Node(2.0)}, {}),
}


def clean(model: nn.Module) -> None:
    hooks = [
        h for m in model.modules()
        for h in (*m._forward_pre_hooks.values(), *m._forward_hooks.values())
    ]  # fmt: skip
    assert not hooks
    model.train()
