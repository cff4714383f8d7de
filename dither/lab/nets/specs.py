"""The papers' networks as frozen specs.

    .build(seed)           a plain module; its parameters are a function of the seed alone
    .build_stacked(seeds)  one module that runs S = len(seeds) replicas: parameters [S, …], hidden
                           tensors [S, B, d], outputs [S·B, C]; replica s has the parameters of
                           build(seeds[s])

The names of layers are fc0, act0, fc1, …, conv0, … in both. No layer works in place.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import nn
from torch.nn.utils import skip_init

from dither.errors import DitherError
from dither.lab.data.sets import generator
from dither.lab.nets.stack import Diagonal, Stack, StackedDiagonal, StackedLinear, linear

Init = Literal["lecun", "glorot", "orvieto", "torch"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "linear": nn.Identity,
}

# std of a weight's entries for (fan_in, fan_out); the biases of these are 0
STDS: dict[str, Callable[[int, int], float]] = {
    "lecun": lambda fan_in, fan_out: fan_in**-0.5,  # Levi et al. 2022, App. A
    "glorot": lambda fan_in, fan_out: (2 / (fan_in + fan_out)) ** 0.5,  # Camuto et al. 2020
    "orvieto": lambda fan_in, fan_out: (
        (fan_in * fan_out) ** -0.5
    ),  # Orvieto et al. 2022, §3.1: ‖W‖_F = O(1)
}


@torch.no_grad()
def initialise(
    layer: nn.Linear | nn.Conv2d, init: Init, rng: torch.Generator, fan_extra: int = 0
) -> None:
    """W_ij ~ N(0, STDS[init]²), b = 0; "torch": U(±1/√fan_in) for both, PyTorch's own.

    `fan_extra` inputs are added to the fan-in (Levi's 785 = 784 + the node).
    """
    per_entry = layer.weight[0, 0].numel()  # 1, or the kernel's area
    fan_in = layer.weight.shape[1] * per_entry + fan_extra
    fan_out = layer.weight.shape[0] * per_entry
    if init == "torch":
        bound = fan_in**-0.5
        for parameter in layer.parameters():
            parameter.uniform_(-bound, bound, generator=rng)
        return
    layer.weight.normal_(0, STDS[init](fan_in, fan_out), generator=rng)
    if layer.bias is not None:
        layer.bias.zero_()


def channels_last(net: nn.Sequential) -> nn.Sequential:
    """The net with the channels of its kernels last in memory, as its feature maps are from then
    on. Convolutions and batch norms take half the time so on CPUs; values agree up to rounding.
    """
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # pyright: ignore


def _known(name: str, value: str, table: Sequence[str]) -> None:
    if value not in table:
        raise DitherError(f"model: {name} = {value!r} is unknown; there are {', '.join(table)}")


@dataclass(frozen=True)
class MLP:
    """The chain fc0 → act0 → fc1 → … → fc_{L−1}, of widths (d_in, d_1, …, d_{L−1}, C).

    `fan_extra` adds inputs to the fan-in of the initialisation: an int for fc0 alone (Levi's
    in-NINR: 1), or one per layer (full-NINR: (1, 1, 1, 1)).
    """

    widths: tuple[int, ...] = (784, 1024, 10)
    activation: str = "relu"
    bias: bool = True
    init: Init = "lecun"
    fan_extra: int | tuple[int, ...] = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        _known("activation", self.activation, tuple(ACTIVATIONS))
        _known("init", self.init, (*STDS, "torch"))
        if len(self.widths) < 2 or min(self.widths) < 1:
            raise DitherError(
                f"MLP: widths = {self.widths}; give (inputs, …, outputs), each 1 or more"
            )
        if not isinstance(self.fan_extra, int) and len(self.fan_extra) != self.depth:
            raise DitherError(
                f"MLP: fan_extra has {len(self.fan_extra)} entries for {self.depth} layers"
            )

    @property
    def depth(self) -> int:
        return len(self.widths) - 1

    def build(self, seed: int) -> nn.Sequential:
        rng = generator(seed, "parameters")
        extra = (
            (self.fan_extra, *[0] * self.depth)
            if isinstance(self.fan_extra, int)
            else self.fan_extra
        )
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, (fan_in, fan_out) in enumerate(pairwise(self.widths)):
            layers[f"fc{i}"] = layer = linear(fan_in, fan_out, self.bias)
            initialise(layer, self.init, rng, extra[i])
            if i < self.depth - 1:
                layers[f"act{i}"] = ACTIVATIONS[self.activation]()
        return nn.Sequential(layers)

    def build_stacked(self, seeds: Sequence[int]) -> Stack:
        nets = [self.build(seed) for seed in seeds]
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for name, layer in nets[0].named_children():
            same = [net.get_submodule(name) for net in nets]
            layers[name] = StackedLinear(same) if isinstance(layer, nn.Linear) else layer  # type: ignore[arg-type]
        return Stack(layers, len(nets), self.widths[0])


def LinearNet(widths: Sequence[int], init: Init = "orvieto", bias: bool = False) -> MLP:
    """W_L ⋯ W_1 x: an MLP without activations (Orvieto et al. 2022, §2.4, §3.1)."""
    return MLP(tuple(widths), activation="linear", bias=bias, init=init)


@dataclass(frozen=True)
class DiagonalNet:
    """f(x) = ⟨x, w1∘w1 − w2∘w2⟩, both at `start` + N(0, spread²).   Orvieto et al. 2022, §2.3"""

    features: int
    start: float = 0.5
    spread: float = 0.0

    def build(self, seed: int) -> Diagonal:
        rng = generator(seed, "parameters")
        w1, w2 = self.start + self.spread * torch.randn(2, self.features, generator=rng)
        return Diagonal(w1.clone(), w2.clone())

    def build_stacked(self, seeds: Sequence[int]) -> StackedDiagonal:
        return StackedDiagonal([self.build(seed) for seed in seeds])


@dataclass(frozen=True)
class Conv:
    """One convolutional block: conv → activation → (batch norm) → (max pool), then (dropout)."""

    filters: int
    kernel: int
    stride: int = 1
    padding: int = 0
    norm: bool = False
    pool: int = 1
    dropout: float = 0.0


@dataclass(frozen=True)
class CNN:
    """Blocks conv0 → act0 → norm0 → pool0 → drop0 → conv1 …, then flatten → fc0 → act → fc1 ….

    One count numbers all activations; the dense layers have `dense_activation`. `average`: take the
    mean over positions instead of flattening.
    """

    convs: tuple[Conv, ...]
    dense: tuple[int, ...] = ()
    image: tuple[int, int, int] = (1, 28, 28)
    classes: int = 10
    activation: str = "relu"
    dense_activation: str = "relu"
    bias: bool = True
    init: Init = "lecun"
    average: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "convs", tuple(self.convs))
        object.__setattr__(self, "dense", tuple(self.dense))
        _known("activation", self.activation, tuple(ACTIVATIONS))
        _known("dense_activation", self.dense_activation, tuple(ACTIVATIONS))
        _known("init", self.init, (*STDS, "torch"))
        if min(self.shapes[-1]) < 1:
            raise DitherError(
                f"CNN: images {self.image} shrink to {self.shapes[-1]}: take fewer blocks"
            )

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """(channels, height, width) of the image and after each block."""
        shapes = [self.image]
        for c in self.convs:
            h, w = ((n + 2 * c.padding - c.kernel) // c.stride + 1 for n in shapes[-1][1:])
            shapes.append((c.filters, h // c.pool, w // c.pool))
        return shapes

    def build(self, seed: int) -> nn.Sequential:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, (c, shape) in enumerate(zip(self.convs, self.shapes, strict=False)):
            layers[f"conv{i}"] = skip_init(
                nn.Conv2d,
                shape[0],
                c.filters,
                c.kernel,
                stride=c.stride,
                padding=c.padding,
                bias=self.bias,
            )
            layers[f"act{i}"] = ACTIVATIONS[self.activation]()
            optional = {
                f"norm{i}": nn.BatchNorm2d(c.filters) if c.norm else None,
                f"pool{i}": nn.MaxPool2d(c.pool) if c.pool > 1 else None,
                f"drop{i}": nn.Dropout(c.dropout) if c.dropout else None,
            }
            layers.update({name: layer for name, layer in optional.items() if layer is not None})
        if self.average:
            layers["average"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        widths = (
            self.shapes[-1][0] if self.average else math.prod(self.shapes[-1]),
            *self.dense,
            self.classes,
        )
        for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
            layers[f"fc{i}"] = linear(fan_in, fan_out, self.bias)
            if i < len(widths) - 2:
                layers[f"act{len(self.convs) + i}"] = ACTIVATIONS[self.dense_activation]()
        rng = generator(seed, "parameters")
        for layer in layers.values():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                initialise(layer, self.init, rng)
        net = nn.Sequential(layers)
        if any(c.kernel == 1 for c in self.convs):
            return net
        return channels_last(net)


def levi_fc(node: Literal["none", "in", "full"] = "none") -> MLP:
    """784-1024³-10 ReLU; the fan-in counts the noise nodes.   Levi et al. 2022, Fig. 2a, App. A"""
    extra = {"none": 0, "in": 1, "full": (1, 1, 1, 1)}[node]
    return MLP((784, 1024, 1024, 1024, 10), fan_extra=extra)


def levi_cnn(filters: tuple[int, int] = (32, 64)) -> CNN:
    """2 × [conv 2×2 → ELU → batch norm → max pool] → 2048 ReLU → 10.   Levi et al. 2022, Fig. 2b

    The paper does not give the number of filters.
    """
    blocks = tuple(Conv(n, kernel=2, norm=True, pool=2) for n in filters)
    return CNN(blocks, dense=(2048,), activation="elu")


def levi_vgg() -> CNN:
    """Three VGG blocks with dropout .2, .3, .4, then dense 500.   Levi et al. 2022, App. D"""
    blocks = []
    for filters, dropout in ((32, 0.2), (64, 0.3), (128, 0.4)):
        blocks.append(Conv(filters, kernel=3, padding=1, norm=True))
        blocks.append(Conv(filters, kernel=3, padding=1, norm=True, pool=2, dropout=dropout))
    return CNN(tuple(blocks), dense=(500,), image=(3, 32, 32))


def camuto_conv(
    image: tuple[int, int, int] = (3, 32, 32), activation: str = "elu", padding: int = 0
) -> CNN:
    """Conv 32 k4 s2 → conv 128 k4 s2 → dense, no bias.   Camuto et al. 2020, Fig. 3a

    padding 1 is the authors': TensorFlow's SAME, for images with sides that 4 divides.
    """
    blocks = tuple(Conv(n, kernel=4, stride=2, padding=padding) for n in (32, 128))
    return CNN(blocks, image=image, activation=activation, bias=False, init="glorot")


def orvieto_lenet() -> CNN:
    """Conv 6 k5 → pool → conv 16 k5 → pool → 120 → 84 → 10 (Orvieto et al. 2022, eq. 52)."""
    blocks = (Conv(6, kernel=5, pool=2), Conv(16, kernel=5, pool=2))
    return CNN(blocks, dense=(120, 84), image=(3, 32, 32), init="torch")


def orvieto_wide() -> CNN:
    """Conv 32-64-128-128 k3, max pooling → channel means → 10.   Orvieto et al. 2022, eq. 53"""
    blocks = tuple(Conv(n, kernel=3, padding=1, pool=2) for n in (32, 64, 128, 128))
    return CNN(blocks, image=(3, 32, 32), init="torch", average=True)


Spec = MLP | DiagonalNet | CNN
