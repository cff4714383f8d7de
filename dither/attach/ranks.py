"""The ranks of a distributed run."""

from __future__ import annotations

from typing import Any

import torch.distributed

from dither.errors import DitherError


def ranks() -> int:
    """The number of processes that train together; 1 without torch.distributed."""
    return torch.distributed.get_world_size() if _distributed() else 1


def rank() -> int:
    """The rank of this process."""
    return torch.distributed.get_rank() if _distributed() else 0


def agreed(seeds: tuple[int, ...]) -> tuple[int, ...]:
    """The seeds of rank 0, so that all ranks have the same weight noise."""
    box = [seeds]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def compare(seeds: tuple[int, ...]) -> None:
    """Raises DitherError, on every rank, if the ranks have different seeds. Their weight noise and
    the vectors of their Nodes would differ.
    """
    gathered: list[Any] = [None] * ranks()
    torch.distributed.all_gather_object(gathered, seeds)
    if len(set(gathered)) > 1:
        shown = ", ".join(
            f"{s[0] if len(s) == 1 else list(s)} on rank {r}" for r, s in enumerate(gathered)
        )
        raise DitherError(
            f"the noise needs one seed on all ranks: got {shown}; pass the same seed to inject "
            "on every rank (the draws at activations differ by rank all the same), or no seed"
        )


def averaged(parameter: torch.Tensor) -> None:
    """After a backward: replace the gradient by its mean over the ranks, as DDP does.

    A gradient that is averaged already stays as it is, so gradient accumulation is right too.
    """
    if ranks() > 1 and parameter.grad is not None:
        torch.distributed.all_reduce(parameter.grad)
        parameter.grad /= ranks()


def averages(numbers: list[float]) -> list[float]:
    """The means of numbers over the ranks."""
    if ranks() == 1:
        return numbers
    gathered: list[Any] = [None] * ranks()
    torch.distributed.all_gather_object(gathered, numbers)
    return [sum(n) / len(n) for n in zip(*gathered, strict=True)]


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
