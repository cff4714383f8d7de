"""What is measured on: networks trained for a few hundred steps on real data, and a batch for each.

Images are Fashion-MNIST, padded to 32×32 and repeated over three channels where a network wants
colour; words are those of the manual pages that come with Python, the 1000 most frequent of them.
Trained weights are kept under `.bench/weights`.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import nets
from benchmarks.environments import BENCH

WORDS, CONTEXT = 1000, 32
MLP5, MLP3 = [784, *[256] * 5, 10], [784, *[1024] * 3, 10]


@dataclass(frozen=True)
class Workload:
    """A network and its batch; `costs` are the quantities measured there (see
    `benchmarks.methods`).
    """

    name: str
    title: str
    net: Callable[[], nn.Module]
    batch: int
    costs: tuple[str, ...]
    kind: str = "flat"
    weights: str = ""  # the workload whose weights it shares
    steps: int = 300
    train_batch: int = 128
    classes: int = 10


@dataclass(frozen=True)
class Job:
    """A model in eval mode and the batch to work on: what every method is given."""

    workload: Workload
    model: nn.Module
    x: Tensor
    y: Tensor

    def own(self, n: int | None = None) -> Job:
        """A copy of the model, with the first n samples: hooks hung on it slow nobody else."""
        return replace(self, model=copy.deepcopy(self.model), x=self.x[:n], y=self.y[:n])


NOISES = ("weights", "weights two-point", "weights cycle", "activations")
PENALTY = ("R", "R sampled", "GN trace", "GN trace sampled")
STEPS = ("step + R", "step + R sampled")
SPECTRUM = ("GN diagonal", "Hessian diagonal", "largest eigenvalue", "density")
POPULAR = {
    "mlp": ("relative weights", "DropConnect", "prediction spread", "certificate"),
    "cnn": ("spatial dropout", "DropConnect", "prediction spread"),
    "language": ("NEFTune", "drop path", "locked dropout", "masked"),
}

WORKLOADS = {
    w.name: w
    for w in (
        Workload(
            "mlp256_b32",
            "MLP 784-256⁵-10, B 32",
            lambda: nets.mlp(*MLP5),
            32,
            PENALTY,
            weights="mlp256",
        ),
        Workload("mlp256", "MLP 784-256⁵-10, B 256", lambda: nets.mlp(*MLP5), 256, PENALTY),
        Workload(
            "mlp1024",
            "MLP 784-1024³-10, B 128",
            lambda: nets.mlp(*MLP3),
            128,
            (*PENALTY, *STEPS, *NOISES, "Hessian trace", "GN diagonal", "largest eigenvalue"),
        ),
        Workload(
            "mlp5000",
            "MLP 784-5000²-10, B 1024",
            lambda: nets.mlp(784, 5000, 5000, 10),
            1024,
            ("R", "R sampled", *NOISES),
            steps=200,
        ),
        Workload(
            "cnn",
            "CNN 32-64-128-128 on 32×32×3, B 128",
            lambda: nets.cnn(32, 64, 128, 128),
            128,
            (*PENALTY, *NOISES, "Hessian trace", "memory", "GN diagonal"),
            kind="colour",
        ),
        Workload(
            "resnet18_b8",
            "ResNet18, B 8",
            nets.resnet18,
            8,
            PENALTY,
            kind="colour",
            weights="resnet18",
        ),
        Workload(
            "resnet18",
            "ResNet18, B 32",
            nets.resnet18,
            32,
            ("R", "R sampled", *NOISES),
            kind="colour",
            steps=200,
            train_batch=32,
        ),
        Workload(
            "transformer",
            "transformer d 128 × 4, 32 tokens, B 32",
            nets.Transformer,
            32,
            (*PENALTY, *STEPS, "GN diagonal"),
            kind="image",
        ),
        Workload(
            "language",
            "language model, 1000 words, B 16",
            nets.Language,
            16,
            ("R", "R sampled", "GN trace sampled", "memory"),
            kind="words",
            classes=WORDS,
            train_batch=64,
        ),
        Workload(
            "tanh",
            "tanh MLP 784-256⁵-10, B 256",
            lambda: nets.mlp(*MLP5, activation=nn.Tanh),
            256,
            ("Hessian trace", *SPECTRUM),
        ),
        Workload(
            "block",
            "transformer block d 128, 32 tokens, B 32",
            lambda: nets.Transformer(layers=1),
            32,
            ("Hessian trace", *SPECTRUM),
            kind="image",
        ),
        Workload(
            "popular_mlp",
            "MLP 784-1024³-10, B 128",
            lambda: nets.mlp(*MLP3),
            128,
            POPULAR["mlp"],
            weights="mlp1024",
        ),
        Workload(
            "popular_cnn",
            "CNN 32-64-128-128 on 32×32×3, B 128",
            lambda: nets.cnn(32, 64, 128, 128),
            128,
            POPULAR["cnn"],
            kind="colour",
            weights="cnn",
        ),
        Workload(
            "popular_language",
            "language model, 1000 words, B 16",
            nets.Language,
            16,
            POPULAR["language"],
            kind="words",
            classes=WORDS,
            weights="language",
        ),
    )
}


def job(workload: Workload) -> Job:
    """The trained model in eval mode, and a batch of examples it was not trained on."""
    model = workload.net()
    model.load_state_dict(trained(workload))
    x, y = examples(workload.kind, "test")
    return Job(workload, model.eval(), x[: workload.batch], y[: workload.batch])


def trained(workload: Workload) -> dict[str, Tensor]:
    """Weights after a few hundred steps of Adam; made once, kept under a hash of the code that made
    them.
    """
    workload = WORKLOADS.get(workload.weights, workload)
    code = ast.dump(ast.parse(Path(nets.__file__).read_bytes()))
    code = f"{code} {workload.steps} {workload.train_batch}".encode()
    path = BENCH / "weights" / f"{workload.name}-{hashlib.sha256(code).hexdigest()[:12]}.pt"
    if path.is_file():
        return torch.load(path, weights_only=True)
    torch.manual_seed(0)
    model = workload.net().train()
    x, y = examples(workload.kind, "train")
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(workload.steps):
        chosen = torch.randint(len(y), (workload.train_batch,))
        optimiser.zero_grad()
        F.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimiser.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return model.state_dict()


@cache
def examples(kind: str, split: str) -> tuple[Tensor, Tensor]:
    """(x, y): "flat" [n, 784], "image" [n, 1, 32, 32], "colour" [n, 3, 32, 32], "words" [n, 32]."""
    if kind == "words":
        x, y = _words()
        cut = len(y) - 2000
        return (x[:cut], y[:cut]) if split == "train" else (x[cut:], y[cut:])
    from dither.lab.data.sets import Data

    data = Data("fashion-mnist").load()
    x, y = (
        (data.x_train[:30000], data.y_train[:30000])
        if split == "train"
        else (data.x_test, data.y_test)
    )
    if kind == "flat":
        return x, y
    x = F.pad(x.view(-1, 1, 28, 28), (2, 2, 2, 2), value=float(x.min()))
    return (x.expand(-1, 3, -1, -1).contiguous() if kind == "colour" else x), y


def _words() -> tuple[Tensor, Tensor]:
    """Every stretch of 32 words in Python's manual pages, and the word after it; 0 stands for a
    rare one.
    """
    from pydoc_data.topics import topics

    words = re.findall(r"\w+|[^\w\s]", "\n".join(topics[key] for key in sorted(topics)))
    common = {w: i + 1 for i, (w, _) in enumerate(Counter(words).most_common(WORDS - 1))}
    text = torch.tensor([common.get(w, 0) for w in words]).unfold(0, CONTEXT + 1, 7)
    return text[:, :CONTEXT], text[:, CONTEXT]
