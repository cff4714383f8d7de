"""A user's problem: inputs and targets to train on, to validate on, and to test on.

Data are given as (x_train, y_train, x_test, y_test) of arrays, or as (train, test) of data sets or
loaders of torch that give (x, y). x and y may be tensors, or tuples, lists or mappings of them.
A data set that gives other values when it is read again (augmentation) stays a data set: it is read
anew in each epoch. All others are held as tensors. A loader's batch size and its
`drop_last` are kept.
"""

import hashlib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from dither.errors import DitherError
from dither.lab.compare.pickled import generators
from dither.lab.compare.streams import at_rest, moved, states
from dither.lab.data.sets import Tensors, generator

IGNORED = -100  # a label that no loss counts


def each(tree: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same tuples, lists and mappings, with every tensor changed."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        return {name: each(part, change) for name, part in tree.items()}
    if isinstance(tree, tuple | list):
        return tuple(each(part, change) for part in tree)
    return tree


def leaves(tree: Any) -> Iterator[Tensor]:
    """The tensors of a tree, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for part in tree.values():
            yield from leaves(part)
    elif isinstance(tree, tuple | list):
        for part in tree:
            yield from leaves(part)


@dataclass(frozen=True, eq=False)
class Stack:
    """Samples in several tensors, with the methods of one tensor that a training loop needs."""

    tree: Any

    def __len__(self) -> int:
        return len(next(leaves(self.tree)))

    def __getitem__(self, which: Any) -> Any:
        return each(self.tree, lambda t: t[which])

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self),)

    @property
    def device(self) -> torch.device:
        return next(leaves(self.tree)).device

    def to(self, device: str | torch.device) -> "Stack":
        return Stack(each(self.tree, lambda t: t.to(device)))

    def is_floating_point(self) -> bool:
        return False


def stacked(tree: Any) -> Any:
    """A tensor as it is; a tree of tensors as a Stack."""
    return tree if isinstance(tree, Tensor) else Stack(tree)


@dataclass(frozen=True, eq=False)
class Problem:
    """The data of a comparison.

    parts    x_train, y_train, x_test, y_test, x_valid, y_valid; the last two are None without a
             validation part
    classes  the number of classes, if the targets are class numbers
    stream   the training data as a data set that is read anew in each epoch; None if held
    batch    samples in a batch, if a loader says so
    drops    whether a loader leaves out a last batch that is smaller
    """

    parts: dict[str, Any]
    classes: int | None = None
    stream: Any = None
    digest: str = field(default="", compare=False)
    batch: int | None = None
    drops: bool = False

    @property
    def n(self) -> int:
        if self.stream is None:
            return len(self.parts["y_train"])
        read: Any = self.stream.dataset if isinstance(self.stream, DataLoader) else self.stream
        return len(read)

    def tensors(self) -> Tensors:
        """For the training loop."""
        names = ("x_train", "y_train", "x_test", "y_test")
        return Tensors(*(self.parts[name] for name in names), classes=self.classes)

    def few(self, n: int) -> "Problem":
        """The first n samples of each part."""
        cut = {name: None if p is None else stacked(p[:n]) for name, p in self.parts.items()}
        return replace(self, parts=cut, stream=None)

    def __str__(self) -> str:
        shapes = " and ".join("×".join(map(str, t.shape[1:])) or "1" for t in leaves(self._one()))
        valid = self.parts["x_valid"]
        said = f"inputs of {shapes}; {self.n} to train on"
        said += f", {len(valid)} to validate on" if valid is not None else ""
        return f"{said}, {len(self.parts['y_test'])} to test on"

    def _one(self) -> Any:
        x = self.parts["x_test"]
        return x.tree if isinstance(x, Stack) else x


def problem(data: Any, validation: float = 0.0) -> Problem:
    """A Problem from what a user gives. validation: the share of the training part to hold out.

    Raises DitherError for data that can't be used.
    """
    train = data[0] if isinstance(data, Sequence) and len(data) == 2 else None
    with at_rest(train):
        x, y, x_test, y_test, stream = _read(data)
    batch = _batch(train) if isinstance(train, DataLoader) else None
    parts = {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test}
    parts = {name: _tree(part, f"data: {name}") for name, part in parts.items()}
    _check(parts)
    valid: dict[str, Any] = {"x_valid": None, "y_valid": None}
    if validation:
        if stream is not None:
            raise DitherError(
                "validation: the training data change when they are read again, so no part of "
                "them can be held out; give data that stay, or validation=0"
            )
        parts, valid = _held_out(parts, validation)
    held = {name: None if p is None else stacked(p) for name, p in {**parts, **valid}.items()}
    labels = [parts["y_train"], parts["y_test"]]
    classes = int(max(t.max() for t in labels)) + 1 if all(map(_labels, labels)) else None
    drops = isinstance(train, DataLoader) and getattr(train.batch_sampler, "drop_last", False)
    found = Problem(held, classes, stream, _digest(held, stream), batch, drops)
    if drops and batch is not None and batch > found.n:
        raise DitherError(
            f"drop_last leaves no batch: the loader has batches of {batch} and {found.n} samples"
        )
    return found


def _read(data: Any) -> tuple[Any, Any, Any, Any, Any]:
    """x_train, y_train, x_test, y_test, and the training data set if it must be read anew."""
    if isinstance(data, Sequence) and len(data) == 4:
        return (*data, None)
    if isinstance(data, Sequence) and len(data) == 2 and all(map(_readable, data)):
        train, test = data
        x_test, y_test = _gathered(test, "the test data")
        if _random(train):
            if getattr(train, "persistent_workers", False):
                raise DitherError(
                    "the training data change when they are read again, and a loader's persistent "
                    "workers draw on from epoch to epoch: give persistent_workers=False"
                )
            x, y = _gathered(_head(train), "the training data")
            return x, y, x_test, y_test, train
        if isinstance(train, DataLoader) and _chooses(train):
            raise DitherError(
                "the training loader has a sampler of its own, and compare takes each sample of "
                "data that stay once in an epoch: give the data set instead, with what the sampler "
                "is for in the loss (weights) or in the data (repeated samples)"
            )
        return (*_gathered(train, "the training data"), x_test, y_test, None)
    got = f"{len(data)} parts" if isinstance(data, Sequence) else type(data).__name__
    raise DitherError(
        "data must be (x_train, y_train, x_test, y_test) of arrays or tensors, or (train, test) "
        f"of data sets or loaders of torch: got {got}"
    )


def said(error: Exception) -> str:
    """An error of a user's code: its kind, its first line, and where it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    first = str(error).splitlines()[0] if str(error) else ""
    return f"{type(error).__name__}: {first} ({Path(last.filename).name}, line {last.lineno})"


def _readable(part: Any) -> bool:
    return isinstance(part, DataLoader | Dataset)


def _head(train: Any, n: int = 32) -> Any:
    """The first samples of a data set, or the first batch of a loader."""
    if isinstance(train, DataLoader):
        return [next(iter(train))]
    return [default_collate([train[i] for i in range(min(n, len(train)))])]


def _chooses(train: DataLoader) -> bool:
    """Whether a loader takes its samples otherwise than each once, in any order."""
    batches: Any = train.batch_sampler
    if batches is not None and type(batches) is not BatchSampler:
        return True
    sampler: Any = train.sampler if batches is None else batches.sampler
    if type(sampler) is RandomSampler:
        held: Any = train.dataset
        return sampler.replacement or sampler.num_samples != len(held)
    return type(sampler) is not SequentialSampler


def _batch(train: DataLoader) -> int | None:
    """Samples in a batch of a loader; None where it does not say."""
    return getattr(train.batch_sampler, "batch_size", train.batch_size)


def _random(train: Any) -> bool:
    """Whether a data set gives other values when it is read again: it does if reading draws. A
    loader's order does not count: its samples are asked for by index.
    """
    held: Any = train.dataset if isinstance(train, DataLoader) else train
    if isinstance(held, IterableDataset):
        return True
    if not len(held):
        raise DitherError("the training data are empty: give one sample or more")
    collate: Any = train.collate_fn if isinstance(train, DataLoader) else lambda one: one[0]
    own, some = generators(train), (0, len(held) // 2, len(held) - 1)
    before = states(own)
    pairs = [[collate([held[i]]) for i in some] for _ in range(2)]
    if moved(before, states(own)):
        return True
    one, two = ([t for part in read for t in leaves(_tree(part, "data"))] for read in pairs)
    return not all(map(_same, one, two))


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _gathered(data: Any, what: str) -> tuple[Any, Any]:
    """All samples of a data set or loader, in its own order without shuffling."""
    if isinstance(data, DataLoader) and not isinstance(data.dataset, IterableDataset):
        how = {"batch_size": data.batch_size or 256, "collate_fn": data.collate_fn}
        data = DataLoader(data.dataset, num_workers=data.num_workers, **how)
    elif isinstance(data, Dataset):
        data = DataLoader(data, batch_size=256)
    try:
        batches = [_pair(batch, what) for batch in data]
    except (TypeError, RuntimeError) as error:
        raise DitherError(
            f"{what} can't be put into batches ({str(error).splitlines()[0]}); give samples of "
            "equal shapes as tensors, or a loader with a collate_fn of its own"
        ) from error
    if not batches:
        raise DitherError(f"{what} are empty: give one sample or more")
    return tuple(_joined(parts) for parts in zip(*batches, strict=True))  # type: ignore[return-value]


def _pair(batch: Any, what: str) -> tuple[Any, Any]:
    """(x, y) of a batch; of a mapping, "labels" (or "label", "y") are y and all else is x."""
    if isinstance(batch, Mapping):
        label = next((name for name in ("labels", "label", "y") if name in batch), None)
        if label is not None:
            return {k: v for k, v in batch.items() if k != label}, batch[label]
    elif isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    got = f"the keys {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else (
        f"{len(batch)} parts" if isinstance(batch, tuple | list) else type(batch).__name__
    )  # fmt: skip
    raise DitherError(f"{what} must give (x, y), or a mapping with 'labels': got {got}")


def _joined(parts: Sequence[Any]) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, Mapping):
        return {name: _joined([part[name] for part in parts]) for name in first}
    return tuple(_joined([part[i] for part in parts]) for i in range(len(first)))


