"""Which process of a distributed run this is."""

from __future__ import annotations

import torch.distributed


def ranks() -> int:
    """How many processes train together; 1 where nothing is distributed."""
    return torch.distributed.get_world_size() if _distributed() else 1


def rank() -> int:
    """The number of this one."""
    return torch.distributed.get_rank() if _distributed() else 0


def agreed(seeds: tuple[int, ...]) -> tuple[int, ...]:
    """Rank 0's seeds, so that every rank perturbs the weights alike."""
    box = [seeds]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def averaged(parameter: torch.Tensor) -> None:
    """After a backward: the gradient becomes its mean over the ranks, as DDP does for the model's.

    Averaged parts stay as they are, so accumulating over micro-batches is right too.
    """
    if ranks() > 1 and parameter.grad is not None:
        torch.distributed.all_reduce(parameter.grad)
        parameter.grad /= ranks()


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