def _tree(part: Any, what: str) -> Any:
    """Tensors from arrays, frames and lists: floats in the default type, whole numbers as long."""
    if isinstance(part, Mapping):
        return {str(name): _tree(p, f"{what}[{name!r}]") for name, p in part.items()}
    if isinstance(part, tuple) or (isinstance(part, list) and part and isinstance(part[0], Tensor)):
        return tuple(_tree(p, f"{what}[{i}]") for i, p in enumerate(part))
    if not isinstance(part, Tensor):
        array = np.asarray(part)
        if array.dtype.kind not in "fiub":
            raise DitherError(
                f"{what} must be numbers: got {type(part).__name__} of {array.dtype}; turn names "
                "into class numbers, and fill what is missing"
            )
        part = torch.tensor(array)  # a copy: the array may be read-only
    if part.is_complex() or part.is_sparse or part.is_meta:
        raise DitherError(
            f"{what} must be a dense tensor of real numbers: got {part.dtype}"
            + " (sparse)" * part.is_sparse
            + " (meta)" * part.is_meta
        )
    part = part.detach()
    return part.to(torch.get_default_dtype()) if part.is_floating_point() else part.long()


def _check(parts: dict[str, Any]) -> None:
    """Raises DitherError unless all parts have samples, as many targets, and are finite."""
    for name, part in parts.items():
        for t in leaves(part):
            if not t.dim() or not len(t):
                raise DitherError(
                    f"data: {name} has the shape {list(t.shape)}; give one sample or more, [n, …]"
                )
            if t.is_floating_point() and not bool(torch.isfinite(t).all()):
                bad = int((~torch.isfinite(t)).reshape(len(t), -1).any(1).sum())
                raise DitherError(
                    f"data: {name} is not finite in {bad} of {len(t)} samples; leave them out, or "
                    "fill what is missing"
                )
        if len({len(t) for t in leaves(part)}) != 1:
            raise DitherError(
                f"data: {name} has parts of {', '.join(str(len(t)) for t in leaves(part))} "
                "samples; give one row per sample in each"
            )
    for which in ("train", "test"):
        n, m = (len(next(leaves(parts[f"{name}_{which}"]))) for name in "xy")
        if n != m:
            raise DitherError(
                f"data needs as many targets as inputs: got {n} inputs and {m} targets to "
                f"{which} on"
            )
    for one, two in (("x_train", "x_test"), ("y_train", "y_test")):
        a, b = ([tuple(t.shape[1:]) for t in leaves(parts[name])] for name in (one, two))
        kinds = ([t.is_floating_point() for t in leaves(parts[name])] for name in (one, two))
        if len(a) != len(b) or next(kinds) != next(kinds):
            raise DitherError(f"data: {one} and {two} are of different kinds: give both alike")
    for name in ("y_train", "y_test"):
        y = parts[name]
        if isinstance(y, Tensor) and not y.is_floating_point():
            low = int(torch.where(y == IGNORED, 0, y).min())
            if low < -1:
                raise DitherError(
                    f"data: {name} has the label {low}; classes are 0, 1, … ({IGNORED} is ignored)"
                )


def _labels(y: Any) -> bool:
    """Whether targets are class numbers; −1 is a label of the logistic loss."""
    if not isinstance(y, Tensor) or y.is_floating_point():
        return False
    return bool((torch.where(y == IGNORED, 0, y) >= 0).all())


def _held_out(parts: dict[str, Any], share: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parts with a smaller training part, and the validation part: random, the same for all."""
    n = len(next(leaves(parts["x_train"])))
    order = torch.randperm(n, generator=generator(0, "validation"))
    held = max(1, round(share * n))
    if held >= n:
        raise DitherError(f"validation = {share} leaves no sample of {n} to train on; give less")
    chosen, rest = order[:held].sort().values, order[held:].sort().values
    train = {f"{k}_train": each(parts[f"{k}_train"], lambda t: t[rest]) for k in "xy"}
    valid = {f"{k}_valid": each(parts[f"{k}_train"], lambda t: t[chosen]) for k in "xy"}
    return {**parts, **train}, valid


def _digest(parts: dict[str, Any], stream: Any) -> str:
    """A checksum of all values."""
    digest = hashlib.sha256(f"{None if stream is None else len(stream)}".encode())
    for name, part in parts.items():
        digest.update(name.encode())
        for t in leaves(part.tree if isinstance(part, Stack) else part):
            digest.update(f"{t.dtype} {tuple(t.shape)}".encode())
            digest.update(content(t))
    return digest.hexdigest()


def content(t: Tensor) -> bytes:
    """The values of a tensor of any dtype."""
    return t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
